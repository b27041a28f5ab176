"""Sensitivities of all tensors at all widths from one pass over the images.

To second order, quantizing a tensor by the change d costs ``1/2 d^T J^T H J d``: J is the Jacobian of the network's
outputs, H the Hessian of the distance of the outputs, the gradient being zero at the teacher (Gauss-Newton; Nagel et
al., AdaRound, ICML 2020, section 3). With random directions v whose second moment is H it is the mean of
``1/2 (v^T J d)^2``, per image. One backward pass from v gives ``g = J^T v`` at the output of every layer and at every
site, and ``g . d`` is then a sum of products: d is the layer's output for the weight's change alone, or the change of
the activation. So the whole quadratic form is taken, not its diagonal, and a width costs no pass of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from genie_cli.models.graph.outputs import as_tuple
from genie_cli.models.graph.tensors import get_tensor
from genie_cli.quantization.activations.passing import ImageRows
from genie_cli.quantization.bits.candidates import WIDTHS, Candidates, Watching, layer_output
from genie_cli.quantization.bits.sensitivity import Costs
from genie_cli.runtime.context import RunContext
from genie_cli.runtime.determinism import make_generator
from genie_cli.runtime.progress import Advanced, StageFinished, StageStarted

STAGE = "sensitivity"
NUM_DIRECTIONS = 8
"""Random directions per image."""


def estimated_costs(candidates: Candidates, images: ImageRows, seed: int, context: RunContext) -> tuple[Costs, Costs]:
    """Costs of each weight and of each activation at each width.

    Args:
        candidates: the quantized forms of all tensors.
        images: calibration images; with several processes, this one's share.
        seed: of the directions.
        context: what to run on.
    """
    sums = torch.zeros(len(candidates.layers) + len(candidates.sites), len(WIDTHS), dtype=torch.float64)
    rows, workers = candidates.rows(NUM_DIRECTIONS + 2), context.workers
    context.report(StageStarted(STAGE, len(images), "images"))
    for first in range(0, len(images), rows):
        generator = make_generator(torch.device("cpu"), seed, "sensitivity", workers.rank, first)
        sums += _of_batch(candidates, images[first : first + rows].to(context.device), generator)
        context.report(Advanced(STAGE, min(first + rows, len(images))))
    context.report(StageFinished(STAGE))
    num_images = int(workers.sum_(torch.tensor([len(images)], dtype=torch.int64)))
    costs = (workers.sum_(sums) / (2 * num_images)).tolist()
    names = [layer.name for layer in candidates.layers] + [site.name for site in candidates.sites]
    listed = [(name, dict(zip(WIDTHS, row, strict=True))) for name, row in zip(names, costs, strict=True)]
    return dict(listed[: len(candidates.layers)]), dict(listed[len(candidates.layers) :])


def _of_batch(candidates: Candidates, images: Tensor, generator: torch.Generator) -> Tensor:
    """``(v^T J d)^2`` summed over images and averaged over directions, ``[layers + sites, widths]``."""
    with torch.enable_grad():
        watching = Watching(candidates, with_gradients=True)
        outputs = as_tuple(watching.run(images))
    distance = candidates.distance
    ends = [outputs[place] for place in distance.places]
    watched = list(watching.values.values())
    drawn: list[tuple[Tensor, ...]] = []
    for _ in range(NUM_DIRECTIONS):
        directions = distance.half_gradients(outputs, generator)
        used = [(end, direction) for end, direction in zip(ends, directions, strict=True) if end.requires_grad]
        drawn.append(
            torch.autograd.grad(
                [end for end, _ in used],
                watched,
                [direction for _, direction in used],
                retain_graph=True,
                allow_unused=True,
                materialize_grads=True,
            )
        )
    gradients = {
        name: torch.stack([each[place].flatten(1) for each in drawn]) for place, name in enumerate(watching.values)
    }
    with torch.no_grad():
        found = []
        for layer in candidates.layers:
            original, arguments = get_tensor(candidates.graph, layer.weight_key), watching.arguments[layer.node.name]
            for bits in WIDTHS:
                change = candidates.weights[layer.name][bits] - original
                moved = layer_output(layer, arguments, change, has_bias=False)
                found.append(_mean_square(gradients[layer.node.name], moved))
        for site in candidates.sites:
            values = watching.values[site.node].detach()
            for bits in WIDTHS:
                moved = candidates.quantized(site.name, bits, values) - values
                found.append(_mean_square(gradients[site.node], moved))
    return torch.stack(found).view(-1, len(WIDTHS)).cpu()


def _mean_square(gradients: Tensor, change: Tensor) -> Tensor:
    """``(g . d)^2`` summed over images and averaged over directions.

    Args:
        gradients: ``[directions, B, n]``.
        change: ``[B, ...]`` of n elements each.
    """
    products = torch.einsum("rbn,bn->rb", gradients, change.flatten(1))
    return products.double().square().sum(1).mean()
