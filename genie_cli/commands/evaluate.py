"""``genie evaluate``: figures of a teacher, or of a quantized network beside its teacher."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from genie_cli.commands import options as opt
from genie_cli.commands.flags import Fields, Used, takes
from genie_cli.errors import UsageError

if TYPE_CHECKING:
    from genie_cli.config import EvaluateConfig, ModelConfig

_MOST_CLASSES, _WEAKEST = 20, 5
"""More classes than the first are not all shown, but the second number of them."""
_PER_CLASS = {"classification": "top-1", "segmentation": "IoU"}
"""Metric -> its figure per class."""


@takes(Fields("model"), Fields("evaluate"))
def evaluate(
    used: Used, params: opt.ParamsFile = None, dry_run: opt.DryRun = False, as_json: opt.AsJson = False
) -> None:
    """Measure a network: accuracy, mean IoU, mAP, fidelity or a metric of your own; of a quantized one the drop too."""
    from genie_cli.config import EvaluateConfig, stage_config

    file = opt.read(params)
    model_config = opt.model_config(file, used["model"])
    flags = opt.given(used["evaluate"])
    config = stage_config(EvaluateConfig, file.section("evaluate"), flags, where="evaluate")
    if config.data is None:
        raise UsageError(
            "No data is named: give --data digits, imagefolder:PATH, or another form of `genie evaluate --help`."
        )
    if config.folded and config.quantized is not None:
        raise UsageError("--folded evaluates the teacher and --quantized a student: give one of them.")
    _run(model_config, config, file.path, dry_run, as_json)


def _run(model_config: ModelConfig, config: EvaluateConfig, params: Path | None, dry_run: bool, as_json: bool) -> None:
    from genie_cli.commands.files_read import files_read
    from genie_cli.commands.opening import open_network
    from genie_cli.commands.plan import PlannedRun, planning
    from genie_cli.commands.running import CommandRun, running
    from genie_cli.evaluation.images import open_samples
    from genie_cli.runtime.atomic import atomic_write_text
    from genie_cli.stages.evaluate import evaluate as measured
    from genie_cli.stages.evaluate import open_measured

    source = config.data
    assert source is not None, "an evaluation is of some data"
    with running(config, PlannedRun if dry_run else CommandRun) as run, planning(run, {"--out": config.out}, as_json):
        with run.checks():
            if run.workers.is_first:
                opt.check_files({"--out": config.out}, files_read(params, model_config, config), ["--quantized"])
        figures = measured(
            run,
            config,
            lambda recorded: open_network(model_config, recorded),
            lambda spec: open_samples(source, config, spec),
            lambda: open_measured(config.quantized),
        )
        if not run.workers.is_first:
            return
        text = json.dumps(figures, indent=2)
        if config.out is not None:
            atomic_write_text(config.out, text + "\n")
        if as_json:
            typer.echo(text)
        else:
            show_figures("Evaluated", {**figures, "next": _next(model_config, config)})


def _next(network: ModelConfig, config: EvaluateConfig) -> str:
    """The command after an evaluation: of a quantized folder the export, of the network itself the synthesis."""
    from genie_cli.commands.next_step import next_command

    if config.quantized is None:
        return next_command("synthesize", network, {})
    if not config.quantized.is_dir():
        return shlex.join(["genie", "benchmark", str(config.quantized)])
    return next_command("export", network, {"--quantized": config.quantized})


def show_figures(title: str, figures: dict[str, Any]) -> None:
    """Print the figures of a metrics file: all of them, those per class and those per output."""
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
    summary(title, {key: cell(key, value) for key, value in figures.items() if key not in tables})
    if figures.get(PER_CLASS):
        title, classes = "Per class", list(figures[PER_CLASS].items())
        if len(classes) > _MOST_CLASSES:
            known = [item for item in classes if item[1] is not None]
            title, classes = "Weakest classes", sorted(known, key=lambda item: item[1])[:_WEAKEST]
        column = f"{_PER_CLASS.get(figures['metric'], figures['metric'])} %"
        rows = [[name, "none" if share is None else f"{share:.2f}"] for name, share in classes]
        rows_table(title, ["class", column], rows, {column})
    if figures.get(OUTPUTS):
        columns = list(dict.fromkeys(key for each in figures[OUTPUTS].values() for key in each))
        rows = [[name, *(cell(key, each.get(key)) for key in columns)] for name, each in figures[OUTPUTS].items()]
        rows_table("Per output", ["output", *columns], rows, set(columns))
