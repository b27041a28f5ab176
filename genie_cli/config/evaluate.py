"""The configuration of ``genie evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from genie_cli.config.base import Stage
from genie_cli.config.image_size import ImageSize
from genie_cli.config.marks import Flag


class EvaluateConfig(Stage):
    """``genie evaluate``."""

    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    quantized: Annotated[Path | None, Flag("Model", default="evaluate the teacher")] = None
    """Folder written by `genie quantize`, or a file of `genie export`, which its runtime runs."""
    folded: Annotated[bool, Flag("Model", "--folded")] = False
    """Evaluate the teacher with its batch norms folded."""
    data: Annotated[str | None, Flag("Data")] = None
    """digits, FILE.safetensors, FILE.py:FACTORY, or (imagefolder, images, cifar10, segmentation, detection):FOLDER.

    imagefolder: a folder per class. images: no labels. segmentation: images and class maps, PNG files of the same
    names. detection: images and boxes, text files of the same names in YOLO's format. A factory is code that is run,
    and returns an iterable of (image, target)."""
    metric: Annotated[str | None, Flag("Data", default="the one for the data")] = None
    """classification, segmentation, detection, fidelity, or FILE.py:FACTORY, code that is run.

    A factory returns an object with update(outputs, targets) and compute(), which gives a dict of numbers."""
    decode: Annotated[str | None, Flag("Data", default="none")] = None
    """FILE.py:FUNCTION, code that is run: turns the network's outputs into what the metric takes."""
    ignore_class: Annotated[int | None, Flag("Data", default="none")] = None
    """Class of pixels that do not count in a segmentation."""
    resize_size: Annotated[
        ImageSize | Literal["none"] | None,
        Flag("Data", default="the model's own, else input size / 0.875"),
    ] = None
    """Image files: shorter side before the centre crop in pixels, or HEIGHTxWIDTH that is just covered, or none.

    It is that of imagefolder and images."""
    class_order: Annotated[Literal["text", "natural"] | None, Flag("Data", default="text")] = None
    """Order of class folders: text (0, 1, 10, 2), or natural (0, 1, 2, 10), by the numbers in their names.

    null: text, with a warning where the two differ."""
    num_images: Annotated[int | None, Flag("Data", default="all")] = Field(None, ge=1)
    """Evaluate the first so many images."""
    batch_size: Annotated[int, Flag("Data")] = Field(128, ge=1)
    """Images at once; the result does not depend on it."""
    num_workers: Annotated[int, Flag("Data")] = Field(0, ge=0)
    """Processes that decode image files; 0 decodes in this one."""
    out: Annotated[Path | None, Flag("Output")] = None
    """Metrics file to write, as JSON."""
