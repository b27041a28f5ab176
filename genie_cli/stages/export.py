"""Export: a network and what is said of it, as a checked file of another runtime."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from genie_cli.artifacts.export_report import report_path
from genie_cli.artifacts.metadata import provenance
from genie_cli.artifacts.metrics import encode_metrics
from genie_cli.artifacts.quantized import QuantizedArtifact
from genie_cli.config import EvaluateConfig, InputSpec
from genie_cli.config.export import ExportConfig
from genie_cli.data.samples import Samples
from genie_cli.deployment.export import Exported, export
from genie_cli.deployment.metadata import ExportMetadata
from genie_cli.models.graph.folding import fold_batch_norms
from genie_cli.models.graph.outputs import structured
from genie_cli.models.teacher import Teacher
from genie_cli.runtime.atomic import atomic_write_files
from genie_cli.student.load import computing


@dataclass(frozen=True)
class Exportable:
    """A network that can be exported.

    Attributes:
        network: from normalised images to what it returns; on the CPU, in evaluation mode; in floats.
        reference: the network whose answers the file has to give.
        facts: what its file says of it, as fields of `ExportMetadata`.
    """

    network: fx.GraphModule
    reference: fx.GraphModule
    facts: dict[str, Any]

    @property
    def input(self) -> InputSpec:
        """The images that it takes."""
        spec: InputSpec = self.facts["input"]
        return spec


def in_float(teacher: Teacher) -> Exportable:
    """A network in float, its batch norms folded."""
    facts = {
        "teacher": teacher.name,
        "teacher_sha256": teacher.sha256,
        "logits": None if teacher.logits is None else teacher.logits.name,
        "input": teacher.input,
    }
    network = structured(fold_batch_norms(teacher.graph).graph.eval())
    return Exportable(network, network, facts)


def in_integers(network: fx.GraphModule, artifact: QuantizedArtifact) -> Exportable:
    """A quantized network as `load_simulated` returns it, and the artifact that it was loaded from."""
    made = artifact.metadata
    facts = {key: getattr(made, key) for key in ("teacher", "teacher_sha256", "protocol", "preset", "logits")}
    facts |= {"input": made.input, "content_sha256": made.content_sha256}
    facts["weight_bits"] = {name: weight.bits for name, weight in artifact.weights.items()}
    facts["activation_bits"] = {name: step.bits for name, step in artifact.activations.items()}
    return Exportable(network, computing(copy.deepcopy(network), artifact), facts)


def exported(exportable: Exportable, config: ExportConfig, pixels: Tensor | None) -> Exported:
    """Make the file and run it; nothing is written.

    Args:
        exportable: the network.
        config: format, storage and the bound of the check.
        pixels: images to check it on, uint8 ``[n, C, H, W]``; None: noise alone.

    Raises:
        UsageError: a package is not installed, or an opset that cannot hold the network.
        InputError: the network cannot be said in the format.
        AgreementError: the file answers otherwise than the network in genie.
    """
    versions = provenance({}, None, exportable.input, None, None)
    metadata = ExportMetadata(
        format=config.format,
        storage="float",
        input_form=config.input,
        outputs=(),
        tool_version=versions["tool_version"],
        torch_version=versions["torch_version"],
        **exportable.facts,
    )
    return export(exportable.network, exportable.reference, metadata, config, pixels)


def check_pixels(open_data: Callable[[EvaluateConfig], Samples], num_images: int) -> tuple[Tensor, Samples]:
    """The images of the check, uint8 ``[n, C, H, W]``, and what they come from.

    Args:
        open_data: opens them, for so many images as the configuration says.
        num_images: so many at most.
    """
    samples = open_data(EvaluateConfig())
    if samples.num_images is None or samples.num_images > num_images:
        samples = open_data(EvaluateConfig(num_images=num_images))
    return samples.calibration_pixels(None, 0), samples


def save_exported(found: Exported, config: ExportConfig) -> None:
    """Write the file and its report.

    Raises:
        InputError: they cannot be written.
    """
    atomic_write_files({config.path: found.content, report_path(config.path): encode_metrics(found.report)})
