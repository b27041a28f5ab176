"""The distance of the quantized network's outputs from the teacher's."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import fx

from genie_cli.models.graph.cuts import data_nodes, output_nodes
from genie_cli.models.graph.outputs import as_tuple
from genie_cli.models.graph.placement import move
from genie_cli.quantization.activations.carried import Carried
from genie_cli.quantization.activations.errors import relative
from genie_cli.quantization.activations.passing import ImageRows
from genie_cli.quantization.plan import QuantizationPlan
from genie_cli.quantization.stage import Stage
from genie_cli.quantization.units.unit_graph import rows_at_once
from genie_cli.student.modules import ActivationQuantizer


@torch.no_grad()
def output_errors_of(
    stage: Stage, images: ImageRows, carried: Carried, activations: Mapping[str, ActivationQuantizer]
) -> dict[str, float]:
    """Output -> squared error of the quantized network against the unfolded teacher, over the teacher's own norm.

    Args:
        stage: what to run on, of which network.
        images: the calibration images.
        carried: what is alive behind the last unit.
        activations: site name -> quantizer.
    """
    plan, context = stage.plan, stage.context
    teacher, nodes = move(plan.teacher.graph, context.device), output_nodes(plan.folded.graph)
    quantizers = _quantizers_of_outputs(plan, nodes, activations)
    sums = torch.zeros(len(nodes), 2, dtype=torch.float64)
    rows = rows_at_once(data_nodes(teacher), context.device)
    for first in range(0, len(images), rows):
        last = min(first + rows, len(images))
        answers = as_tuple(context.splitter(teacher, images[first:last].to(context.device)))
        for own, node, store, answer in zip(sums, nodes, carried.quantized(nodes), answers, strict=True):
            value, wanted = store.read(first, last), answer.double()
            found = quantizers[node].to(value.device)(value.float()) if node in quantizers else value
            error = found.double() - wanted
            own += torch.stack([error.square().sum(), wanted.square().sum()]).cpu()
    move(teacher, torch.device("cpu"))
    errors = relative(context.workers.sum_(sums))
    return dict(zip(plan.teacher.outputs.names, errors, strict=True))


def _quantizers_of_outputs(
    plan: QuantizationPlan, outputs: Sequence[fx.Node], activations: Mapping[str, ActivationQuantizer]
) -> dict[fx.Node, ActivationQuantizer]:
    """Those of outputs that a node reads too: units carry such a tensor on as it is before its quantizer."""
    sites = {site.node: site.name for site in plan.bits.activations}
    are_read = [node for node in outputs if any(reader.op != "output" for reader in node.users)]
    return {node: copy.deepcopy(activations[sites[node.name]]) for node in are_read if node.name in sites}
