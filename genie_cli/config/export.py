"""The configuration of ``genie export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from genie_cli.config.base import Frozen
from genie_cli.config.marks import Flag


class ExportConfig(Frozen):
    """``genie export``."""

    quantized: Annotated[Path | None, Flag("Model", default="export the network in float, batch norms folded")] = None
    """Folder written by `genie quantize`."""
    format: Annotated[Literal["onnx", "pt2"], Flag("Recipe")] = "onnx"
    """onnx, or pt2 (a program of torch.export)."""
    storage: Annotated[Literal["int8", "packed"], Flag("Recipe")] = "int8"
    """Stored weights: int8, which runtimes compute with, or packed (two 4-bit weights per byte, computed in float)."""
    input: Annotated[Literal["normalized", "pixels"], Flag("Recipe")] = "normalized"
    """Images that the file takes: normalized floats, or pixels, uint8 that it normalises itself."""
    opset: Annotated[int | None, Flag("Recipe", default="the lowest that can hold the network")] = Field(None, ge=18)
    """Version of ONNX's operators, 18 or more; packed weights and activations of more than 8 bits need 21."""
    images: Annotated[str | None, Flag("Images", default="noise alone")] = None
    """Images that the file is checked on: an image set, or real images as in `genie evaluate --data`."""
    check_images: Annotated[int, Flag("Images")] = Field(64, ge=0)
    """The file is run on so many of the images, at most."""
    min_agreement: Annotated[float, Flag("Images")] = Field(0.95, ge=0, le=1)
    """Share of answers that must be those of the network in genie; else nothing is written, and the exit code is 7."""
    out: Annotated[Path | None, Flag("Output", default="model.onnx or model.pt2")] = None
    """File to write, .onnx or .pt2; model.onnx.export.json is written beside it."""

    @property
    def path(self) -> Path:
        """The file to write."""
        return self.out if self.out is not None else Path(f"model.{self.format}")
