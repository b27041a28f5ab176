"""A quantized network in memory: integer weights, quantizers of activations, and what is kept about them.

Codes are stored, not weights: rounding was learned, so a code is not round(weight / scale).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from genie_cli.artifacts.details import Details
from genie_cli.artifacts.metadata import ArtifactMetadata, all_finite
from genie_cli.config import MAX_ACTIVATION_BITS, MAX_BITS, MIN_BITS, Frozen, WeightGrid

Bits = Annotated[int, Field(ge=MIN_BITS, le=MAX_BITS)]
ActivationBits = Annotated[int, Field(ge=MIN_BITS, le=MAX_ACTIVATION_BITS)]
Side = Annotated[int, Field(ge=1)]


class WeightEntry(Frozen):
    """A quantized weight, or quantized slopes, in the metadata."""

    bits: Bits
    shape: tuple[Side, ...] = Field(max_length=8)
    """Of the codes: output channels first, whatever the layout of the network's own weight."""
    axis: int | None = Field(0, ge=0)
    """The dimension of `shape` that the scales belong to; None: one scale for all, as slopes have."""
    grid: WeightGrid = "asymmetric"
    """The codes' relation to zero: asymmetric, with a zero point per channel, or symmetric, signed codes without."""


class ActivationEntry(Frozen):
    """A quantized activation in the metadata. One that stays in float has no entry."""

    bits: ActivationBits
    signed: bool


class CoverageEntry(Frozen):
    """The part of the network that is quantized."""

    parameters: float = Field(ge=0, le=1)
    multiplications: float = Field(ge=0, le=1)
    in_float: dict[str, str]
    """Tensor that stays in float -> the reason."""


class QuantizedMetadata(ArtifactMetadata):
    """The metadata of a quantized network; both files hold them, each with its own kind."""

    kind: Literal["quantized_weights", "step_sizes"] = "quantized_weights"
    teacher: str
    teacher_sha256: str
    """Hash of the weights that were quantized: the folder fits one teacher only."""
    source_sha256: str | None = None
    """Hash of the network before it was reparameterized; None: it was quantized as it is."""
    protocol: str
    preset: str
    weights: dict[str, WeightEntry]
    """Layer name -> its weight; name of slopes -> these."""
    activations: dict[str, ActivationEntry]
    """Activation site -> its quantizer; a site is named after its first reader, an output after its producer."""
    images_sha256: str | None
    """Hash of the file of calibration images, or of the pixels of real images; None: no images were used."""
    images_teacher_sha256: str | None
    """Hash of the network that the images were made for; None for real images."""
    images_code_sha256: str | None = None
    """Hash of the user's file that gave the images, where one did."""
    unfolded: tuple[str, ...] = ()
    """Batch norms that stay, in float: as affine maps, or with their four statistics as genie wrote them at first."""
    coverage: CoverageEntry | None = None
    """None in files of format 1."""
    checks: dict[str, float] = Field(default_factory=dict)
    """Rewrite -> relative distance of the rewritten network's answers from those of the network itself."""
    outputs: tuple[str, ...] = ("output",)
    """Names of the tensors that the network returns."""
    logits: str | None = None
    """The one that holds the class scores; None in files of format 1, and where no output was taken for it."""

    @property
    def network_sha256(self) -> str:
        """Hash of the network that `--model` and `--weights` name."""
        return self.source_sha256 or self.teacher_sha256


@dataclass(frozen=True, eq=False)
class QuantizedWeight:
    """An integer weight; granularity: per output channel, axis 0, or per tensor, axis None.

    Shape [O, ...] -> scale [O, 1], zero_point [O, 1]; per tensor [1, 1]. The values are checked on creation
    (ValueError).
    """

    codes: Tensor
    """uint8 [O, ...], 0..2^bits-1; on a symmetric grid int8, -2^(bits-1)..2^(bits-1)-1."""
    scale: Tensor
    """float32 [O, 1], positive."""
    zero_point: Tensor
    """int32 [O, 1]: the code of zero; on a symmetric grid 0."""
    bits: int
    grid: WeightGrid = "asymmetric"
    axis: int | None = 0

    def __post_init__(self) -> None:
        """Refuse values that would not load."""
        if not MIN_BITS <= self.bits <= MAX_BITS:
            raise ValueError(f"bits must be in {MIN_BITS}..{MAX_BITS}, got {self.bits}")
        if self.axis not in (0, None):
            raise ValueError(f"axis must be 0 or None, got {self.axis}")
        kind = torch.int8 if self.is_signed else torch.uint8
        is_scalar = self.codes.dim() < 1 and self.axis is not None
        if self.codes.dtype != kind or is_scalar or self.codes.numel() == 0:
            name = str(kind).removeprefix("torch.")
            raise ValueError(f"codes must be {name} [O, ...], got {self.codes.dtype} {list(self.codes.shape)}")
        num_channels = 1 if self.axis is None else len(self.codes)
        for name, tensor, dtype in (
            ("scale", self.scale, torch.float32),
            ("zero_point", self.zero_point, torch.int32),
        ):
            if tensor.dtype != dtype or tensor.shape != (num_channels, 1):
                raise ValueError(f"{name} must be {dtype} [{num_channels}, 1], got {tensor.dtype} {list(tensor.shape)}")
        quant_min = -(2 ** (self.bits - 1)) if self.is_signed else 0
        quant_max = quant_min + 2**self.bits - 1
        _check_range("codes", self.codes, quant_min, quant_max)
        if not all_finite(self.scale) or bool((self.scale <= 0).any()):
            raise ValueError("scale must be positive and finite")
        _check_range("zero_point", self.zero_point, *((0, 0) if self.is_signed else (quant_min, quant_max)))

    @property
    def is_signed(self) -> bool:
        """True if there are negative codes."""
        return self.grid == "symmetric"

    @property
    def entry(self) -> WeightEntry:
        """Its metadata."""
        return WeightEntry(bits=self.bits, shape=tuple(self.codes.shape), axis=self.axis, grid=self.grid)


def _check_range(name: str, values: Tensor, least: int, most: int) -> None:
    low, high = int(values.min()), int(values.max())
    if low < least or high > most:
        raise ValueError(f"{name} must be in {least}..{most}, got {low}..{high}")


@dataclass(frozen=True)
class QuantizedActivation:
    """The quantizer of one activation, per tensor; checked on creation (ValueError)."""

    step_size: float
    """Positive; rounded to float32 on creation, so that memory and file hold the same number."""
    bits: int
    signed: bool

    def __post_init__(self) -> None:
        """Round the step size to float32 and refuse values that would not load."""
        if not MIN_BITS <= self.bits <= MAX_ACTIVATION_BITS:
            raise ValueError(f"bits must be in {MIN_BITS}..{MAX_ACTIVATION_BITS}, got {self.bits}")
        step_size = torch.tensor(self.step_size, dtype=torch.float32).item()
        if not (math.isfinite(step_size) and step_size > 0):
            raise ValueError(f"step_size must be positive and finite in float32, got {self.step_size}")
        object.__setattr__(self, "step_size", step_size)


@dataclass(frozen=True, eq=False)
class QuantizedArtifact:
    """A quantized network in memory."""

    weights: Mapping[str, QuantizedWeight]
    """Layer name -> its weight; name of slopes -> these."""
    activations: Mapping[str, QuantizedActivation]
    """Activation site -> its quantizer."""
    parameters: Mapping[str, Tensor]
    """Every other parameter and buffer, float32 (counters and masks: integer or bool)."""
    metadata: QuantizedMetadata
    metrics: Mapping[str, Any]
    details: Details | None = None
    """Distributions and curves for a report; None: there are none, or they are left out."""
