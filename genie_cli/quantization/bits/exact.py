"""Sensitivities by trial: each tensor is quantized alone to each width, and the outputs are compared."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from genie_cli.models.graph.outputs import as_tuple
from genie_cli.quantization.activations.passing import ImageRows
from genie_cli.quantization.bits.candidates import WIDTHS, Candidates, Watching, layer_output
from genie_cli.quantization.bits.estimate import STAGE
from genie_cli.quantization.bits.sensitivity import Costs
from genie_cli.runtime.context import RunContext
from genie_cli.runtime.progress import Advanced, StageFinished, StageStarted


@torch.no_grad()
def exact_costs(candidates: Candidates, images: ImageRows, context: RunContext) -> tuple[Costs, Costs]:
    """Costs of each weight and of each activation at each width; as `estimated_costs`, by trying each.

    Of the network what depends on the tensor is run again, no more.
    """
    workers, rows = context.workers, candidates.rows(4)
    sums = torch.zeros(len(candidates.layers) + len(candidates.sites), len(WIDTHS), dtype=torch.float64)
    starts = range(0, len(images), rows)
    context.report(StageStarted(STAGE, len(starts) * len(sums), "trials"))
    done = 0
    for first in starts:
        watching = Watching(candidates, with_gradients=False)
        wanted = as_tuple(watching.run(images[first : first + rows].to(context.device)))
        nodes = {node.name: node for node in candidates.graph.graph.nodes}
        for number, layer in enumerate(candidates.layers):
            for place, bits in enumerate(WIDTHS):
                weight = candidates.weights[layer.name][bits]
                changed = layer_output(layer, watching.arguments[layer.node.name], weight, has_bias=True)
                found = _outputs_with(watching, layer.node, changed)
                sums[number, place] += candidates.distance(found, wanted)
            done += 1
            context.report(Advanced(STAGE, done, layer.name))
        for number, site in enumerate(candidates.sites, len(candidates.layers)):
            for place, bits in enumerate(WIDTHS):
                changed = candidates.quantized(site.name, bits, watching.values[site.node])
                found = _outputs_with(watching, nodes[site.node], changed)
                sums[number, place] += candidates.distance(found, wanted)
            done += 1
            context.report(Advanced(STAGE, done, site.name))
    context.report(StageFinished(STAGE))
    num_images = int(workers.sum_(torch.tensor([len(images)], dtype=torch.int64)))
    costs = (workers.sum_(sums) / num_images).tolist()
    names = [layer.name for layer in candidates.layers] + [site.name for site in candidates.sites]
    listed = [(name, dict(zip(WIDTHS, row, strict=True))) for name, row in zip(names, costs, strict=True)]
    return dict(listed[: len(candidates.layers)]), dict(listed[len(candidates.layers) :])


def _outputs_with(watching: Watching, node: fx.Node, value: Tensor) -> tuple[Tensor, ...]:
    """The network's outputs where a node has another value; all that does not depend on it is taken as it was."""
    behind = {node}
    for other in watching.graph.nodes:
        if any(source in behind for source in other.all_input_nodes):
            behind.add(other)
    known: dict[fx.Node, Any] = {each: kept for each, kept in watching.env.items() if each not in behind}
    again = fx.Interpreter(watching.module)
    return as_tuple(again.run(initial_env={**known, node: value}))
