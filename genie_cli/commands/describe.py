"""A model as plain data: layers, batch norms, strided convolutions, units, bits."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from genie_cli.models.graph.batch_norm import batch_norm_sites
from genie_cli.models.graph.integer_operations import grid_source
from genie_cli.models.graph.layers import weight_layers
from genie_cli.models.graph.tensors import get_tensor
from genie_cli.models.teacher import Teacher
from genie_cli.quantization.plan import QuantizationPlan


def describe_model(teacher: Teacher, plan: QuantizationPlan) -> dict[str, Any]:
    """A teacher and the plan of its quantization as ``genie inspect`` shows them: JSON-ready data."""
    folded, bits = plan.folded, plan.bits
    site_of = {site.node: site for site in bits.activations}
    sites = batch_norm_sites(teacher.graph)
    norm_of = {site.source.name: site.name for site in sites}
    layers = []
    readers: dict[str, list[str]] = defaultdict(list)
    for layer in weight_layers(folded.graph):
        quantized = [node if node.name in site_of else grid_source(node) for node in layer.sources]
        site = site_of.get(quantized[0].name)
        for source in quantized:
            readers[source.name].append(layer.name)
        layers.append(
            {
                "name": layer.name,
                "kind": layer.kind + (f" groups {layer.groups}" if layer.groups > 1 else ""),
                "shape": "x".join(str(side) for side in get_tensor(folded.graph, layer.weight_key).shape),
                "stride": "x".join(str(stride) for stride in layer.stride if stride != 1),
                "weight_bits": bits.weights[layer.name],
                "weight_grid": bits.weight_format(layer.name).grid,
                "input_site": site.name if site else "",
                "activation_bits": site.bits if site else None,
                "batch_norm": norm_of.get(layer.node.name, ""),
            }
        )
    return {
        "model": teacher.name,
        "input": teacher.input.model_dump(mode="json"),
        "num_classes": teacher.num_classes,
        "logits": teacher.logits.name if teacher.logits is not None else None,
        "outputs": [
            {"name": tensor.name, "shape": tensor.layout.described(tensor.shape)} for tensor in teacher.outputs.tensors
        ],
        "num_weights": sum(
            get_tensor(teacher.graph, layer.weight_key).numel() for layer in weight_layers(teacher.graph)
        ),
        "protocol": f"{plan.protocol.name}: {plan.protocol.summary}",
        "layers": layers,
        "batch_norms": [site.name for site in sites],
        "strided": [layer.name for layer in weight_layers(teacher.graph) if layer.is_strided_convolution],
        "units": [
            {
                "name": unit.name,
                "layers": list(unit.layers),
                "num_inputs": len(unit.sources),
                "num_outputs": len(unit.outputs),
                "num_passing": len(unit.passing),
            }
            for unit in plan.units
        ],
        "sites": [{"name": site.name, "bits": site.bits, "layers": readers[site.node]} for site in bits.activations],
        "slopes": [
            {"name": name, "shape": list(slope.codes.shape), "bits": slope.format.bits}
            for name, slope in plan.slopes.items()
        ],
        "unfolded": folded.unfolded,
        "moved": {name: list(layers) for name, layers in folded.moved.items()},
        "coverage": {
            "parameters": plan.coverage.parameters,
            "multiplications": plan.coverage.multiplications,
            "in_float": plan.coverage.in_float,
        },
        "checks": plan.checks,
        "notes": list(teacher.notes),
    }
