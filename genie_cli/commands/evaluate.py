"""``genie evaluate``: figures of a teacher, or of a quantized network beside its teacher."""

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
    from genie_cli.data.samples import Samples
    from genie_cli.evaluation.metrics.choose import Metrics

_MOST_CLASSES, _WEAKEST = 20, 5
"""More classes than the first are not all shown, but the second number of them."""
_PER_CLASS = {"classification": "top-1", "segmentation": "IoU"}
"""Metric -> its figure per class."""


@takes(Fields("model"), Fields("evaluate"))
def evaluate(used: Used, params: opt.ParamsFile = None, as_json: opt.AsJson = False) -> None:
    """Measure a network: accuracy, mean IoU, mAP, fidelity or a metric of your own; of a quantized one the drop too."""
    from genie_cli.config import EvaluateConfig

    file = opt.read(params)
    model_config = opt.model_config(file, used["model"])
    flags = opt.given(used["evaluate"])
    config = opt.stage_config(EvaluateConfig, file.section("evaluate"), flags, where="evaluate")
    if config.data is None:
        raise UsageError(
            "No data is named: give --data digits, imagefolder:PATH, or another form of `genie evaluate --help`."
        )
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
    import torch

    from genie_cli.artifacts.quantized import load_quantized
    from genie_cli.data.labeled import LabeledImages, check_classes
    from genie_cli.deployment.network import as_student, is_exported, open_exported
    from genie_cli.evaluation import evaluate as evaluation
    from genie_cli.evaluation.images import open_samples
    from genie_cli.evaluation.metrics.choose import Wanted, choose_metrics
    from genie_cli.evaluation.metrics.network_outputs import NetworkOutputs
    from genie_cli.evaluation.outputs import unsupported_evaluation
    from genie_cli.models.graph.folding import fold_batch_norms
    from genie_cli.models.graph.placement import move
    from genie_cli.models.network_input import RecordedInput
    from genie_cli.models.zoo import load_teacher
    from genie_cli.runtime.user_code import code_file
    from genie_cli.runtime.work import NO_WORK
    from genie_cli.student.load import load_student

    with run.checks():
        if run.workers.is_first:
            data_file = source if source.endswith(".safetensors") else code_file(source)
            read = {"--weights": model_config.weights, "--data": data_file, "--quantized": config.quantized}
            read |= {"--metric": code_file(config.metric), "--decode": code_file(config.decode)}
            opt.check_files({"--out": config.out}, read, ["--quantized"])
        artifact = exported = None
        if config.quantized is not None and is_exported(config.quantized):
            exported = open_exported(config.quantized, torch.get_num_threads())
        elif config.quantized is not None:
            artifact = load_quantized(config.quantized)
        recorded = None
        if exported is not None:
            says = exported[1]
            recorded = RecordedInput(str(config.quantized), says.teacher_sha256, says.input, says.logits)
        if artifact is not None:
            made_for = artifact.metadata
            recorded = RecordedInput(str(config.quantized), made_for.network_sha256, made_for.input, made_for.logits)
        teacher = load_teacher(model_config, recorded)
        spec = teacher.input
        if config.resize_size is not None:
            resize_size = None if config.resize_size == "none" else config.resize_size
            spec = spec.model_copy(update={"resize_size": resize_size})
        samples = open_samples(source, config, spec)
        network, reference = teacher.graph, None
        if artifact is not None:
            network, reference = load_student(teacher, artifact), teacher.graph
        elif exported is not None:
            network, reference = as_student(*exported, teacher), teacher.graph
        elif config.folded:
            network = fold_batch_norms(teacher.graph).graph
            reference = teacher.graph if config.metric == "fidelity" or not samples.has_targets else None
        wanted = Wanted(config.metric, config.decode, config.ignore_class)
        metrics = choose_metrics(wanted, samples, NetworkOutputs.of(teacher), reference is not None)
        if metrics.name == "classification" and metrics.decode is None and isinstance(samples, LabeledImages):
            assert teacher.num_classes is not None, "the metric was refused without class scores"
            check_classes(samples, teacher.num_classes)
        _check_processes(run, metrics, samples)
    run.tell_of(teacher)
    run.tell_of(samples)
    for note in metrics.notes:
        run.note(note)
    num_batches = samples.num_batches(config.batch_size)
    if num_batches is not None and run.workers.size > num_batches:
        run.note(
            f"{run.workers.size} processes for {num_batches} batch(es): {run.workers.size - num_batches} are idle; "
            "a smaller --batch-size makes more batches.",
            warning=True,
        )
    network = metrics.view(move(network, run.device))
    reference = metrics.view(move(reference, run.device)) if reference is not None else None
    networks = [network] if reference is None else [network, reference]
    run.decide_arithmetic(config, "evaluate", lambda context: unsupported_evaluation(networks, spec, context))
    with run.working(NO_WORK) as context:
        result = evaluation.evaluate(network, samples, metrics, config.batch_size, context, reference)
    figures = {"model": teacher.name, "metric": metrics.name, **result.as_json()}
    hashes = {"data_sha256": samples.code_sha256}
    hashes |= {f"{name}_sha256": code.sha256 for name, code in metrics.codes().items()}
    figures |= {key: sha256 for key, sha256 in hashes.items() if sha256 is not None}
    if exported is not None:
        runtime, says = exported
        figures |= {"runtime": f"{runtime.name} {runtime.version}", "preset": says.preset, "protocol": says.protocol}
    if artifact is not None:
        figures |= {key: getattr(artifact.metadata, key) for key in ("preset", "protocol")}
        figures |= {key: artifact.metadata.config.get(key) for key in ("weight_bits", "activation_bits")}
    return figures


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


def _show(figures: dict[str, Any]) -> None:
    from genie_cli.commands.display import rows_table, summary
    from genie_cli.evaluation.keys import DROP, HASHES, IN_PERCENT, OUTPUTS, PER_CLASS

    is_percent = figures["metric"] in IN_PERCENT

    def cell(key: str, value: Any) -> str:
        if not isinstance(value, float):
            return "none" if value is None else str(value)
        if not is_percent:
            return f"{value:.4g}"
        return f"{value:.2f} points" if key.partition("_")[0] == DROP else f"{value:.2f} %"

    tables = (PER_CLASS, OUTPUTS, *HASHES)
    summary("Evaluated", {key: cell(key, value) for key, value in figures.items() if key not in tables})
    if PER_CLASS in figures:
        title, classes = "Per class", list(figures[PER_CLASS].items())
        if len(classes) > _MOST_CLASSES:
            title, classes = "Weakest classes", sorted(classes, key=lambda item: item[1])[:_WEAKEST]
        column = f"{_PER_CLASS.get(figures['metric'], figures['metric'])} %"
        rows_table(title, ["class", column], [[name, f"{share:.2f}"] for name, share in classes], {column})
    if OUTPUTS in figures:
        columns = list(next(iter(figures[OUTPUTS].values())))
        rows = [[name, *(cell(key, each[key]) for key in columns)] for name, each in figures[OUTPUTS].items()]
        rows_table("Per output", ["output", *columns], rows, set(columns))
