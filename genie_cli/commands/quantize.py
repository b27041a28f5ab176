"""``genie quantize``: a low-bit network from a teacher and calibration images."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from genie_cli.commands import options as opt
from genie_cli.commands.flags import Fields, Used, takes
from genie_cli.commands.plugins import plugins_loaded

if TYPE_CHECKING:
    from genie_cli.commands.running import CommandRun
    from genie_cli.config import ModelConfig, QuantizeConfig
    from genie_cli.quantization.result import QuantizedNetwork
    from genie_cli.stages.quantize import Quantized


@takes(Fields("model"), Fields("quantize"))
def quantize(
    used: Used,
    settings: opt.QuantizeSettings = None,
    scheme: opt.Scheme = None,
    params: opt.ParamsFile = None,
    dry_run: opt.DryRun = False,
    as_json: opt.AsJson = False,
) -> None:
    """Quantize a network's weights and activations on synthesized images (GENIE-M)."""
    from genie_cli.commands.bits_override import override_keys
    from genie_cli.config import QuantizeConfig, stage_config
    from genie_cli.quantization.presets import find_preset

    file = opt.read(params)
    model_config = opt.model_config(file, used["model"])
    overrides = override_keys(used["quantize"].pop("bits_override", None))
    flags = opt.given({**used["quantize"], **overrides}, settings)
    section = {**file.section("quantize"), **(file.scheme(scheme) if scheme is not None else {})}
    with plugins_loaded(flags, section):
        config = stage_config(QuantizeConfig, section, flags, find_preset, "quantize")
        _run(model_config, config, file.path, dry_run, as_json)


def _run(model_config: ModelConfig, config: QuantizeConfig, params: Path | None, dry_run: bool, as_json: bool) -> None:
    from genie_cli.commands.files_read import files_read
    from genie_cli.commands.opening import open_network
    from genie_cli.commands.plan import PlannedRun, planning
    from genie_cli.commands.running import CommandRun, running
    from genie_cli.quantization.images import open_image_set, recorded_input
    from genie_cli.stages.quantize import quantized

    outputs = {"--out": config.out, "--performance": config.performance, "--log": config.log}
    outputs["the bits of --out"] = bits_path(config.out) if config.has_target else None
    with running(config, PlannedRun if dry_run else CommandRun) as run, planning(run, outputs, as_json):
        with run.checks():
            if run.workers.is_first:
                opt.check_files(outputs, files_read(params, model_config, config), ["--out"])
        with quantized(
            run,
            config,
            lambda: open_network(model_config, None if config.data_free else recorded_input(config.images)),
            lambda teacher: open_image_set(config.images, teacher, config.num_images, config.seed),
        ) as result:
            if run.workers.is_first:
                _finish(run, model_config, config, result, as_json)


def bits_path(out: Path) -> Path:
    """The table of bits that a search writes beside a quantized folder."""
    return out.with_name(f"{out.name}.bits.yaml")


def _finish(run: CommandRun, model: ModelConfig, config: QuantizeConfig, result: Quantized, as_json: bool) -> None:
    from genie_cli.artifacts.network_size import network_size
    from genie_cli.artifacts.quantized_folder import save_quantized
    from genie_cli.artifacts.unit_figures import described_errors
    from genie_cli.commands.display import duration, file_size, summary
    from genie_cli.commands.next_step import data_for, next_command
    from genie_cli.quantization.result import loss_csv
    from genie_cli.runtime.atomic import atomic_write_text

    network, teacher = result.network, result.teacher
    if config.log is not None:
        atomic_write_text(config.log, loss_csv(network.records))
    save_quantized(config.out, result.artifact(run))
    if result.search is not None:
        from genie_cli.quantization.bits.search import table_of

        table = table_of(network.plan.bits).text(f"bits found by genie quantize for {teacher.name}")
        atomic_write_text(bits_path(config.out), table)
    taken = sum(unit.num_steps for unit in network.units)
    run.write_performance(config.performance, {"steps": taken, "activations": network.memory})
    if as_json:
        typer.echo(json.dumps({**_facts(config, result), **run.facts_of_work()}, indent=2))
        return
    rows = {"teacher": f"{teacher.name} ({teacher.sha256[:12]})"}
    if result.images is not None:
        rows["images"] = f"{config.num_images or len(result.images)} of {config.images}"
    rows["recipe"] = _recipe(config, network)
    if result.search is not None:
        rows["bits"] = f"{result.search.described()}; {bits_path(config.out)}"
    if network.units:
        rows["units"] = str(len(network.units))
        rows["error"] = described_errors(network.units)
    rows["quantized"] = network.plan.coverage.described()
    if network.output_errors:
        errors = network.output_errors
        told = ", ".join(f"{name} {error:.4f}" if len(errors) > 1 else f"{error:.4f}" for name, error in errors.items())
        rows["output"] = f"{told} of the network's own energy away from it, batch norms unfolded"
    rows["rewrites"] = f"{max(network.plan.checks.values()):.1e} from the network's own output at most"
    rows["device"] = run.description()
    rows["arithmetic"] = str(run.chosen_arithmetic)
    rows["time"] = duration(run.seconds)
    stored = ", ".join(f"{file_size(n)} ({place})" for place, n in network.memory.items() if n)
    rows["memory"] = f"{run.peak_memory()} at most{f'; activations {stored}' if stored else ''}"
    rows["size"] = network_size(config.out).described()
    rows["written"] = str(config.out)
    rows["next"] = next_command("evaluate", model, {"--quantized": config.out, "--data": data_for(model)})
    own = "" if config.activation_bits is None else f"a{config.activation_bits}"
    weights = f"w{config.weight_bits}" if result.search is None else "within the budget, w2-8"
    summary(f"Quantized {weights}{own or ', activations in float'}", rows)


def _facts(config: QuantizeConfig, result: Quantized) -> dict[str, Any]:
    """The closing table as JSON has it."""
    from genie_cli.artifacts.network_size import network_size

    network, size = result.network, network_size(config.out)
    return {
        "out": str(config.out),
        **asdict(size),
        "teacher": result.teacher.name,
        "teacher_sha256": result.teacher.sha256,
        "images_sha256": None if result.images is None else result.images.sha256,
        "num_images": None if result.images is None else config.num_images or len(result.images),
        "preset": config.preset,
        "protocol": config.protocol,
        "weight_bits": config.weight_bits,
        "activation_bits": config.activation_bits,
        "bits_table": str(bits_path(config.out)) if config.has_target else None,
        "units": [{**asdict(unit), "layers": list(unit.layers)} for unit in network.units],
        "finetuning": None if network.finetuning is None else asdict(network.finetuning),
        "output_errors": network.output_errors,
        "quantized_parameters": network.plan.coverage.parameters,
        "quantized_multiplications": network.plan.coverage.multiplications,
    }


def _recipe(config: QuantizeConfig, network: QuantizedNetwork) -> str:
    """Preset, protocol, bits that differ, and steps."""
    recipe = f"{config.preset}, protocol {config.protocol}"
    if config.weight_grid != "asymmetric":
        recipe += f", {config.weight_grid} weights"
    recipe += "".join(f", {pattern}={w},{a or 'none'}" for pattern, (w, a) in (config.bits_override or {}).items())
    if config.bits_table is not None:
        recipe += ", bits of a table"
    if config.reconstruct:
        by_layer = config.unit == "layer"
        recipe += f", {config.num_steps} steps per {'layer' if by_layer else 'unit'}"
        if config.patience is not None:
            taken = sum(unit.num_steps for unit in network.units)
            recipe += f", {taken} of {config.num_steps * len(network.weights if by_layer else network.units)} taken"
    if network.finetuning is not None:
        recipe += f", {network.finetuning.num_steps} for the whole network"
        recipe += "" if network.finetuning.kept else " (left out)"
    return recipe
