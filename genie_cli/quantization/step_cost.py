"""The cost of a step of one unit beside those of the others: what tells how long the rest of them takes."""

from __future__ import annotations

import math

from genie_cli.models.graph.layers import weight_layers
from genie_cli.models.graph.tensors import get_tensor, numel_per_image
from genie_cli.quantization.plan import QuantizationPlan

_PER_ACTIVATION = 60
"""Multiplications in whose time a CPU passes over one activation: quantizers, sums and their gradients."""
_PER_WEIGHT = 500
"""The same for one weight, once per step: softbits, regularizer and Adam."""


def step_cost_shares(plan: QuantizationPlan) -> list[float]:
    """Each unit's share of the cost of all steps, front to back, and that of fine-tuning, if any; they add up to 1.

    A step multiplies for each image of the batch, passes over all activations of the unit, and over its weights.
    """
    graph, batch_size = plan.folded.graph, plan.config.batch_size
    layers = {layer.name: layer for layer in weight_layers(graph)}
    costs = []
    tuned = [(plan.finetuned, plan.config.finetune_steps / plan.config.num_steps)] if plan.finetuned is not None else []
    for unit, stages in [*zip(plan.units, plan.stages, strict=True), *tuned]:
        activations = sum(map(numel_per_image, (*unit.sources, *unit.nodes)))
        multiplications = weights = 0
        for name in unit.layers:
            weight = get_tensor(graph, layers[name].weight_key)
            weights += weight.numel()
            multiplications += numel_per_image(layers[name].node) * math.prod(weight.shape[1:])
        costs.append(stages * (batch_size * (multiplications + _PER_ACTIVATION * activations) + _PER_WEIGHT * weights))
    total = sum(costs)
    return [cost / total for cost in costs]
