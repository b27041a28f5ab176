"""Initial activation step sizes from the values that a unit's tensors take."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx

from genie_cli.config import QuantizeConfig
from genie_cli.errors import NumbersError
from genie_cli.models.graph.subgraph import extract
from genie_cli.quantization.activation_store import ActivationStore
from genie_cli.runtime.distribution import SOLO, Workers
from genie_cli.runtime.shortage import Pieces
from genie_cli.student.grid import minmax_step_size, search_step_size
from genie_cli.student.modules import ActivationQuantizer
from genie_cli.student.protocol import ActivationSite

CALIBRATION_IMAGES = 256
"""Images, evenly spaced over the set, whose values are looked at (the authors' code: the first 32)."""
_SAMPLES = 1 << 18
"""Values per site that the search compares; range and sign come from all values."""


@torch.no_grad()
def calibrate_sites(
    folded: fx.GraphModule,
    nodes: Sequence[fx.Node],
    source: fx.Node,
    sites: Sequence[ActivationSite],
    inputs: ActivationStore,
    config: QuantizeConfig,
    rows: int,
    workers: Workers = SOLO,
    in_pieces: Pieces | None = None,
) -> dict[str, ActivationQuantizer]:
    """Step size and sign for each site of one unit, from the unit's quantized inputs.

    Args:
        folded: the folded graph.
        nodes: the unit's nodes.
        source: the node whose value enters the unit.
        sites: the sites that the unit reads.
        inputs: that value for all images, ``[n, ...]``.
        config: `activation_range` says how the step size is found.
        rows: images looked at together.
        workers: processes that hold other images; all find the same step sizes.
        in_pieces: how to go on where memory runs out.

    Raises:
        NumbersError: a value that is not finite.
    """
    if not sites:
        return {}
    by_name = {node.name: node for node in (source, *nodes)}
    probe = extract(folded, nodes, source, [by_name[site.node] for site in sites])
    wanted = min(len(inputs), max(1, CALIBRATION_IMAGES // workers.size))
    chosen = torch.linspace(0, len(inputs) - 1, wanted).round().long()
    samples: list[list[Tensor]] = [[] for _ in sites]
    extremes: list[list[Tensor]] = [[] for _ in sites]
    in_pieces = in_pieces or Pieces()
    for positions in torch.arange(len(chosen)).split(rows):

        def look(part: Tensor, begin: int = int(positions[0])) -> list[tuple[Tensor, Tensor]]:
            outputs = probe(inputs.gather(chosen[part]).float())
            seen = []
            for tensor in outputs if isinstance(outputs, tuple) else (outputs,):
                flat = tensor.float().flatten()
                numel = flat.numel() // len(part)
                # an odd stride keeps the sample from landing on the same columns of every row
                stride = max(1, numel * len(chosen) * workers.size // _SAMPLES) | 1
                first = -numel * (int(part[0]) - begin) % stride  # a piece goes on where the last one stopped
                sample = flat[first::stride].clone()  # a view would keep all values
                seen.append((sample, torch.stack(torch.aminmax(flat))))
            return seen

        for seen in in_pieces.each(look, positions):
            for kept, ends, (sample, span) in zip(samples, extremes, seen, strict=True):
                kept.append(sample)
                ends.append(span)
    quantizers = {}
    for site, kept, ends in zip(sites, samples, extremes, strict=True):
        span = workers.all_gather_rows(torch.stack(ends))
        if not span.isfinite().all():
            raise NumbersError(
                f"Activation '{site.name}' takes values that are NaN or infinite: its step size cannot be found. Check "
                "the network's weights, and that the images are normalised for it."
            )
        values = workers.all_gather_rows(torch.cat(kept))
        signed = bool(span.amin() < 0)
        if config.activation_range == "search":
            step_size = search_step_size(values, site.bits, signed, span)
        else:
            step_size = minmax_step_size(span, site.bits, signed)
        quantizers[site.name] = ActivationQuantizer(step_size, site.bits, signed)
    return quantizers
