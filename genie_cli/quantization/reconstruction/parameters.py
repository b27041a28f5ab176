"""All that a unit learns as flat tensors, and the weights, step sizes and biases that they stand for."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from genie_cli.config import QuantizeConfig
from genie_cli.quantization.learned.activation import LearnedActivationQuantizer
from genie_cli.quantization.learned.bias import LearnedBias
from genie_cli.quantization.learned.roundings import find_rounding
from genie_cli.quantization.learned.soft_rounding import (
    STEP_SIZE_FLOOR,
    largest_rate,
    rectified_sigmoid,
    rounding_penalty,
)
from genie_cli.quantization.learned.weight import LearnedWeight


class Made(NamedTuple):
    """The tensors that a unit runs on in one step.

    Attributes:
        weights: one per layer.
        step_sizes: one per site, ``[1]``.
        penalty: the rounding regularizer, where it was asked for.
        biases: one per bias that learns, ``[O]``.
    """

    weights: Sequence[Tensor]
    step_sizes: Sequence[Tensor]
    penalty: Tensor | None
    biases: Sequence[Tensor]


class UnitParameters:
    """The learned tensors of one unit: all elements in one tensor, all offsets of step sizes in another, and biases.

    A step then costs one node of the graph, one optimizer of two tensors and one projection, however many
    layers the unit has. Step sizes of weights and of activations share a rate: what sets them apart is
    how far an offset of 1 moves them.

    Attributes:
        elements: softbits' logits or shifts of all layers, ``[E]``.
        offsets: of the channels' step sizes, layer by layer, then of the sites', ``[S]``.
        shifts: of the biases that learn, ``[B]``; empty where none does.
    """

    def __init__(
        self,
        weights: Mapping[str, LearnedWeight],
        activations: Mapping[str, LearnedActivationQuantizer],
        config: QuantizeConfig,
        device: torch.device,
        biases: Mapping[str, LearnedBias] | None = None,
        rate_share: float = 1.0,
    ) -> None:
        """Start where the weights, quantizers and biases are; see `UnitTask`."""
        self._rate_share = rate_share
        self._biases = [*(biases or {}).values()]
        self._weights, self._activations = dict(weights), dict(activations)
        self._layers = list(weights.values())
        self.has_softbits = any(layer.has_softbits for layer in self._layers)
        rounding = find_rounding(config.rounding)
        self._element_rate = config.own_rounding_lr if rounding.learns_elements else 0.0
        self._elements_decay = rounding.decays
        weight_rate = config.weight_step_lr if rounding.learns_step_sizes else 0.0
        self._step_rate = weight_rate or config.own_activation_step_lr
        self._bias_rate = config.bias_lr
        self._device = device
        parts = [layer.elements.detach().flatten() for layer in self._layers]
        self.elements = nn.Parameter(torch.cat(parts), requires_grad=bool(self._element_rate))
        starts = [layer.start.flatten() for layer in self._layers]
        offset_scales = [layer.offset_scale.flatten() * bool(weight_rate) for layer in self._layers]
        for activation in activations.values():
            start = activation.step_size.detach()
            rate = largest_rate(start, activation.format).clamp(max=config.own_activation_step_lr)
            starts.append(start)
            offset_scales.append(rate / self._step_rate if self._step_rate else torch.zeros_like(rate))
        self._starts, self._offset_scales = torch.cat(starts), torch.cat(offset_scales)
        self._lowest = torch.where(
            self._offset_scales != 0, (STEP_SIZE_FLOOR - 1) * self._starts / self._offset_scales, 0
        )
        offsets = [layer.offset.flatten() for layer in self._layers]
        offsets.append(self._starts.new_zeros(len(activations)))
        self.offsets = nn.Parameter(torch.cat(offsets), requires_grad=bool(self._offset_scales.any()))
        self._bias_sizes = [len(bias.start) for bias in self._biases]
        self._bias_starts = torch.cat([torch.zeros(0, device=device), *(bias.start for bias in self._biases)])
        self._bias_units = torch.cat(
            [torch.zeros(0, device=device), *(b.unit.expand_as(b.start) for b in self._biases)]
        )
        self.shifts = nn.Parameter(torch.zeros_like(self._bias_starts), requires_grad=bool(self._biases))
        self._element_ends = [0, *itertools.accumulate(layer.elements.numel() for layer in self._layers)]
        self._channel_ends = [0, *itertools.accumulate(layer.start.numel() for layer in self._layers)]

    def groups(self) -> list[dict[str, Any]]:
        """Parameter groups for an optimizer; `start` is the rate before the cosine, where there is one (`decays`)."""
        share = self._rate_share
        rates = (
            (self._element_rate * share, self._elements_decay),
            (self._step_rate * share, True),
            (self._bias_rate * share, True),
        )
        return [
            {"params": [tensor], "lr": torch.tensor(lr, device=self._device), "start": lr, "decays": decays}
            for tensor, (lr, decays) in zip(self.tensors(), rates, strict=False)  # of the shifts, where there are any
            if tensor.requires_grad
        ]

    def learned(self) -> list[nn.Parameter]:
        """Those of `tensors` that learn."""
        return [tensor for tensor in self.tensors() if tensor.requires_grad]

    def tensors(self) -> tuple[nn.Parameter, ...]:
        """Elements, offsets, and shifts where there are biases that learn."""
        return (self.elements, self.offsets, self.shifts) if self._biases else (self.elements, self.offsets)

    def make(self, dtype: torch.dtype, beta: Tensor | None) -> Made:
        """Weights in `dtype`, step sizes in float32, and for an exponent the rounding regularizer."""
        made = _Make.apply(self.elements, self.offsets, self, dtype, beta if self.has_softbits else None)
        num_weights, num_sites = len(self._layers), len(self._activations)
        penalty = made[-1] if len(made) > num_weights + num_sites else None
        return Made(made[:num_weights], made[num_weights : num_weights + num_sites], penalty, self._made_biases())

    def _made_biases(self) -> Sequence[Tensor]:
        """The biases that learn."""
        return (self._bias_starts + self._bias_units * self.shifts).split(self._bias_sizes) if self._biases else ()

    @torch.no_grad()
    def keep_step_sizes_positive(self) -> None:
        """Project the step sizes back above their floors; called after each optimizer step."""
        torch.maximum(self.offsets, self._lowest, out=self.offsets.data)

    @torch.no_grad()
    def write_back(self) -> None:
        """Leave what was learned in the weights and quantizers."""
        for layer, elements, offset in zip(
            self._layers, self._split(self.elements), self._channels(self.offsets), strict=True
        ):
            layer.elements.copy_(elements)
            layer.offset.copy_(offset)
        for activation, step_size in zip(
            self._activations.values(), self._site_step_sizes(self._step_sizes()), strict=True
        ):
            activation.step_size = step_size
        for bias, value in zip(self._biases, self._made_biases(), strict=True):
            bias.value = value

    def not_finite(self) -> list[str]:
        """Names, in words, of the tensors that hold NaN or infinity."""
        if all(bool(tensor.isfinite().all()) for tensor in self.tensors()):
            return []
        channels = zip(self._weights, self._channels(self.offsets), strict=True)
        sites = zip(self._activations, self._site_step_sizes(self.offsets), strict=True)
        elements = zip(self._weights, self._split(self.elements), strict=True)
        learned = {
            **{f"step sizes of '{name}'": values for name, values in channels},
            **{f"step size of '{name}'": values for name, values in sites},
            **{f"roundings of '{name}'": values for name, values in elements},
        }
        learned.update({f"bias {i}": values for i, values in enumerate(self._made_biases())})
        return [name for name, values in learned.items() if not values.isfinite().all()]

    def _step_sizes(self) -> Tensor:
        return self._starts + self._offset_scales * self.offsets.detach()

    def _split(self, flat: Tensor) -> list[Tensor]:
        """A flat tensor of elements as one view per layer, in the layer's shape."""
        ends = itertools.pairwise(self._element_ends)
        return [flat[a:b].view(layer.elements.shape) for layer, (a, b) in zip(self._layers, ends, strict=True)]

    def _channels(self, flat: Tensor) -> list[Tensor]:
        """The same for the channels' step sizes, ``[O, 1, ...]``."""
        ends = itertools.pairwise(self._channel_ends)
        return [flat[a:b].view(layer.start.shape) for layer, (a, b) in zip(self._layers, ends, strict=True)]

    def _site_step_sizes(self, flat: Tensor) -> tuple[Tensor, ...]:
        return flat[self._channel_ends[-1] :].view(-1, 1).unbind()


class _Make(torch.autograd.Function):
    """`UnitParameters.make` with the gradients that `WeightParts` and the regularizer name."""

    @staticmethod
    def forward(
        ctx: Any, elements: Tensor, offsets: Tensor, owner: UnitParameters, dtype: torch.dtype, beta: Tensor | None
    ) -> tuple[Tensor, ...]:
        values, slope, penalty = elements, None, []
        if owner.has_softbits:
            values, slope = rectified_sigmoid(elements)
        saved: list[Tensor] = [] if slope is None else [slope]
        if beta is not None:
            value, penalty_slope = rounding_penalty(values, beta)
            penalty.append(value)
            saved.append(penalty_slope)
        step_sizes = owner._step_sizes()
        weights = []
        layers = zip(owner._layers, owner._split(values), owner._channels(step_sizes), strict=True)
        for layer, own, step_size in layers:
            parts = layer.parts(own, step_size)
            weights.append(parts.weight.to(dtype))
            saved += [parts.slope, parts.step_slope]
        ctx.owner = owner
        ctx.save_for_backward(*saved)
        # clones: several outputs that are views of one tensor would be refused
        return *weights, *(step_size.clone() for step_size in owner._site_step_sizes(step_sizes)), *penalty

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        owner: UnitParameters = ctx.owner
        saved = list(ctx.saved_tensors)
        slope = saved.pop(0) if owner.has_softbits else None
        num_layers = len(owner._layers)
        penalty_slope = saved.pop(0) if len(saved) > 2 * num_layers else None
        grad_elements, grad_offsets = torch.empty_like(owner.elements), torch.empty_like(owner.offsets)
        places = zip(owner._split(grad_elements), owner._channels(grad_offsets), strict=True)
        for i, (own, channels) in enumerate(places):
            grad = grads[i].float()
            torch.mul(grad, saved[2 * i], out=own)
            torch.sum(grad * saved[2 * i + 1], tuple(range(1, grad.dim())), keepdim=True, out=channels)
        for place, grad in zip(owner._site_step_sizes(grad_offsets), grads[num_layers:], strict=False):
            place.copy_(grad)
        if penalty_slope is not None:
            grad_elements.addcmul_(penalty_slope, grads[-1])
        if slope is not None:
            grad_elements.mul_(slope)
        return grad_elements, grad_offsets.mul_(owner._offset_scales), None, None, None
