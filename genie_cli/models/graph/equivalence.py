"""Checks that a rewritten network computes what the user's own module computes.

Two images are passed through both, in float64 where both can run in it. A rewrite that does not hold is undone or
refused, never kept in silence.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from genie_cli.config import InputSpec
from genie_cli.errors import InputError
from genie_cli.models.evaluation_mode import EvaluationMode
from genie_cli.models.graph.outputs import named_outputs, structured

BOUND = 1e-4
"""Relative distance that a rewrite may add: weights are stored in float32."""
_OF_ITS_OWN = 10.0
"""The bound is at least so many times what the module itself changes under another batch size."""
_CALL_BOUND, _BATCH_BOUND = 1e-5, 1e-2
"""Relative distance between two calls, and between batch sizes, from which a network does not agree with itself."""


@dataclass(frozen=True)
class Reference:
    """The answers of a module, to compare with.

    Attributes:
        images: ``[2, C, H, W]``, pixels in their range, normalised.
        outputs: the tensors that it returns for them, as the graph has them (`outputs.py`).
        dtype: arithmetic of the answers.
        bound: relative distance up to which a rewrite holds.
        flat: the tensors of what is returned, in the normal form, see `OutputTree.flat`.
    """

    images: Tensor
    outputs: tuple[Tensor, ...]
    dtype: torch.dtype
    bound: float
    flat: Callable[[Any], tuple[Tensor, ...]]

    def distance(self, network: fx.GraphModule) -> float:
        """The distance of a network's answers: largest difference over largest magnitude, infinite for other NaNs.

        In float64 where this and the network can run in it, else in float32.
        """
        whole = structured(network)
        for dtype in dict.fromkeys((self.dtype, torch.float32)):
            try:
                found = _answers(whole, self.images, dtype, self.flat)
            except Exception:  # a constant of another type, an operation without a float64 kernel
                if dtype == torch.float32:
                    raise
                continue
            return relative_distance(found, self.outputs)
        raise AssertionError("float32 is always tried")

    def holds(self, distance: float) -> bool:
        """True if a rewrite at this distance may stay."""
        return distance <= self.bound


def make_reference(
    module: nn.Module, spec: InputSpec, flat: Callable[[Any], tuple[Tensor, ...]]
) -> tuple[Reference, list[str]]:
    """The answers of a module in evaluation mode, and notes for the user.

    Args:
        module: the user's own.
        spec: the images it takes.
        flat: the tensors of what it returns, in the normal form, see `OutputTree.flat`.

    Raises:
        InputError: the module does not agree with itself, from call to call or from one batch size to another.
    """
    images = probe_images(spec)
    mode = EvaluationMode()
    with mode:
        try:
            dtype, outputs = torch.float64, _answers(module, images, torch.float64, flat)
        except Exception:  # whatever a user's module raises in float64, float32 is what it was written in
            dtype, outputs = torch.float32, _answers(module, images, torch.float32, flat)
        again = _answers(module, images, dtype, flat)
        alone = [_answers(module, image.unsqueeze(0), dtype, flat) for image in images]
    if relative_distance(again, outputs) > _CALL_BOUND:
        raise InputError(
            "The network answers the same images otherwise from call to call, so that it draws at random in evaluation "
            "mode: take that out of forward(), or make it depend on self.training."
        )
    joined = _joined(alone, outputs)
    own = relative_distance(joined, outputs)
    if own > _BATCH_BOUND:
        raise InputError(
            f"The network's answer to an image depends on the other images of its batch{_batch_statistics(module)}: "
            "its accuracy would depend on --batch-size. Use layers with running statistics, or another normalisation."
        )
    notes = []
    if mode.found:
        notes.append(
            f"the network leaves {', '.join(sorted(mode.found))} on in evaluation mode: taken out, as evaluation means."
        )
    return Reference(images, outputs, dtype, max(BOUND, _OF_ITS_OWN * own), flat), notes


def distance_between(found: nn.Module, wanted: nn.Module, spec: InputSpec) -> float:
    """The distance of one module's answers from another's, both in evaluation mode and in any one structure.

    In float64 where both can run in it, else in float32.

    Raises:
        InputError: they return no tensor.
    """
    images = probe_images(spec)
    for dtype in (torch.float64, torch.float32):
        try:
            with EvaluationMode():
                own, others = (_answers(each, images, dtype, _tensors) for each in (found, wanted))
        except Exception:  # an operation without a float64 kernel, or whatever a user's module raises
            if dtype == torch.float32:
                raise
            continue
        if not others:
            raise InputError("The network returns no tensor: nothing can be compared.")
        return relative_distance(own, others)
    raise AssertionError("float32 is always tried")


def _tensors(returned: Any) -> tuple[Tensor, ...]:
    return tuple(value for _, value in named_outputs(returned))


def probe_images(spec: InputSpec) -> Tensor:
    """Two fixed images ``[2, C, H, W]`` of pixels in 0..1, normalised as the network takes them, float32."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(2, *spec.shape, generator=generator)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (spec.mean, spec.std))
    return (pixels - mean) / std


def relative_distance(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """The largest difference over the largest magnitude of all outputs; infinite where NaN or infinity is elsewhere.

    Of outputs that are no floats, such as decided classes, it is the share of values that differ.
    """
    largest = 0.0
    if len(found) != len(wanted):
        return float("inf")
    for one, other in zip(found, wanted, strict=True):
        if one.shape != other.shape:
            return float("inf")
        if not other.is_floating_point() and not other.is_complex():
            largest = max(largest, float((one != other).double().mean()) if other.numel() else 0.0)
            continue
        one, other = one.double(), other.double()
        finite = other.isfinite()
        if bool((one.isfinite() != finite).any()):
            return float("inf")
        if not bool(finite.any()):
            continue
        difference = float((one - other)[finite].abs().max())
        magnitude = float(other[finite].abs().max())
        largest = max(largest, difference / max(magnitude, 1e-12))
    return largest


@torch.no_grad()
def _answers(
    network: nn.Module, images: Tensor, dtype: torch.dtype, flat: Callable[[Any], tuple[Tensor, ...]]
) -> tuple[Tensor, ...]:
    """The tensors that a copy of the network in `dtype` returns, on the CPU."""
    own = network if dtype == torch.float32 else copy.deepcopy(network).double()  # which leaves complex ones complex
    return tuple(output.detach() for output in flat(own(images.to(dtype))))


def _joined(alone: Sequence[tuple[Tensor, ...]], outputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Answers to single images as those to a batch; nothing where they have other sizes.

    A ``squeeze`` in a network takes the batch of a single image away too: such answers have the values of one row.
    """
    rows = [output.shape[1:] for output in outputs]
    if any([one.numel() for one in answers] != [row.numel() for row in rows] for answers in alone):
        return ()
    parts = zip(*alone, strict=True)
    return tuple(torch.stack([one.reshape(row) for one in part]) for row, part in zip(rows, parts, strict=True))


def _batch_statistics(module: nn.Module) -> str:
    """The batch norms that have no running statistics, in words."""
    names = [name for name, part in module.named_modules() if getattr(part, "track_running_stats", True) is False]
    return f" (batch statistics in {', '.join(names[:3])})" if names else ""
