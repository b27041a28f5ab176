"""Synthesis: from networks and a configuration to an image set."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from genie_cli.artifacts.images import ImageSet, check_range, image_set
from genie_cli.artifacts.metadata import file_sha256
from genie_cli.artifacts.quantized import QuantizedArtifact
from genie_cli.artifacts.quantized_folder import WEIGHTS_FILE, load_quantized
from genie_cli.config import SynthesizeConfig
from genie_cli.models.graph.batch_norm import is_untrained
from genie_cli.models.graph.fingerprint import graph_sha256
from genie_cli.models.graph.repeatable import check_repeatable
from genie_cli.models.network_input import RecordedInput
from genie_cli.models.teacher import Teacher
from genie_cli.models.zoo import load_teacher
from genie_cli.runtime.context import RunContext
from genie_cli.stages.run import Run
from genie_cli.student.load import load_student
from genie_cli.synthesis.batches import batch_sizes, batches_at_once
from genie_cli.synthesis.discrepancy import Student
from genie_cli.synthesis.disk_need import images_bytes, synthesis_need
from genie_cli.synthesis.export import recipe_hashes, to_artifact
from genie_cli.synthesis.loss_curve import LogRow
from genie_cli.synthesis.synthesize import Synthesis, synthesize_images
from genie_cli.synthesis.teacher_network import check_same_input
from genie_cli.synthesis.terms import check_terms
from genie_cli.synthesis.unsupported import unsupported_synthesis

OpenNetwork = Callable[[bool, RecordedInput | None], Teacher]
"""The network that images are made for: reparameterized or not, with the input that an artifact records."""


@dataclass(frozen=True)
class Synthesized:
    """The result of a synthesis, before it is written.

    Attributes:
        teachers: the networks that the images are for.
        config: how they were made.
        result: images and loss curve.
        student_sha256: hash of the student's weights file, where one was used.
    """

    teachers: tuple[Teacher, ...]
    config: SynthesizeConfig
    result: Synthesis
    student_sha256: str | None

    def image_set(self, run: Run) -> ImageSet:
        """The images as they are stored, with where they come from."""
        arithmetic = run.arithmetic(self.config)
        return image_set(*to_artifact(self.result.images, self.teachers, self.config, arithmetic, self.student_sha256))

    @property
    def mean_loss(self) -> float:
        """The loss after the last step, over the batches."""
        final = [row.loss for row in self.log if row.step == self.config.num_steps]
        return sum(final) / len(final)

    @property
    def num_batches(self) -> int:
        """Number of batches."""
        return len(batch_sizes(self.config.num_images, self.config.batch_size))

    @property
    def log(self) -> tuple[LogRow, ...]:
        """The loss curve."""
        return self.result.log


@dataclass(frozen=True)
class _Networks:
    """The networks of a synthesis.

    Attributes:
        teachers: those that the images are for.
        student: the one that they are to tell from the first teacher.
        student_sha256: hash of its weights file.
    """

    teachers: tuple[Teacher, ...]
    student: Student | None
    student_sha256: str | None


@contextmanager
def synthesized(
    run: Run, config: SynthesizeConfig, open_network: OpenNetwork, is_merged: bool, logits: str | None
) -> Iterator[Synthesized]:
    """Synthesize images; inside of the block, in which the result is to be written, unfinished work is kept.

    Args:
        run: what to run on.
        config: the recipe; its other teachers are opened here.
        open_network: opens the first network.
        is_merged: the user has asked for the reparameterized network.
        logits: name of the output of class scores, where the user gave one.

    Raises:
        UsageError: terms of the loss that do not go with the networks.
        InputError: a network or student that cannot be used.
        NumbersError: the loss of a batch is not finite, in float32 too.
        DeviceError: a batch does not fit into memory.
    """
    with run.checks():
        networks = _opened(run, config, open_network)
    is_merged = is_merged or any(one.reparameterize for one in config.other_teachers)
    _tell(run, config, networks.teachers, is_merged)
    teacher, *others = networks.teachers
    num_batches = len(batch_sizes(config.num_images, config.batch_size))
    own_code = recipe_hashes(config)
    determinants: dict[str, Any] = {
        "command": "synthesize",
        "config": _determining(config),
        "teachers": [one.sha256 for one in networks.teachers],
        "computations": [graph_sha256(one.graph) for one in networks.teachers],
        "inputs": [one.input.model_dump(mode="json") for one in networks.teachers],
        "student": networks.student_sha256,
        **({} if logits is None else {"logits": logits}),
        **({"plugins": own_code} if own_code else {}),
    }

    sizes = batch_sizes(config.num_images, config.batch_size)
    run.planned(
        lambda: {
            "teachers": [one.name for one in networks.teachers],
            "preset": config.preset,
            "num_images": config.num_images,
            "batches": len(sizes),
            "steps": config.num_steps * len(sizes),
            "images_bytes": images_bytes(teacher.input, config),
        }
    )

    def unsupported(context: RunContext) -> str | None:
        return unsupported_synthesis(teacher, config, context, others, networks.student)

    run.decide_arithmetic(
        config, "synthesize", unsupported, lambda dtype: run.is_unfinished(config, config.out, determinants, dtype)
    )
    num_at_once = run.workers.size * batches_at_once(config, teacher.input, run.device)
    need = synthesis_need(teacher.input, teacher.num_classes or 1, config, num_at_once)
    with run.keeping(config, config.out, determinants, need, (num_batches, "batches")) as work:
        with run.working(work, _shorter(config)) as context:
            result = synthesize_images(teacher, config, context, others, networks.student)
        yield Synthesized(networks.teachers, config, result, networks.student_sha256)


def _determining(config: SynthesizeConfig) -> dict[str, Any]:
    """The options that determine the batches, which are kept before they take the type that is stored."""
    return {key: value for key, value in config.determining().items() if key != "image_dtype"}


def _opened(run: Run, config: SynthesizeConfig, open_network: OpenNetwork) -> _Networks:
    artifact = load_quantized(config.student) if config.student is not None else None
    recorded = None
    if artifact is not None:
        made_for = artifact.metadata
        recorded = RecordedInput(str(config.student), made_for.network_sha256, made_for.input, made_for.logits)
    # the images are those of the network with its batch norms; they are for its reparameterized form too
    teacher = open_network(False, recorded)
    others = [load_teacher(one.model_copy(update={"reparameterize": False})) for one in config.other_teachers]
    for other in others:
        check_same_input(teacher, other)
    for each in (teacher, *others):
        check_repeatable(each, run.device)
    check_range(config.image_dtype, teacher.input)
    check_terms(teacher, config, run.device)
    if artifact is None or config.student is None or teacher.logits is None:
        return _Networks((teacher, *others), None, None)
    student = _student(run, artifact, teacher, lambda: open_network(True, recorded))
    return _Networks((teacher, *others), student, file_sha256(config.student / WEIGHTS_FILE))


def _student(run: Run, artifact: QuantizedArtifact, teacher: Teacher, merged: Callable[[], Teacher]) -> Student:
    if artifact.metadata.source_sha256 is not None:
        teacher = merged()
    assert teacher.logits is not None
    return Student(teacher.logits.of(load_student(teacher, artifact)), run.device)


def _tell(run: Run, config: SynthesizeConfig, teachers: Sequence[Teacher], is_merged: bool) -> None:
    for each in teachers:
        run.tell_of(each)
        if is_untrained(each.graph):
            run.note(
                f"all batch norms of '{each.name}' have mean 0 and variance 1, as in a network that was never trained: "
                "their statistics say nothing of images. Is --weights missing?",
                warning=True,
            )
    if is_merged:
        run.note("images are synthesized for the network as it was trained: its batch norms hold the statistics.")
    if config.batch_size > config.num_images:
        run.note(f"the batch of {config.batch_size} becomes {config.num_images}, the number of images.")
    run.tell_of_idle(len(batch_sizes(config.num_images, config.batch_size)))


def _shorter(config: SynthesizeConfig) -> list[str]:
    """The options that make a synthesis shorter."""
    return [*(["--preset genie-fast"] if config.preset == "genie" else []), "a smaller --n", "a smaller --num-steps"]
