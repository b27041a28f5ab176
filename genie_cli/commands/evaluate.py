"""``genie evaluate``: accuracy of a teacher or of a quantized network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from genie_cli.commands import options as opt
from genie_cli.errors import UsageError

_DATA, _OUTPUT = "Data", "Output"


def evaluate(
    model: opt.ModelName = None,
    weights: opt.Weights = None,
    input_size: opt.InputSize = None,
    num_channels: opt.NumChannels = None,
    mean: opt.Mean = None,
    std: opt.Std = None,
    quantized: Annotated[
        Path | None,
        typer.Option(
            "--quantized",
            help="Folder written by `genie quantize`. \\[default: evaluate the teacher]",
            rich_help_panel="Model",
            show_default=False,
        ),
    ] = None,
    folded: Annotated[
        bool,
        typer.Option("--folded", help="Evaluate the teacher with its batch norms folded.", rich_help_panel="Model"),
    ] = False,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            help="digits, cifar10:FOLDER, imagefolder:PATH, or a .safetensors with images and labels.",
            rich_help_panel=_DATA,
            show_default=False,
        ),
    ] = None,
    resize_size: Annotated[
        str | None,
        typer.Option(
            "--resize-size",
            help="Image files: shorter side before the centre crop, or none. \\[default: the model's, else size / 0.875]",
            rich_help_panel=_DATA,
            show_default=False,
        ),
    ] = None,
    num_images: Annotated[
        int | None,
        typer.Option(
            "--num-images",
            help="Evaluate the first so many images. \\[default: all]",
            rich_help_panel=_DATA,
            show_default=False,
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size",
            help="Images at once; no part of the result. \\[default: 256]",
            rich_help_panel=_DATA,
            show_default=False,
        ),
    ] = None,
    num_workers: Annotated[
        int | None,
        typer.Option(
            "--num-workers",
            help="Processes that decode image files. \\[default: 0]",
            rich_help_panel=_DATA,
            show_default=False,
        ),
    ] = None,
    device: opt.Device = None,
    precision: opt.Precision = None,
    params: opt.ParamsFile = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Metrics file (JSON) to write.", rich_help_panel=_OUTPUT, show_default=False),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of a table.", rich_help_panel=_OUTPUT)
    ] = False,
) -> None:
    """Measure top-1 and top-5 accuracy, and a quantized network's drop from and agreement with its teacher."""
    from genie_cli.config import EvaluateConfig

    file = opt.read(params)
    model_config = opt.model_config(
        file,
        {
            "name": model,
            "weights": weights,
            "input_size": input_size,
            "num_channels": num_channels,
            "mean": mean,
            "std": std,
        },
    )
    flags = opt.given(
        {
            "quantized": quantized, "folded": folded or None, "data": data, "resize_size": _resize_size(resize_size),
            "num_images": num_images, "batch_size": batch_size, "num_workers": num_workers,
            "device": device, "precision": precision, "out": out,
        }
    )  # fmt: skip
    config = opt.stage_config(EvaluateConfig, file.section("evaluate"), flags, where="evaluate")
    if config.data is None:
        raise UsageError("No data is named: give --data digits, cifar10:FOLDER, imagefolder:PATH or a .safetensors.")
    if config.folded and config.quantized is not None:
        raise UsageError("--folded evaluates the teacher and --quantized a student: give one of them.")
    _run(model_config, config, as_json)


def _resize_size(text: str | None) -> int | str | None:
    if text is None or text == "none":
        return text
    if not text.isdigit() or int(text) < 1:
        raise UsageError(f"--resize-size {text!r} must be a number of pixels or none.")
    return int(text)


def _run(model_config: Any, config: Any, as_json: bool) -> None:
    from genie_cli.artifacts.atomic import atomic_write_text, check_writable
    from genie_cli.artifacts.quantized import load_quantized
    from genie_cli.commands.display import progress, rows_table, summary
    from genie_cli.data.labeled import check_classes
    from genie_cli.data.sources import open_data
    from genie_cli.evaluation import accuracy
    from genie_cli.models.graph.folding import fold_batch_norms
    from genie_cli.models.graph.placement import move
    from genie_cli.models.zoo import load_teacher
    from genie_cli.runtime.device import resolve_device, resolve_dtype
    from genie_cli.student.load import load_student

    if config.out is not None:
        check_writable(config.out)
    device = resolve_device(config.device)
    dtype = resolve_dtype(config.precision, device)
    artifact = load_quantized(opt.existing(config.quantized, "--quantized")) if config.quantized else None
    teacher = load_teacher(model_config)
    spec = teacher.input
    if config.resize_size is not None:
        spec = spec.model_copy(update={"resize_size": None if config.resize_size == "none" else config.resize_size})
    data = open_data(config.data, spec, config.num_workers, config.num_images)
    check_classes(data, teacher.num_classes)
    network = teacher.graph
    reference = None
    if artifact is not None:
        network, reference = load_student(teacher, artifact), move(teacher.graph, device)
    elif config.folded:
        network = fold_batch_norms(teacher.graph).graph
    with progress() as report:
        result = accuracy.evaluate(
            move(network, device), data, teacher.num_classes, config.batch_size, device, dtype, reference, report
        )
    figures = {"model": teacher.name, **result.as_json()}
    if artifact is not None:
        for key in ("preset", "protocol"):
            figures[key] = getattr(artifact.metadata, key)
        for key in ("weight_bits", "activation_bits"):
            figures[key] = artifact.metadata.config[key]
    text = json.dumps(figures, indent=2)
    if config.out is not None:
        atomic_write_text(config.out, text + "\n")
    if as_json:
        typer.echo(text)
        return
    shown = {
        key: f"{value:.2f} %" if isinstance(value, float) else value
        for key, value in figures.items()
        if key != "per_class"
    }
    summary("Evaluated", shown)
    classes = sorted(result.per_class.items(), key=lambda item: item[1])
    if len(classes) <= 20:
        rows_table(
            "Per class",
            ["class", "top-1 %"],
            [[name, f"{value:.2f}"] for name, value in result.per_class.items()],
            {"top-1 %"},
        )
    else:
        rows_table(
            "Weakest classes",
            ["class", "top-1 %"],
            [[name, f"{value:.2f}"] for name, value in classes[:5]],
            {"top-1 %"},
        )
