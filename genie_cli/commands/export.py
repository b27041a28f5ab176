"""``genie export``: a network as a file that other runtimes run, checked by running it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import typer

from genie_cli.commands import options as opt
from genie_cli.commands.flags import Fields, Used, takes

if TYPE_CHECKING:
    from torch import Tensor, fx

    from genie_cli.config import InputSpec, ModelConfig
    from genie_cli.config.export import ExportConfig
    from genie_cli.deployment.metadata import ExportMetadata

_MOST_NAMES = 8
"""More float islands or layers are counted, not named."""


@takes(Fields("model"), Fields("export"))
def export(used: Used, params: opt.ParamsFile = None, as_json: opt.AsJson = False) -> None:
    """Write a quantized network as an ONNX or .pt2 file, and check its answers in the runtime."""
    from genie_cli.config import ExportConfig

    file = opt.read(params)
    model_config = opt.model_config(file, used["model"])
    config = opt.stage_config(ExportConfig, file.section("export"), opt.given(used["export"]), where="export")
    _run(model_config, config, as_json)


def _run(model_config: ModelConfig, config: ExportConfig, as_json: bool) -> None:
    from genie_cli.artifacts.metrics import encode_metrics
    from genie_cli.deployment.export import check_options, report_path
    from genie_cli.deployment.export import export as export_network
    from genie_cli.runtime.atomic import atomic_write_bytes
    from genie_cli.runtime.user_code import code_file

    check_options(config)
    outputs = {"--out": config.path, "the report of --out": report_path(config.path)}
    images = config.images
    read = None if images is None else images if images.endswith(".safetensors") else code_file(images)
    opt.check_files(
        outputs, {"--weights": model_config.weights, "--images": read, "--quantized": config.quantized}, ["--quantized"]
    )
    network, metadata = _network(model_config, config)
    pixels = None if images is None or not config.check_images else _pixels(images, config, metadata.input)
    exported = export_network(network, metadata, config, pixels)
    atomic_write_bytes(report_path(config.path), encode_metrics(exported.report))
    atomic_write_bytes(config.path, exported.content)
    if as_json:
        typer.echo(json.dumps(exported.report, indent=2, sort_keys=True))
    else:
        _show(config, exported.report)


def _network(model_config: ModelConfig, config: ExportConfig) -> tuple[fx.GraphModule, ExportMetadata]:
    """The network, from normalised images to what it returns, and what its file will say of it."""
    from torch import fx

    from genie_cli.artifacts.metadata import provenance
    from genie_cli.artifacts.quantized import load_quantized
    from genie_cli.commands.display import tell_of
    from genie_cli.deployment.metadata import ExportMetadata
    from genie_cli.models.graph.folding import fold_batch_norms
    from genie_cli.models.graph.outputs import structured
    from genie_cli.models.zoo import load_teacher
    from genie_cli.student.load import load

    if config.quantized is None:
        teacher = load_teacher(model_config)
        tell_of(teacher)
        network = structured(fold_batch_norms(teacher.graph).graph.eval())
        named: dict[str, Any] = {
            "teacher": teacher.name,
            "teacher_sha256": teacher.sha256,
            "logits": None if teacher.logits is None else teacher.logits.name,
            "input": teacher.input,
        }
    else:
        artifact = load_quantized(config.quantized)
        loaded = load(model_config.name, config.quantized)
        assert isinstance(loaded, fx.GraphModule)
        network, made = loaded, artifact.metadata
        named = {key: getattr(made, key) for key in ("teacher", "teacher_sha256", "protocol", "preset", "logits")}
        named |= {"input": made.input, "content_sha256": made.content_sha256}
        named["weight_bits"] = {name: weight.bits for name, weight in artifact.weights.items()}
        named["activation_bits"] = {name: step.bits for name, step in artifact.activations.items()}
    versions = provenance({}, None, named["input"], None, None)
    metadata = ExportMetadata(
        format=config.format,
        storage="float",
        input_form=config.input,
        outputs=(),
        tool_version=versions["tool_version"],
        torch_version=versions["torch_version"],
        **named,
    )
    return network, metadata


def _pixels(images: str, config: ExportConfig, spec: InputSpec) -> Tensor:
    """The images of the check, uint8 ``[n, C, H, W]``."""
    from genie_cli.commands.display import tell_of
    from genie_cli.config import EvaluateConfig
    from genie_cli.evaluation.images import open_samples

    samples = open_samples(images, EvaluateConfig(), spec)
    if samples.num_images is None or samples.num_images > config.check_images:
        samples = open_samples(images, EvaluateConfig(num_images=config.check_images), spec)
    tell_of(samples)
    return samples.calibration_pixels(None, 0)


def _show(config: ExportConfig, report: dict[str, Any]) -> None:
    from genie_cli.commands.display import file_size, summary

    rows = {"file": str(config.path), "runtime": report["runtime"]}
    size = file_size(report["num_bytes"])
    if "num_float_bytes" in report:
        size += f", in float {file_size(report['num_float_bytes'])}"
    rows["size"] = size
    images = "noise" if report["images"] == "noise" else config.images
    rows["agreement"] = f"{report['agreement']:.2%} of {report['num_images']} images ({images})"
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
    summary("Exported", rows)


def _named(names: list[str]) -> str:
    shown = ", ".join(names[:_MOST_NAMES]) or "none"
    return shown if len(names) <= _MOST_NAMES else f"{shown} and {len(names) - _MOST_NAMES} more"
