"""``genie export``: a network as a file that other runtimes run, checked by running it."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from genie_cli.commands import options as opt
from genie_cli.commands.flags import Fields, Used, takes

if TYPE_CHECKING:
    from genie_cli.config import ModelConfig
    from genie_cli.config.export import ExportConfig
    from genie_cli.data.samples import Samples
    from genie_cli.deployment.export import Exported
    from genie_cli.models.teacher import Teacher
    from genie_cli.runtime.progress import Reporter
    from genie_cli.stages.export import Exportable

_STAGE = "export"
_STEPS = ("loading what makes the file", "capturing the network", "reading images", "making the file and running it")
_MOST_NAMES = 8
"""More float islands or layers are counted, not named."""


@takes(Fields("model"), Fields("export"))
def export(used: Used, params: opt.ParamsFile = None, dry_run: opt.DryRun = False, as_json: opt.AsJson = False) -> None:
    """Write a quantized network as an ONNX or .pt2 file, and check its answers in the runtime."""
    from genie_cli.config import ExportConfig, stage_config

    file = opt.read(params)
    model_config = opt.model_config(file, used["model"])
    config = stage_config(ExportConfig, file.section("export"), opt.given(used["export"]), where="export")
    _run(model_config, config, file.path, dry_run, as_json)


def _run(model_config: ModelConfig, config: ExportConfig, params: Path | None, dry_run: bool, as_json: bool) -> None:
    from genie_cli.commands.display import progress
    from genie_cli.runtime.progress import StageFinished, StageStarted

    with progress() as report:
        report(StageStarted(_STAGE, len(_STEPS)))
        found = _exported(model_config, config, params, dry_run, report)
        report(StageFinished(_STAGE))
    if found is None:
        _show_plan(model_config, config, as_json)
    elif as_json:
        typer.echo(json.dumps(found.report, indent=2, sort_keys=True))
    else:
        _show(config, found.report)


def _exported(
    model_config: ModelConfig, config: ExportConfig, params: Path | None, dry_run: bool, report: Reporter
) -> Exported | None:
    """The file, made, checked and written; None: only the input was checked.

    Args:
        model_config: the network.
        config: what to make of it.
        params: the params file.
        dry_run: end before the file is made.
        report: receives what is going on.
    """
    _tell(report, 0)  # before torch is imported, which takes seconds
    from genie_cli.artifacts.export_report import report_path
    from genie_cli.commands.files_read import files_read
    from genie_cli.deployment.export import check_options
    from genie_cli.evaluation.images import open_samples
    from genie_cli.stages.export import check_pixels, exported, save_exported

    check_options(config)
    outputs = {"--out": config.path, "the report of --out": report_path(config.path)}
    images = config.images
    opt.check_files(outputs, files_read(params, model_config, config), ["--quantized"])
    _tell(report, 1)
    exportable = _exportable(model_config, config, report)
    pixels = None
    if images is not None and config.check_images:
        _tell(report, 2)
        pixels, samples = check_pixels(
            lambda reading: open_samples(images, reading, exportable.input), config.check_images
        )
        _tell_of(samples, report)
    if dry_run:
        return None
    _tell(report, 3)
    found = exported(exportable, config, pixels)
    save_exported(found, config)
    return found


def _tell(report: Reporter, step: int) -> None:
    """Report the step that begins."""
    from genie_cli.runtime.progress import Advanced

    report(Advanced(_STAGE, step, _STEPS[step]))


def _tell_of(taken: Teacher | Samples, report: Reporter) -> None:
    """Notes and warnings on how a network or images were taken."""
    from genie_cli.runtime.progress import Note

    for warning, messages in ((False, taken.notes), (True, taken.warnings)):
        for message in messages:
            report(Note(message, warning))


def _exportable(model_config: ModelConfig, config: ExportConfig, report: Reporter) -> Exportable:
    """The quantized network, or the one in float."""
    from genie_cli.artifacts.quantized_folder import load_quantized
    from genie_cli.models.zoo import load_teacher
    from genie_cli.stages.export import in_float, in_integers
    from genie_cli.student.load import load_simulated

    if config.quantized is None:
        teacher = load_teacher(model_config)
        _tell_of(teacher, report)
        return in_float(teacher)
    artifact = load_quantized(config.quantized)
    return in_integers(load_simulated(model_config.name, artifact), artifact)


def _show_plan(model_config: ModelConfig, config: ExportConfig, as_json: bool) -> None:
    """Print what would be made."""
    from genie_cli.artifacts.export_report import report_path
    from genie_cli.commands.display import summary

    plan = {
        "network": model_config.name,
        "quantized": config.quantized and str(config.quantized),
        "format": config.format,
        "storage": config.storage,
        "images": config.images or "noise",
        "would_write": [str(config.path), str(report_path(config.path))],
    }
    if as_json:
        typer.echo(json.dumps({"dry_run": True, **plan}, indent=2))
        return
    rows = {key.replace("_", " "): ", ".join(v) if isinstance(v, list) else v or "none" for key, v in plan.items()}
    summary("Plan; nothing was written", rows)


def _show(config: ExportConfig, report: dict[str, Any]) -> None:
    from genie_cli.artifacts.export_report import described_agreement
    from genie_cli.artifacts.network_size import described_beside_float
    from genie_cli.commands.display import file_size, summary

    rows = {"file": str(config.path), "runtime": report["runtime"]}
    num_bytes, num_float_bytes = report["num_bytes"], report.get("num_float_bytes")
    rows["size"] = (
        file_size(num_bytes) if num_float_bytes is None else described_beside_float(num_bytes, num_float_bytes)
    )
    images = "noise" if report["images"] == "noise" else config.images
    rows["agreement"] = f"{described_agreement(report)} ({images})"
    for name, each in report["differences"].items():
        rows[f"difference of {name}"] = (
            f"{each['largest']:.3g} at most, {each['mean']:.2g} on average, of {each['magnitude']:.3g}"
        )
    if "num_layers" in report:
        rows["integer layers"] = f"{report['num_integer_layers']} of {report['num_layers']}"
        rows["float islands"] = _named(report["float_islands"])
    if report.get("saturates_without_vnni"):
        told = {True: "has", False: "lacks", None: "may lack"}[report["processor_has_vnni"]]
        rows["may saturate"] = f"{_named(report['saturates_without_vnni'])}, without VNNI, which this processor {told}"
    rows["next"] = shlex.join(["genie", "benchmark", str(config.path)])
    summary("Exported", rows)


def _named(names: list[str]) -> str:
    shown = ", ".join(names[:_MOST_NAMES]) or "none"
    return shown if len(names) <= _MOST_NAMES else f"{shown} and {len(names) - _MOST_NAMES} more"
