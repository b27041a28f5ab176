"""Evaluation: figures of a network, or of a quantized one beside its teacher."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import fx

from genie_cli.artifacts.metadata import FOLDER_FILES
from genie_cli.artifacts.quantized import QuantizedArtifact
from genie_cli.artifacts.quantized_folder import load_quantized
from genie_cli.config import EvaluateConfig, InputSpec
from genie_cli.data.labeled import LabeledImages, check_classes
from genie_cli.data.samples import Samples
from genie_cli.deployment.metadata import ExportMetadata
from genie_cli.deployment.network import as_student, is_exported, open_exported
from genie_cli.deployment.runtimes import Runtime
from genie_cli.errors import UsageError
from genie_cli.evaluation import evaluate as evaluation
from genie_cli.evaluation.keys import NUM_BYTES
from genie_cli.evaluation.metrics.choose import Metrics, Wanted, choose_metrics
from genie_cli.evaluation.metrics.network_outputs import NetworkOutputs
from genie_cli.evaluation.outputs import unsupported_evaluation
from genie_cli.models.graph.folding import fold_batch_norms
from genie_cli.models.graph.placement import move
from genie_cli.models.network_input import RecordedInput
from genie_cli.models.teacher import Teacher
from genie_cli.runtime.work import NO_WORK
from genie_cli.stages.run import Run
from genie_cli.student.load import computing, load_student


@dataclass(frozen=True)
class Measured:
    """The network beside the teacher: of a quantized folder, or an exported file, or none.

    Attributes:
        where: names it in messages.
        artifact: a quantized network.
        exported: an exported file, loaded in its runtime.
        num_bytes: size of the quantized folder.
    """

    where: str = ""
    artifact: QuantizedArtifact | None = None
    exported: tuple[Runtime, ExportMetadata] | None = None
    num_bytes: int = 0

    def recorded(self) -> RecordedInput | None:
        """The input that it records."""
        if self.exported is not None:
            says = self.exported[1]
            return RecordedInput(self.where, says.teacher_sha256, says.input, says.logits)
        if self.artifact is not None:
            made_for = self.artifact.metadata
            return RecordedInput(self.where, made_for.network_sha256, made_for.input, made_for.logits)
        return None

    def facts(self) -> dict[str, Any]:
        """The facts of it that stand beside the figures."""
        facts: dict[str, Any] = {}
        if self.exported is not None:
            runtime, about = self.exported
            facts |= {
                "runtime": f"{runtime.name} {runtime.version}",
                "preset": about.preset,
                "protocol": about.protocol,
            }
        if self.artifact is not None:
            facts |= {key: getattr(self.artifact.metadata, key) for key in ("preset", "protocol")}
            facts |= {key: self.artifact.metadata.config.get(key) for key in ("weight_bits", "activation_bits")}
            facts[NUM_BYTES] = self.num_bytes
        sha256 = self._content_sha256()
        return facts if sha256 is None else {**facts, "quantized_sha256": sha256}

    def _content_sha256(self) -> str | None:
        """Hash of the quantized network's tensors; None where it was never written, or is in float."""
        if self.exported is not None:
            return self.exported[1].content_sha256
        return self.artifact.metadata.content_sha256 if self.artifact is not None else None


def open_measured(path: Path | None) -> Measured:
    """The network of a quantized folder or an exported file; None: there is none beside the teacher.

    Raises:
        InputError: it cannot be read.
        UsageError: the file's runtime is not installed.
    """
    if path is None:
        return Measured()
    if is_exported(path):
        return Measured(str(path), exported=open_exported(path, torch.get_num_threads()))
    num_bytes = sum((path / name).stat().st_size for name in FOLDER_FILES if (path / name).is_file())
    return Measured(str(path), artifact=load_quantized(path), num_bytes=num_bytes)


@dataclass(frozen=True)
class _Opened:
    """All that an evaluation looks at.

    Attributes:
        teacher: the network that is named.
        spec: its input, as image files are read for it.
        network: the graph that is measured.
        reference: the teacher's, to compare with; None: the teacher itself is measured.
        samples: images and targets.
        metrics: what is measured.
    """

    teacher: Teacher
    spec: InputSpec
    network: fx.GraphModule
    reference: fx.GraphModule | None
    samples: Samples
    metrics: Metrics


def evaluate(
    run: Run,
    config: EvaluateConfig,
    open_network: Callable[[RecordedInput | None], Teacher],
    open_data: Callable[[InputSpec], Samples],
    open_other: Callable[[], Measured],
) -> dict[str, Any]:
    """The figures of a network, under the keys that metrics files use.

    Args:
        run: what to run on.
        config: what is measured, and how image files are read.
        open_network: opens the teacher, with the input that an artifact records.
        open_data: opens the images and their targets.
        open_other: opens what is measured beside the teacher.

    Raises:
        UsageError: metrics that do not go with the data or the network.
        InputError: a network or data that cannot be used.
        NumbersError: outputs that are not finite, in float32 too.
    """
    with run.checks():
        other = open_other()
        opened = _opened(config, open_network(other.recorded()), open_data, other)
        _check_processes(run, opened.metrics, opened.samples)
    samples, metrics = opened.samples, opened.metrics
    run.tell_of(opened.teacher)
    run.tell_of(samples)
    for note in metrics.notes:
        run.note(note)
    run.tell_of_idle(samples.num_batches(config.batch_size))
    run.planned(
        lambda: {
            "teacher": opened.teacher.name,
            "metric": metrics.name,
            "num_images": samples.num_images,
            "batches": samples.num_batches(config.batch_size),
        }
    )
    network = metrics.view(move(opened.network, run.device))
    reference = metrics.view(move(opened.reference, run.device)) if opened.reference is not None else None
    networks = [network] if reference is None else [network, reference]
    run.decide_arithmetic(config, "evaluate", lambda context: unsupported_evaluation(networks, opened.spec, context))
    with run.working(NO_WORK) as context:
        result = evaluation.evaluate(network, samples, metrics, config.batch_size, context, reference)
    hashes = {"data_sha256": samples.code_sha256}
    hashes |= {f"{name}_sha256": code.sha256 for name, code in metrics.codes().items()}
    return {
        "model": opened.teacher.name,
        "metric": metrics.name,
        **result.as_json(),
        **{key: sha256 for key, sha256 in hashes.items() if sha256 is not None},
        **other.facts(),
    }


def _opened(
    config: EvaluateConfig, teacher: Teacher, open_data: Callable[[InputSpec], Samples], other: Measured
) -> _Opened:
    spec = teacher.input
    if config.resize_size is not None:
        resize_size = None if config.resize_size == "none" else config.resize_size
        spec = spec.model_copy(update={"resize_size": resize_size})
    samples = open_data(spec)
    network, reference = teacher.graph, None
    if other.artifact is not None:
        network, reference = computing(load_student(teacher, other.artifact), other.artifact), teacher.graph
    elif other.exported is not None:
        network, reference = as_student(*other.exported, teacher), teacher.graph
    elif config.folded:
        network = fold_batch_norms(teacher.graph).graph
        reference = teacher.graph if config.metric == "fidelity" or not samples.has_targets else None
    wanted = Wanted(config.metric, config.decode, config.ignore_class)
    metrics = choose_metrics(wanted, samples, NetworkOutputs.of(teacher), reference is not None)
    if metrics.name == "classification" and metrics.decode is None and isinstance(samples, LabeledImages):
        assert teacher.num_classes is not None, "the metric was refused without class scores"
        check_classes(samples, teacher.num_classes)
    return _Opened(teacher, spec, network, reference, samples, metrics)


def _check_processes(run: Run, metrics: Metrics, samples: Samples) -> None:
    """Refuse, for several processes, what they cannot share."""
    if run.workers.size == 1:
        return
    if not all(metric.is_summed for metric in metrics.all()):
        raise UsageError(f"Metric {metrics.name} cannot be shared by {run.workers.size} processes: start genie as one.")
    if samples.num_batches(1) is None:
        raise UsageError(
            f"{run.workers.size} processes cannot share images whose number is not known: start genie as one, or let "
            "the factory return a sequence of images, with __len__ and __getitem__."
        )
