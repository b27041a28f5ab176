"""``genie evaluate``: accuracy of a teacher or of a quantized network."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import typer

from genie_cli.commands import options as opt
from genie_cli.commands.flags import Fields, Used, takes
from genie_cli.errors import UsageError

if TYPE_CHECKING:
    from genie_cli.commands.running import Run
    from genie_cli.config import EvaluateConfig, ModelConfig

_MOST_CLASSES, _WEAKEST = 20, 5
"""More classes than the first are not all shown, but the second number of them."""


@takes(Fields("model"), Fields("evaluate"))
def evaluate(used: Used, params: opt.ParamsFile = None, as_json: opt.AsJson = False) -> None:
    """Measure top-1 and top-5 accuracy, and a quantized network's drop from and agreement with its teacher."""
    from genie_cli.config import EvaluateConfig

    file = opt.read(params)
    model_config = opt.model_config(file, used["model"])
    flags = opt.given(used["evaluate"])
    config = opt.stage_config(EvaluateConfig, file.section("evaluate"), flags, where="evaluate")
    if config.data is None:
        raise UsageError("No data is named: give --data digits, cifar10:FOLDER, imagefolder:PATH or a .safetensors.")
    if config.folded and config.quantized is not None:
        raise UsageError("--folded evaluates the teacher and --quantized a student: give one of them.")
    _run(model_config, config, config.data, as_json)


def _run(model_config: ModelConfig, config: EvaluateConfig, source: str, as_json: bool) -> None:
    from genie_cli.commands.running import running

    with running(config) as run:
        figures = _measure(run, model_config, config, source)
        if not run.workers.is_first:
            return
        text = json.dumps(figures, indent=2)
        if config.out is not None:
            from genie_cli.runtime.atomic import atomic_write_text

            atomic_write_text(config.out, text + "\n")
        if as_json:
            typer.echo(text)
        else:
            _show(figures)


def _measure(run: Run, model_config: ModelConfig, config: EvaluateConfig, source: str) -> dict[str, Any]:
    from genie_cli.artifacts.quantized import load_quantized
    from genie_cli.data.labeled import check_classes
    from genie_cli.data.sources import open_data
    from genie_cli.evaluation import accuracy
    from genie_cli.evaluation.decision import decision_of
    from genie_cli.evaluation.output_error import output_errors
    from genie_cli.models.graph.folding import fold_batch_norms
    from genie_cli.models.graph.placement import move
    from genie_cli.models.logits import why_no_logits
    from genie_cli.models.network_input import RecordedInput
    from genie_cli.models.zoo import load_teacher
    from genie_cli.runtime.work import NO_WORK
    from genie_cli.student.load import load_student

    with run.checks():
        if run.workers.is_first:
            data_file = source if source.endswith(".safetensors") else None
            read = {"--weights": model_config.weights, "--data": data_file, "--quantized": config.quantized}
            opt.check_files({"--out": config.out}, read, ["--quantized"])
        artifact = load_quantized(config.quantized) if config.quantized is not None else None
        recorded = None
        if artifact is not None:
            made_for = artifact.metadata
            recorded = RecordedInput(str(config.quantized), made_for.network_sha256, made_for.input, made_for.logits)
        teacher = load_teacher(model_config, recorded)
        spec = teacher.input
        if config.resize_size is not None:
            resize_size = None if config.resize_size == "none" else config.resize_size
            spec = spec.model_copy(update={"resize_size": resize_size})
        data = open_data(source, spec, config.num_workers, config.num_images, class_order=config.class_order)
        if config.num_images is not None and config.num_images > data.num_images:
            raise UsageError(f"--num-images {config.num_images} is more than the {data.num_images} images of {source}.")
        if teacher.logits is None and artifact is None:
            raise UsageError(
                f"There is no accuracy to measure: {why_no_logits(teacher.outputs)}. With --quantized, the outputs of "
                "a quantized network are compared with the network's own."
            )
        decision = None
        if teacher.logits is not None:
            check_classes(data, teacher.logits.num_classes)
            decision = decision_of(teacher.logits.of(teacher.graph), teacher.logits.num_classes)
        network = teacher.graph
        reference = None
        if artifact is not None:
            network, reference = load_student(teacher, artifact), move(teacher.graph, run.device)
        elif config.folded:
            network = fold_batch_norms(teacher.graph).graph
    run.tell_of(teacher)
    run.tell_of(data)
    if decision is None:
        run.note(f"no accuracy is measured: {why_no_logits(teacher.outputs)}.")
    elif decision.is_binary:
        kind = "probability" if decision.threshold else "logit"
        run.note(f"the network has one output: a {kind} above {decision.threshold:g} is class 1, else class 0.")
    num_batches = data.num_batches(config.batch_size)
    if run.workers.size > num_batches:
        run.note(
            f"{run.workers.size} processes for {num_batches} batch(es): {run.workers.size - num_batches} are idle; "
            "a smaller --batch-size makes more batches.",
            warning=True,
        )
    network = move(network, run.device)
    networks = [network] if reference is None else [network, reference]
    run.decide_arithmetic(config, "evaluate", lambda context: accuracy.unsupported_evaluation(networks, spec, context))
    with run.working(NO_WORK) as context:
        figures: dict[str, Any] = {"model": teacher.name}
        if reference is not None and len(teacher.outputs.names) + (teacher.logits is None) > 1:
            errors = output_errors(network, reference, data, config.batch_size, context)
            figures |= {"num_images": data.num_images, "output_errors": errors}
        if decision is not None and teacher.logits is not None:
            logits, full = teacher.logits.of(network), None if reference is None else teacher.logits.of(reference)
            result = accuracy.evaluate(
                logits, data, decision.num_outputs, config.batch_size, context, full, decision.threshold
            )
            figures |= result.as_json()
    if artifact is not None:
        figures |= {key: getattr(artifact.metadata, key) for key in ("preset", "protocol")}
        figures |= {key: artifact.metadata.config.get(key) for key in ("weight_bits", "activation_bits")}
    return figures


def _show(figures: dict[str, Any]) -> None:
    from genie_cli.commands.display import rows_table, summary

    tables = ("per_class", "output_errors")
    summary("Evaluated", {key: _cell(key, value) for key, value in figures.items() if key not in tables})
    if "output_errors" in figures:
        errors = [[name, f"{error:.4f}"] for name, error in figures["output_errors"].items()]
        rows_table("Distance from the network", ["output", "error"], errors, {"error"})
    if "per_class" not in figures:
        return
    title, classes = "Per class", list(figures["per_class"].items())
    if len(classes) > _MOST_CLASSES:
        title, classes = "Weakest classes", sorted(classes, key=lambda item: item[1])[:_WEAKEST]
    rows_table(title, ["class", "top-1 %"], [[name, f"{share:.2f}"] for name, share in classes], {"top-1 %"})


def _cell(key: str, value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.2f} points" if key == "drop" else f"{value:.2f} %"
