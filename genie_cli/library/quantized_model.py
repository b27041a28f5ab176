"""A quantized network in memory: it runs, is saved and is exported."""

from __future__ import annotations

import copy
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import fx, nn

from genie_cli.artifacts.metadata import OWN_FILES
from genie_cli.artifacts.quantized import QuantizedArtifact
from genie_cli.artifacts.quantized_folder import save_quantized
from genie_cli.config import ExportConfig, InputSpec, stage_config
from genie_cli.deployment.export import check_options
from genie_cli.library.images import Images
from genie_cli.library.options import split_options
from genie_cli.library.samples import open_given
from genie_cli.models.graph.outputs import structured
from genie_cli.models.teacher import Teacher
from genie_cli.runtime.atomic import check_writable
from genie_cli.runtime.modes import modes_of_commands
from genie_cli.stages.export import check_pixels, exported, in_integers, save_exported
from genie_cli.student.load import computing, keeping_weights, load_student


class QuantizedModel:
    """The result of `genie_cli.quantize`.

    Attributes:
        teacher: the network that was quantized, captured.
        artifact: integers, step sizes and all other tensors, with where they come from.
    """

    def __init__(self, teacher: Teacher, artifact: QuantizedArtifact) -> None:
        """Take a teacher and what became of it."""
        self.teacher, self.artifact = teacher, artifact

    @cached_property
    @modes_of_commands()
    def module(self) -> nn.Module:
        """The quantized network, as `genie_cli.load` returns it, on the CPU in evaluation mode.

        It takes normalised images ``[B, C, H, W]`` and returns what the network returns. It is the caller's own: what
        is done to it changes neither what is saved nor what is exported.
        """
        return keeping_weights(computing(self._network(), self.artifact), True)

    @property
    def report(self) -> dict[str, Any]:
        """The figures of the quantization, as ``metrics.json`` holds them.

        ``units`` has the relative error of each reconstruction unit, ``output_errors`` that of each output, and
        ``coverage`` the part of the network that is quantized.
        """
        return copy.deepcopy(dict(self.artifact.metrics))

    @property
    def input(self) -> InputSpec:
        """The images that the network takes: size, channels, mean and std."""
        return self.teacher.input

    @modes_of_commands()
    def save(self, folder: str | Path) -> None:
        """Write the folder that ``genie quantize`` writes, wholly or not at all; `genie_cli.load` reads it.

        Raises:
            InputError: the folder cannot be written, or holds other files.
        """
        check_writable(Path(folder), OWN_FILES)
        save_quantized(Path(folder), self.artifact)

    @modes_of_commands()
    def export(self, path: str | Path, images: Images | None = None, **options: Any) -> dict[str, Any]:
        """Write an ONNX or .pt2 file, which is run and compared first, as ``genie export`` does.

        >>> model.export("model.onnx", images, input="pixels")  # doctest: +SKIP

        Args:
            path: the file, .onnx or .pt2; its report is written beside it, as ``model.onnx.export.json``.
            images: images that it is checked on besides noise, as in `genie_cli.quantize`.
            **options: fields of `ExportConfig`: ``storage``, ``input``, ``opset``, ``check_images``,
                ``min_agreement``. The format is that of the file's name.

        Returns:
            The report: agreement, differences, sizes, integer layers.

        Raises:
            UsageError: an unknown option, or one that the format does not have, or a package that is not installed.
            InputError: the network cannot be said in the format, or the file cannot be written.
            AgreementError: the file answers otherwise than the network in genie; nothing is written.
        """
        without = ("quantized", "images", "format")
        _, of_export = split_options(options, ExportConfig, (), without)
        path = Path(path)
        format = {"format": "pt2"} if path.suffix == ".pt2" else {}
        # the folder stands for this network: where one is named, the export is of integers
        fixed = {**format, "out": path, "quantized": Path("quantized")}
        config = stage_config(ExportConfig, {}, {**of_export, **fixed}, where="export")
        check_options(config)
        check_writable(path)
        pixels = None
        if images is not None and config.check_images:
            pixels, _ = check_pixels(lambda reading: open_given(images, reading, self.input), config.check_images)
        found = exported(in_integers(self._network(), self.artifact), config, pixels)
        save_exported(found, config)
        return found.report

    def _network(self) -> fx.GraphModule:
        return copy.deepcopy(structured(load_student(self.teacher, self.artifact)))
