"""The check of an exported file: it is run, and its answers are compared with those of the network in genie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from genie_cli.config import InputSpec
from genie_cli.deployment.program import InputForm
from genie_cli.deployment.runtimes import Runtime
from genie_cli.errors import InputError
from genie_cli.models.graph.outputs import named_outputs

NUM_NOISE = 8
"""Images of noise, which every file is run on."""
MOST_FLIPS = 100
"""More images with another class are counted in the agreement, not listed."""
_BATCH = 32
_CLOSE = 0.05
"""Two values agree that differ by less than this share of the output's largest magnitude."""
_CPU_INFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Flip:
    """An image that the file puts into another class.

    Attributes:
        image: its number.
        margin: in genie, the largest score minus the second largest one.
    """

    image: int
    margin: float


@dataclass(frozen=True)
class OutputDifference:
    """The difference of one output from that of the network in genie.

    Attributes:
        largest: difference.
        mean: difference.
        magnitude: largest magnitude in genie, which the differences are to be seen beside.
        agreement: of class scores the share of images with the same class; else of values that are close, and of
            integers of values that are equal.
        flips: of class scores the images with another class, the widest margins first, at most `MOST_FLIPS`.
    """

    largest: float
    mean: float
    magnitude: float
    agreement: float
    flips: tuple[Flip, ...] = ()


def noise_pixels(spec: InputSpec) -> Tensor:
    """Pixels of noise, uint8 ``[NUM_NOISE, C, H, W]``, the same at every call."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (NUM_NOISE, *spec.shape), generator=generator, dtype=torch.uint8)


@torch.no_grad()
def compare(
    runtime: Runtime, network: fx.GraphModule, pixels: Tensor, spec: InputSpec, form: InputForm, logits: str | None
) -> dict[str, OutputDifference]:
    """Output -> its difference, over all images.

    Args:
        runtime: the file, loaded.
        network: in genie, from normalised images.
        pixels: uint8 ``[n, C, H, W]``.
        spec: the network's input.
        form: what the file takes.
        logits: the output that holds class scores.

    Raises:
        InputError: the runtime fails, or returns other outputs.
    """
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (spec.mean, spec.std))
    found: dict[str, list[np.ndarray[Any, Any]]] = {}
    wanted: dict[str, list[np.ndarray[Any, Any]]] = {}
    for part in pixels.split(_BATCH):
        images = (part.to(torch.float32) / 255 - mean) / std
        own = named_outputs(network(images))
        try:
            others = runtime.run((part if form == "pixels" else images).numpy())
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"{runtime.name} {runtime.version} cannot run the file: {reason}") from error
        for (name, value), other in zip(own, others, strict=True):
            if tuple(value.shape) != other.shape:
                raise InputError(
                    f"{runtime.name} returns '{name}' of shape {other.shape} for {len(part)} images, and genie of "
                    f"{tuple(value.shape)}: the network's shapes depend on the number of images."
                )
            wanted.setdefault(name, []).append(value.numpy())
            found.setdefault(name, []).append(other)
    return {name: _difference(found[name], wanted[name], name == logits) for name in wanted}


def _difference(
    found: Sequence[np.ndarray[Any, Any]], wanted: Sequence[np.ndarray[Any, Any]], is_scores: bool
) -> OutputDifference:
    flips: tuple[Flip, ...] = ()
    own = [part.astype(np.float64) for part in found]
    other = [part.astype(np.float64) for part in wanted]
    distances = np.concatenate([np.abs(a - b).ravel() for a, b in zip(own, other, strict=True)])
    magnitude = max(float(np.abs(part).max(initial=0)) for part in other)
    if is_scores and other[0].ndim == 2 and other[0].shape[1] > 1:
        same = np.concatenate([a.argmax(1) == b.argmax(1) for a, b in zip(own, other, strict=True)])
        flips = _flips(np.concatenate(other), same)
    else:
        is_whole = all(part.dtype.kind in "iub" for part in wanted)
        same = distances <= (0 if is_whole else _CLOSE * magnitude)
    if not distances.size:
        return OutputDifference(0.0, 0.0, 0.0, 1.0)
    is_finite = bool(np.isfinite(distances).all())
    return OutputDifference(
        float(distances.max()), float(distances.mean()), magnitude, float(same.mean()) if is_finite else 0.0, flips
    )


def _flips(scores: np.ndarray[Any, Any], same: np.ndarray[Any, Any]) -> tuple[Flip, ...]:
    """The images that are not the `same`, bools ``[n]``, with their scores ``[n, classes]`` in genie."""
    second, first = np.partition(scores, -2, axis=1)[:, -2:].T
    found = [Flip(int(image), float(first[image] - second[image])) for image in np.flatnonzero(~same)]
    return tuple(sorted(found, key=lambda flip: -flip.margin)[:MOST_FLIPS])


def worst_output(differences: Mapping[str, OutputDifference], logits: str | None) -> str:
    """The output of least agreement; of several the class scores, if they are among them, else the first."""
    return min(differences, key=lambda name: (differences[name].agreement, name != logits))


def has_vnni() -> bool | None:
    """True if this processor adds products of 8-bit integers without saturation; None where that is not known."""
    try:
        text = _CPU_INFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    flags = next((line for line in text.splitlines() if line.startswith("flags")), None)
    return None if flags is None else any("vnni" in flag for flag in flags.split())
