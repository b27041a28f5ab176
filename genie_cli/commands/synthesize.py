"""``genie synthesize``: images from a teacher's batch-norm statistics."""

from __future__ import annotations

from typing import TYPE_CHECKING

from genie_cli.commands import options as opt
from genie_cli.commands.flags import Fields, Used, takes

if TYPE_CHECKING:
    from genie_cli.artifacts.quantized import QuantizedArtifact
    from genie_cli.commands.running import Run
    from genie_cli.config import ModelConfig, SynthesizeConfig
    from genie_cli.models.network_input import RecordedInput
    from genie_cli.models.teacher import Teacher
    from genie_cli.synthesis.discrepancy import Student
    from genie_cli.synthesis.synthesize import Synthesis


@takes(Fields("model", several_networks=True), Fields("synthesize", last=("deterministic",)))
def synthesize(used: Used, settings: opt.SynthesizeSettings = None, params: opt.ParamsFile = None) -> None:
    """Synthesize calibration images from the batch-norm statistics of a network (GENIE-D)."""
    from genie_cli.config import SynthesizeConfig
    from genie_cli.synthesis.presets import find_preset

    file = opt.read(params)
    model, others = opt.split_networks(used["model"])
    model_config = opt.model_config(file, model)
    flags = opt.given({**used["synthesize"], "other_teachers": others}, settings)
    config = opt.stage_config(SynthesizeConfig, file.section("synthesize"), flags, find_preset, "synthesize")
    _run(model_config, config)


def _run(model_config: ModelConfig, config: SynthesizeConfig) -> None:
    from genie_cli.artifacts.quantized import load_quantized
    from genie_cli.commands.running import running
    from genie_cli.models.graph.repeatable import check_repeatable
    from genie_cli.models.zoo import load_teacher
    from genie_cli.synthesis.batches import batch_sizes, batches_at_once
    from genie_cli.synthesis.disk_need import synthesis_need
    from genie_cli.synthesis.synthesize import synthesize_images
    from genie_cli.synthesis.teacher_network import check_same_input
    from genie_cli.synthesis.terms import check_terms
    from genie_cli.synthesis.unsupported import unsupported_synthesis

    with running(config) as run:
        with run.checks():
            if run.workers.is_first:
                outputs = {"--out": config.out, "--log": config.log, "--performance": config.performance}
                for one in (model_config, *config.other_teachers):
                    opt.check_files(outputs, {"--weights": one.weights, "--student": config.student}, ["--student"])
            artifact = load_quantized(config.student) if config.student is not None else None
            trained, *trained_others = (_as_trained(one) for one in (model_config, *config.other_teachers))
            teacher = load_teacher(trained, _input_of(config, artifact))
            others = [load_teacher(other) for other in trained_others]
            for other in others:
                check_same_input(teacher, other)
            for each in (teacher, *others):
                check_repeatable(each, run.device)
            check_terms(teacher, config)
            student, student_sha256 = _load_student(config, artifact, teacher, model_config, run)
        for each in (teacher, *others):
            run.tell_of(each)
        if any(one.reparameterize for one in (model_config, *config.other_teachers)):
            run.note("images are synthesized for the network as it was trained: its batch norms hold the statistics.")
        if config.batch_size > config.num_images:
            run.note(f"the batch of {config.batch_size} becomes {config.num_images}, the number of images.")
        num_batches = len(batch_sizes(config.num_images, config.batch_size))
        if run.workers.size > num_batches:
            run.note(
                f"{run.workers.size} processes for {num_batches} batch(es): {run.workers.size - num_batches} are idle; "
                "a smaller --batch-size makes more batches.",
                warning=True,
            )
        determinants = {
            "command": "synthesize",
            "config": config.determining(),
            "teachers": [one.sha256 for one in (teacher, *others)],
            "inputs": [one.input.model_dump(mode="json") for one in (teacher, *others)],
            "student": student_sha256,
            **({} if model_config.logits is None else {"logits": model_config.logits}),
        }
        run.decide_arithmetic(
            config,
            "synthesize",
            lambda context: unsupported_synthesis(teacher, config, context, others, student),
            lambda dtype: run.is_unfinished(config, config.out, determinants, dtype),
        )
        num_at_once = run.workers.size * batches_at_once(config, teacher.input, run.device)
        need = synthesis_need(teacher.input, teacher.num_classes or 1, config, num_at_once)
        with run.resumable(config, config.out, determinants, need, (num_batches, "batches")) as work:
            with run.working(work, _shorter(config)) as context:
                result = synthesize_images(teacher, config, context, others, student)
            if run.workers.is_first:
                _finish(run, config, [teacher, *others], student_sha256, result)


def _shorter(config: SynthesizeConfig) -> list[str]:
    """The options that make a synthesis shorter."""
    return [*(["--preset genie-fast"] if config.preset == "genie" else []), "a smaller --n", "a smaller --num-steps"]


def _as_trained(config: ModelConfig) -> ModelConfig:
    """The network with its batch norms; the images are those of its reparameterized form too."""
    return config.model_copy(update={"reparameterize": False})


def _input_of(config: SynthesizeConfig, artifact: QuantizedArtifact | None) -> RecordedInput | None:
    from genie_cli.models.network_input import RecordedInput

    if artifact is None:
        return None
    made_for = artifact.metadata
    return RecordedInput(str(config.student), made_for.network_sha256, made_for.input, made_for.logits)


def _load_student(
    config: SynthesizeConfig,
    artifact: QuantizedArtifact | None,
    teacher: Teacher,
    model_config: ModelConfig,
    run: Run,
) -> tuple[Student | None, str | None]:
    from genie_cli.artifacts.metadata import file_sha256
    from genie_cli.artifacts.quantized import WEIGHTS_FILE
    from genie_cli.models.zoo import load_teacher
    from genie_cli.student.load import load_student
    from genie_cli.synthesis.discrepancy import Student

    if artifact is None or config.student is None or teacher.logits is None:
        return None, None
    if artifact.metadata.source_sha256 is not None:
        merged = model_config.model_copy(update={"reparameterize": True})
        teacher = load_teacher(merged, _input_of(config, artifact))
    assert teacher.logits is not None
    student = Student(teacher.logits.of(load_student(teacher, artifact)), run.device)
    return student, file_sha256(config.student / WEIGHTS_FILE)


def _finish(
    run: Run, config: SynthesizeConfig, teachers: list[Teacher], student_sha256: str | None, result: Synthesis
) -> None:
    from genie_cli.artifacts.images import save_images
    from genie_cli.artifacts.metadata import file_sha256
    from genie_cli.commands.display import duration, file_size, summary
    from genie_cli.runtime.atomic import atomic_write_text
    from genie_cli.synthesis.batches import batch_sizes
    from genie_cli.synthesis.export import to_artifact

    images, metadata = to_artifact(result.images, teachers, config, run.arithmetic(config), student_sha256)
    if config.log is not None:
        lines = [f"{row.batch},{row.step},{row.loss:.6g},{row.latent_lr:.6g}" for row in result.log]
        atomic_write_text(config.log, "\n".join(["batch,step,loss,latent_lr", *lines]) + "\n")
    save_images(config.out, images, metadata)
    sha256 = file_sha256(config.out)
    final = [row.loss for row in result.log if row.step == config.num_steps]
    mean_loss = sum(final) / len(final)
    run.write_performance(config.performance, {"steps": config.num_steps * len(final), "loss": mean_loss})
    summary(
        "Synthesized",
        {
            "images": f"{len(images)} of {'x'.join(str(side) for side in images.shape[1:])}, {config.image_dtype}",
            "teachers" if teachers[1:] else "teacher": ", ".join(f"{t.name} ({t.sha256[:12]})" for t in teachers),
            "batches": " + ".join(str(size) for size in batch_sizes(config.num_images, config.batch_size)),
            "loss": f"{mean_loss:.4f}",
            "device": run.description(),
            "arithmetic": str(run.chosen_arithmetic),
            "time": duration(run.seconds),
            "memory": run.peak_memory(),
            "written": f"{config.out} ({file_size(config.out.stat().st_size)}, sha256 {sha256[:12]})",
        },
    )
