"""The configuration of ``genie sensitivity``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field

from genie_cli.config.base import Stage
from genie_cli.config.marks import NOT_DETERMINING, Flag
from genie_cli.config.quantize import WeightGrid


class SensitivityConfig(Stage):
    """``genie sensitivity``."""

    images: Annotated[str, BeforeValidator(str), Flag("Images"), NOT_DETERMINING] = "images.safetensors"
    """Image set to measure on, or real images: a form of `evaluate --data`, such as images:FOLDER.

    FILE.py:FACTORY is code that is run."""
    num_images: Annotated[int | None, Flag("Images", default="all")] = Field(None, ge=1)
    """Number of images to use: the first of a set or factory, a draw of other real ones under the seed."""
    protocol: Annotated[str, Flag("Recipe")] = "genie"
    """Which activations are quantized: genie, qdrop, ait, hardware, integer.

    Layers and sites that a protocol exempts are measured too."""
    weight_grid: Annotated[WeightGrid, Flag("Recipe")] = "asymmetric"
    """Codes of the weights: asymmetric, with a zero point per channel, or symmetric, signed and without."""
    exact: Annotated[bool, Flag("Recipe")] = False
    """Try each layer and site at each width, instead of a second-order estimate from one pass."""
    seed: Annotated[int, Flag("Run", before="device")] = Field(0, ge=0, lt=2**63)
    """Seed of every random number."""
    out: Annotated[Path, Flag("Output"), NOT_DETERMINING] = Path("sensitivity.json")
    """File to write, JSON."""
