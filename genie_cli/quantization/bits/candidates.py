"""The quantized tensors that sensitivities are asked of: each weight and each activation at each width."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from genie_cli.config.bit_table import BitTable
from genie_cli.errors import NumbersError
from genie_cli.models.graph.layers import WeightLayer, weight_layers
from genie_cli.models.graph.outputs import as_tuple
from genie_cli.models.graph.tensors import get_tensor, numel_per_image
from genie_cli.quantization.activations.passing import ImageRows
from genie_cli.quantization.bits.distance import OutputDistance, output_distance
from genie_cli.quantization.plan import QuantizationPlan, bit_plan
from genie_cli.runtime.context import RunContext
from genie_cli.student.bit_plan import ActivationSite
from genie_cli.student.formats import NumberFormat, activation_format
from genie_cli.student.grid import (
    dequantize_weight,
    fake_quantize,
    minmax_step_size,
    quantize_weight,
    search_step_size,
    weight_grid,
)

WIDTHS = tuple(range(2, 9))
_SAMPLES = 1 << 15
"""Values per site that the search of a step size compares; range and sign come from all values."""
_LIVE_BYTES = 1 << 29
"""Activations of a batch, with all gradients of them, take about so much memory."""


@dataclass(frozen=True)
class Candidates:
    """Each tensor of a network with its quantized forms.

    Attributes:
        graph: the folded graph.
        layers: the weight layers, in data-flow order.
        sites: the activation sites, in data-flow order.
        weights: layer -> bits -> weight, dequantized.
        quantizers: site -> bits -> step size and format.
        distance: of the outputs.
    """

    graph: fx.GraphModule
    layers: tuple[WeightLayer, ...]
    sites: tuple[ActivationSite, ...]
    weights: dict[str, dict[int, Tensor]]
    quantizers: dict[str, dict[int, tuple[float, NumberFormat]]]
    distance: OutputDistance

    @functools.cached_property
    def watched(self) -> set[str]:
        """Nodes whose values matter: those of layers and sites."""
        return {layer.node.name for layer in self.layers} | {site.node for site in self.sites}

    def rows(self, num_values: int) -> int:
        """Images that pass at once where so many values are kept of each element of a watched tensor."""
        nodes = [node for node in self.graph.graph.nodes if node.name in self.watched]
        per_image = sum(map(numel_per_image, nodes)) * num_values * torch.float32.itemsize
        return max(1, min(32, _LIVE_BYTES // max(1, per_image)))

    def quantized(self, site: str, bits: int, values: Tensor) -> Tensor:
        """The values of a site on its grid."""
        step_size, format = self.quantizers[site][bits]
        return fake_quantize(values, step_size, format)


class Watching(fx.Interpreter):
    """Runs a graph and keeps the values of some nodes, and what its layers are called with.

    Attributes:
        values: node -> its value.
        arguments: layer's node -> its arguments.
    """

    def __init__(self, candidates: Candidates, with_gradients: bool) -> None:
        """Watch the layers and sites of `candidates`; floats among their values are made to take gradients."""
        super().__init__(candidates.graph, garbage_collect_values=with_gradients)
        self.values: dict[str, Tensor] = {}
        self.arguments: dict[str, tuple[Any, ...]] = {}
        self._candidates, self._with_gradients = candidates, with_gradients
        self._layers = {layer.node.name for layer in candidates.layers}

    def run_node(self, n: fx.Node) -> Any:
        """Compute one node."""
        if n.name in self._layers:
            self.arguments[n.name] = self.fetch_args_kwargs_from_env(n)[0]
        value = super().run_node(n)
        if n.name in self._candidates.watched:
            if self._with_gradients and not value.requires_grad:
                value = value.detach().requires_grad_(True)
            self.values[n.name] = value
        return value


def layer_output(layer: WeightLayer, arguments: Sequence[Any], weight: Tensor, has_bias: bool) -> Tensor:
    """A layer's output for another weight, its bias taken along or left out."""
    changed = [argument.detach() if isinstance(argument, Tensor) else argument for argument in arguments]
    changed[layer.operation.weight] = weight
    bias = layer.operation.bias
    if not has_bias and bias is not None and len(changed) > bias and isinstance(changed[bias], Tensor):
        changed[bias] = torch.zeros_like(changed[bias])
    target: Callable[..., Tensor] = layer.node.target  # type: ignore[assignment]
    return target(*changed, **layer.node.kwargs)


@torch.no_grad()
def make_candidates(plan: QuantizationPlan, images: ImageRows, context: RunContext) -> Candidates:
    """The quantized forms of all tensors of a network, whose graph lies on the context's device.

    Args:
        plan: the network, its sites, and how first step sizes are found.
        images: calibration images; with several processes, this one's share.
        context: what to run on.

    Raises:
        NumbersError: an activation that is not finite.
    """
    graph = plan.folded.graph
    layers = tuple(weight_layers(graph))
    weights: dict[str, dict[int, Tensor]] = {layer.name: {} for layer in layers}
    for bits in WIDTHS:
        table = BitTable(weights=dict.fromkeys(weights, bits))
        formats = bit_plan(graph, plan.config.model_copy(update={"bits_table": table}))
        for layer in layers:
            weight, format = get_tensor(graph, layer.weight_key), formats.weight_format(layer.name)
            scale, zero_point = weight_grid(weight, format, plan.config.weight_range)
            codes = quantize_weight(weight.float(), scale, zero_point, format)
            weights[layer.name][bits] = dequantize_weight(codes, scale, zero_point)
    seen = _look(plan, layers, images, context)
    quantizers = {
        site.name: _quantizers(site, plan, samples, span)
        for site, samples, span in zip(plan.bits.activations, seen.samples, seen.spans, strict=True)
    }
    distance = output_distance(plan.teacher, seen.energies, seen.is_float)
    return Candidates(graph, layers, plan.bits.activations, weights, quantizers, distance)


@dataclass
class _Seen:
    """The values that sites and outputs take.

    Attributes:
        samples: of each site.
        spans: the smallest and the largest value of each site.
        energies: mean squared norm per image of each output.
        is_float: output by output, whether it holds floats.
    """

    samples: list[Tensor] = field(default_factory=list)
    spans: list[Tensor] = field(default_factory=list)
    energies: Tensor = field(default_factory=lambda: torch.empty(0))
    is_float: list[bool] = field(default_factory=list)


def _look(plan: QuantizationPlan, layers: tuple[WeightLayer, ...], images: ImageRows, context: RunContext) -> _Seen:
    sites, workers, device = plan.bits.activations, context.workers, context.device
    blank = Candidates(plan.folded.graph, layers, sites, {}, {}, OutputDistance((), None))
    rows = blank.rows(1)
    samples: list[list[Tensor]] = [[] for _ in sites]
    spans: list[list[Tensor]] = [[] for _ in sites]
    energies, seen = torch.zeros(0, dtype=torch.float64), _Seen()
    for first in range(0, len(images), rows):
        watching = Watching(blank, with_gradients=False)
        outputs = as_tuple(watching.run(images[first : first + rows].to(device)))
        seen.is_float = [output.is_floating_point() for output in outputs]
        norms = [
            output.double().square().sum().cpu() if output.is_floating_point() else torch.zeros(())
            for output in outputs
        ]
        energies = torch.stack(norms).double() + (energies if len(energies) else 0)
        for kept, ends, site in zip(samples, spans, sites, strict=True):
            flat = watching.values[site.node].float().flatten()
            wanted = flat.numel() * len(images) // max(1, len(watching.values[site.node])) * workers.size
            kept.append(flat[:: max(1, wanted // _SAMPLES) | 1].cpu())  # odd: not the same columns of every row
            ends.append(torch.stack(torch.aminmax(flat)).cpu())
    num_images = workers.sum_(torch.tensor([len(images)], dtype=torch.int64))
    seen.energies = workers.sum_(energies) / num_images
    for kept, ends, site in zip(samples, spans, sites, strict=True):
        seen.samples.append(workers.all_gather_rows(torch.cat(kept)))
        seen.spans.append(workers.all_gather_rows(torch.stack(ends)))
        if not seen.spans[-1].isfinite().all():
            raise NumbersError(
                f"Activation '{site.name}' takes values that are NaN or infinite: its sensitivity cannot be found. "
                "Check the network's weights, and that the images are normalised for it."
            )
    return seen


def _quantizers(
    site: ActivationSite, plan: QuantizationPlan, samples: Tensor, span: Tensor
) -> dict[int, tuple[float, NumberFormat]]:
    found = {}
    for bits in WIDTHS:
        format = activation_format(bits, signed=bool(span.amin() < 0))
        if plan.config.activation_range == "search":
            found[bits] = search_step_size(samples, format, span), format
        else:
            found[bits] = minmax_step_size(span, format), format
    return found
