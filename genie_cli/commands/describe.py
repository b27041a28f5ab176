"""A model as plain data: layers, batch norms, strided convolutions, units, bits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from torch import fx

from genie_cli.models.graph.batch_norm import batch_norm_sites
from genie_cli.models.graph.folding import fold_batch_norms
from genie_cli.models.graph.layers import weight_layers
from genie_cli.models.graph.tensors import get_tensor
from genie_cli.models.teacher import Teacher
from genie_cli.quantization.units import reconstruction_units
from genie_cli.student.protocol import assign_bits, find_protocol


def describe_model(
    teacher: Teacher,
    protocol: str,
    weight_bits: int,
    activation_bits: int,
    overrides: Mapping[str, tuple[int, int]] = {},
) -> dict[str, Any]:
    """The description of a model that ``genie inspect`` shows, as JSON-ready data.

    Raises:
        UsageError: unknown protocol, or an override that matches no layer.
    """
    chosen = find_protocol(protocol)
    folded = fold_batch_norms(teacher.graph)
    plan = assign_bits(folded.graph, chosen, weight_bits, activation_bits, overrides)
    site_of = {site.node: site for site in plan.activations}
    sites = batch_norm_sites(teacher.graph)
    norm_of = {site.source.name: site.name for site in sites}
    layers = []
    readers: dict[str, list[str]] = defaultdict(list)
    for layer in weight_layers(folded.graph):
        source = layer.node.args[0]
        assert isinstance(source, fx.Node)
        site = site_of.get(source.name)
        readers[source.name].append(layer.name)
        layers.append(
            {
                "name": layer.name,
                "kind": layer.kind + (f" groups {layer.groups}" if layer.groups > 1 else ""),
                "shape": "x".join(str(side) for side in get_tensor(folded.graph, layer.weight_key).shape),
                "stride": "x".join(str(stride) for stride in layer.stride if stride != 1),
                "weight_bits": plan.weights[layer.name],
                "input_site": site.name if site else "",
                "activation_bits": site.bits if site else None,
                "batch_norm": norm_of.get(layer.node.name, ""),
            }
        )
    return {
        "model": teacher.name,
        "input": teacher.input.model_dump(mode="json"),
        "num_classes": teacher.num_classes,
        "num_weights": sum(
            get_tensor(teacher.graph, layer.weight_key).numel() for layer in weight_layers(teacher.graph)
        ),
        "protocol": f"{chosen.name}: {chosen.summary}",
        "layers": layers,
        "batch_norms": [site.name for site in sites],
        "strided": [layer.name for layer in weight_layers(teacher.graph) if any(s != 1 for s in layer.stride)],
        "units": [{"name": unit.name, "layers": list(unit.layers)} for unit in reconstruction_units(folded.graph)],
        "sites": [{"name": site.name, "bits": site.bits, "layers": readers[site.node]} for site in plan.activations],
        "unfolded": folded.unfolded,
    }
