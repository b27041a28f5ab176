"""Initial activation step sizes (Eq. 6) from the values that a unit's tensors take."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx

from genie_cli.config import QuantizeConfig
from genie_cli.errors import NumbersError
from genie_cli.models.graph.outputs import as_tuple
from genie_cli.models.graph.subgraph import extract
from genie_cli.quantization.activations.store import ActivationStore
from genie_cli.quantization.units.unit_graph import UnitGraph
from genie_cli.runtime.context import RunContext
from genie_cli.student.bit_plan import ActivationSite
from genie_cli.student.formats import activation_format
from genie_cli.student.grid import minmax_step_size, search_step_size
from genie_cli.student.modules import ActivationQuantizer

CALIBRATION_IMAGES = 256
"""Images, evenly spaced over the set, whose values are looked at (the authors' code: the first 32)."""
_SAMPLES = 1 << 18
"""Values per site that the search compares; range and sign come from all values."""


@torch.no_grad()
def initial_step_sizes(
    folded: fx.GraphModule,
    unit: UnitGraph,
    inputs: Sequence[ActivationStore],
    config: QuantizeConfig,
    context: RunContext,
) -> dict[str, ActivationQuantizer]:
    """Step size and sign for each of a unit's own sites, from the unit's quantized inputs.

    Args:
        folded: the folded graph.
        unit: the unit.
        inputs: the tensors that enter it, for all images, each ``[n, ...]``.
        config: `activation_range` says how the step size is found.
        context: its processes hold other images, and all find the same step sizes.

    Raises:
        NumbersError: a value that is not finite.
    """
    if not unit.own_sites:
        return {}
    seen = zip(unit.own_sites, _observed(folded, unit, inputs, context), strict=True)
    return {site.name: _initial_quantizer(site, values, span, config) for site, (values, span) in seen}


def _observed(
    folded: fx.GraphModule, unit: UnitGraph, inputs: Sequence[ActivationStore], context: RunContext
) -> list[tuple[Tensor, Tensor]]:
    """A sample of each own site's values ``[s]``, and their extremes in parts of the images ``[k, 2]``."""
    sites, workers = unit.own_sites, context.workers
    by_name = {node.name: node for node in (*unit.sources, *unit.nodes)}
    probe = extract(folded, unit.nodes, unit.sources, [by_name[site.node] for site in sites])
    num_images = len(inputs[0])
    wanted = min(num_images, max(1, CALIBRATION_IMAGES // workers.size))
    chosen = torch.linspace(0, num_images - 1, wanted).round().long()
    samples: list[list[Tensor]] = [[] for _ in sites]
    extremes: list[list[Tensor]] = [[] for _ in sites]
    for positions in torch.arange(len(chosen)).split(unit.rows):

        def look(part: Tensor, begin: int = int(positions[0])) -> list[tuple[Tensor, Tensor]]:
            outputs = as_tuple(probe(*(store.gather(chosen[part]).float() for store in inputs)))
            seen = []
            for tensor in outputs:
                flat = tensor.float().flatten()
                numel = flat.numel() // len(part)
                # an odd stride keeps the sample from landing on the same columns of every row
                stride = max(1, numel * len(chosen) * workers.size // _SAMPLES) | 1
                first = -numel * (int(part[0]) - begin) % stride  # a part goes on where the last one stopped
                sample = flat[first::stride].clone()  # a view would keep all values
                seen.append((sample, torch.stack(torch.aminmax(flat))))
            return seen

        for seen in context.splitter.each(look, positions):
            for kept, ends, (sample, span) in zip(samples, extremes, seen, strict=True):
                kept.append(sample)
                ends.append(span)
    return [
        (workers.all_gather_rows(torch.cat(kept)), workers.all_gather_rows(torch.stack(ends)))
        for kept, ends in zip(samples, extremes, strict=True)
    ]


def _initial_quantizer(
    site: ActivationSite, values: Tensor, span: Tensor, config: QuantizeConfig
) -> ActivationQuantizer:
    """The quantizer of a site's values ``[s]`` with the extremes ``[k, 2]``.

    Raises:
        NumbersError: a value that is not finite.
    """
    if not span.isfinite().all():
        raise NumbersError(
            f"Activation '{site.name}' takes values that are NaN or infinite: its step size cannot be found. Check "
            "the network's weights, and that the images are normalised for it."
        )
    format = activation_format(site.bits, signed=bool(span.amin() < 0))
    if config.activation_range == "search":
        step_size = search_step_size(values, format, span)
    else:
        step_size = minmax_step_size(span, format)
    return ActivationQuantizer(step_size, format)
