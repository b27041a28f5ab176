"""Initial activation step sizes from the values that a unit's tensors take."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx

from genie_cli.config import QuantizeConfig
from genie_cli.models.graph.subgraph import extract
from genie_cli.quantization.activation_store import ActivationStore
from genie_cli.runtime.distribution import SOLO, Workers
from genie_cli.student.grid import minmax_step_size, search_step_size
from genie_cli.student.modules import ActivationQuantizer
from genie_cli.student.protocol import ActivationSite

CALIBRATION_IMAGES = 256
"""Images, evenly spaced over the set, whose values are looked at (the authors' code: the first 32)."""
_SAMPLES = 1 << 18
"""Values a site that the search compares; range and sign come from all values."""


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
    """
    if not sites:
        return {}
    by_name = {node.name: node for node in (source, *nodes)}
    probe = extract(folded, nodes, source, [by_name[site.node] for site in sites])
    wanted = min(len(inputs), max(1, CALIBRATION_IMAGES // workers.size))
    chosen = torch.linspace(0, len(inputs) - 1, wanted).round().long()
    samples: list[list[Tensor]] = [[] for _ in sites]
    extremes: list[list[Tensor]] = [[] for _ in sites]
    for indices in chosen.split(rows):
        outputs = probe(inputs.gather(indices))
        tensors = outputs if isinstance(outputs, tuple) else (outputs,)
        for kept, ends, tensor in zip(samples, extremes, tensors, strict=True):
            flat = tensor.float().flatten()
            # an odd stride keeps the sample from landing on the same columns of every row
            stride = max(1, flat.numel() * len(chosen) * workers.size // (len(indices) * _SAMPLES)) | 1
            kept.append(flat[::stride].clone())  # a view would keep all values
            ends.append(torch.stack(torch.aminmax(flat)))
    quantizers = {}
    for site, kept, ends in zip(sites, samples, extremes, strict=True):
        span = workers.all_gather_rows(torch.stack(ends))
        values = workers.all_gather_rows(torch.cat(kept))
        signed = bool(span.amin() < 0)
        if config.activation_range == "search":
            step_size = search_step_size(values, site.bits, signed, span)
        else:
            step_size = minmax_step_size(span, site.bits, signed)
        quantizers[site.name] = ActivationQuantizer(step_size, site.bits, signed)
    return quantizers
