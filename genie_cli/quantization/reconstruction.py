"""Learn one unit: all its weights, softbits and step sizes together, against the teacher's output."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from genie_cli.config import QuantizeConfig
from genie_cli.quantization.lsq import LearnedActivationQuantizer
from genie_cli.quantization.rounding import SoftRoundedWeight, largest_rate, rounding_beta, rounding_regularizer
from genie_cli.runtime.determinism import make_generator, random_mask

LOG_EVERY = 50
"""Steps between progress reports: reading the loss makes a GPU wait."""


class SoftWeightSlot(nn.Module):
    """Where the unit's graph reads a weight: filled once a step, read by the layer."""

    def __init__(self) -> None:
        """Start empty."""
        super().__init__()
        self.value: Tensor | None = None

    def forward(self) -> Tensor:
        """The weight of this step."""
        assert self.value is not None
        return self.value


@dataclass(frozen=True)
class UnitTask:
    """What it takes to learn one unit.

    Attributes:
        name: the unit's name.
        student: graph of the unit; its weights come from `slots`.
        slots: layer name -> where the graph reads its weight.
        weights: layer name -> the weight that learns.
        activations: site name -> the quantizer that learns.
        full_inputs: the teacher's input of the unit, ``[n, ...]``.
        quantized_inputs: the same from the already quantized units before, ``[n, ...]``.
        targets: the teacher's output of the unit, ``[n, C, ...]``.
    """

    name: str
    student: fx.GraphModule
    slots: Mapping[str, SoftWeightSlot]
    weights: Mapping[str, SoftRoundedWeight]
    activations: Mapping[str, LearnedActivationQuantizer]
    full_inputs: Tensor
    quantized_inputs: Tensor
    targets: Tensor


def learn_unit(
    task: UnitTask,
    config: QuantizeConfig,
    device: torch.device,
    dtype: torch.dtype,
    on_step: Callable[[int, float], None],
) -> None:
    """Minimise the reconstruction error of one unit in place (Eq. 10-11 with LSQ and QDrop).

    The loss is the squared error at the unit's output, summed over channels and averaged over the
    rest, plus the rounding regularizer. The input mixes, element by element, the teacher's input
    (with chance `drop_prob`) and the quantized one.

    Args:
        task: the unit.
        config: rates, steps, regularizer.
        device: where the step runs; batches are brought there.
        dtype: arithmetic of the convolutions.
        on_step: called with (steps done, reconstruction loss) every so many steps.
    """
    generator = make_generator(device, config.seed, "drop", task.name)
    for activation in task.activations.values():
        activation.generator = generator
    weights, activations = list(task.weights.values()), list(task.activations.values())
    optimizer = torch.optim.Adam(_parameter_groups(weights, activations, config), fused=True)
    task.student.train()
    num_images = task.targets.shape[0]
    batches = _batches(num_images, min(config.batch_size, num_images), config.seed, task.name)
    for step in range(config.num_steps):
        indices = next(batches).to(task.targets.device)
        full = task.full_inputs[indices].to(device, non_blocking=True)
        quantized = task.quantized_inputs[indices].to(device, non_blocking=True)
        target = task.targets[indices].to(device, non_blocking=True)
        if config.drop_prob > 0:
            quantized = torch.lerp(quantized, full, random_mask(quantized, config.drop_prob, generator))
        beta = rounding_beta(step, config.num_steps, config.warmup, config.beta_start, config.beta_end)
        penalty = torch.zeros((), device=device)
        for name, weight in task.weights.items():
            task.slots[name].value, softbits = weight.weight_and_softbits()
            if beta is not None:
                penalty = penalty + rounding_regularizer(softbits, beta)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            output = task.student(quantized)
        loss = (output.float() - target.float()).square().sum(1).mean()
        optimizer.zero_grad(set_to_none=True)
        (loss + config.round_weight * penalty).backward()
        decay = 0.5 * (1 + math.cos(math.pi * step / config.num_steps))
        for group in optimizer.param_groups:
            if group["decays"]:
                group["lr"] = group["start"] * decay
        optimizer.step()
        for weight in weights:
            weight.keep_step_positive()
        for activation in activations:
            activation.keep_step_positive()
        if (step + 1) % LOG_EVERY == 0 or step + 1 == config.num_steps:
            on_step(step + 1, float(loss.detach()))
    task.student.eval()
    for slot in task.slots.values():
        slot.value = None


def _parameter_groups(
    weights: Sequence[SoftRoundedWeight], activations: Sequence[LearnedActivationQuantizer], config: QuantizeConfig
) -> list[dict[str, Any]]:
    """Rates of what learns; `start` is the rate before the cosine, where there is one (`decays`)."""
    groups = [
        _group([weight.logits for weight in weights], config.rounding_lr, decays=False),
        _group([weight.offset for weight in weights], config.weight_step_lr, decays=True),
    ]
    for activation in activations:
        largest = float(largest_rate(activation.step_size.detach(), 2**activation.bits - 1))
        groups.append(_group([activation.step_size], min(config.activation_step_lr, largest), decays=True))
    return [group for group in groups if group["params"]]


def _group(parameters: list[nn.Parameter], lr: float, decays: bool) -> dict[str, Any]:
    return {"params": parameters, "lr": lr, "start": lr, "decays": decays}


def _batches(num_images: int, batch_size: int, seed: int, name: str) -> Iterator[Tensor]:
    """Full batches of indices without end: shuffled passes over all images, joined at their ends."""
    generator = make_generator(torch.device("cpu"), seed, "batches", name)
    rest = torch.empty(0, dtype=torch.int64)
    while True:
        while len(rest) < batch_size:
            rest = torch.cat([rest, torch.randperm(num_images, generator=generator)])
        yield rest[:batch_size]
        rest = rest[batch_size:]
