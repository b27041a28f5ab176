"""``genie quantize``: a low-bit network from a teacher and calibration images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from genie_cli.commands import options as opt
from genie_cli.commands.flags import Fields, Used, takes
from genie_cli.errors import InputError, UsageError

if TYPE_CHECKING:
    from genie_cli.artifacts.images import ImageSet
    from genie_cli.commands.running import Run
    from genie_cli.config import ModelConfig, QuantizeConfig
    from genie_cli.models.network_input import RecordedInput
    from genie_cli.models.teacher import Teacher
    from genie_cli.quantization.plan import QuantizationPlan
    from genie_cli.quantization.result import QuantizedNetwork


@takes(Fields("model"), Fields("quantize"))
def quantize(
    used: Used, settings: opt.QuantizeSettings = None, scheme: opt.Scheme = None, params: opt.ParamsFile = None
) -> None:
    """Quantize a network's weights and activations on synthesized images (GENIE-M)."""
    from genie_cli.commands.bits_override import parse_overrides
    from genie_cli.config import QuantizeConfig
    from genie_cli.quantization.presets import find_preset

    file = opt.read(params)
    model_config = opt.model_config(file, used["model"])
    overrides = parse_overrides(used["quantize"].get("bits_override"))
    flags = opt.given({**used["quantize"], "bits_override": overrides}, settings)
    section = {**file.section("quantize"), **(file.scheme(scheme) if scheme is not None else {})}
    config = opt.stage_config(QuantizeConfig, section, flags, find_preset, "quantize")
    _run(model_config, config)


def _run(model_config: ModelConfig, config: QuantizeConfig) -> None:
    from genie_cli.commands.running import running
    from genie_cli.data.sources import names_source
    from genie_cli.models.graph.layers import weight_layers
    from genie_cli.models.graph.repeatable import check_repeatable
    from genie_cli.models.zoo import load_teacher
    from genie_cli.quantization.plan import check_loss, make_plan
    from genie_cli.runtime.user_code import code_file
    from genie_cli.student.overrides import layer_bits
    from genie_cli.student.protocol import find_protocol

    with running(config) as run:
        with run.checks():
            if run.workers.is_first:
                outputs = {"--out": config.out, "--performance": config.performance}
                images = code_file(config.images) if names_source(config.images) else config.images
                opt.check_files(outputs, {"--weights": model_config.weights, "--images": images}, ["--out"])
            find_protocol(config.protocol)
            teacher = load_teacher(model_config, None if config.data_free else _input_of(config.images))
            check_loss(teacher, config)
            check_repeatable(teacher, run.device)
            layer_bits([layer.name for layer in weight_layers(teacher.graph)], config.bits_override or {})
        run.tell_of(teacher)
        if config.data_free:
            with run.checks():
                plan = make_plan(teacher, config, run.device)
            _tell_of_plan(run, plan)
            _without_images(run, plan, teacher)
        else:
            _on_images(run, config, teacher)


def _tell_of_plan(run: Run, plan: QuantizationPlan) -> None:
    """Name, before the work, what stays in float and what is learned in unusually large pieces."""
    if plan.coverage.is_low:
        run.note(f"only a part of the network is quantized: {plan.coverage.described()}.", warning=True)
    elif plan.coverage.in_float or plan.coverage.batch_norms:
        run.note(f"quantized: {plan.coverage.described()}.")
    most = plan.config.max_unit_layers
    large = [f"{unit.name} ({len(unit.layers)} layers)" for unit in plan.units if len(unit.layers) > most]
    if large and plan.config.unit != "network":
        run.note(
            f"no cut brings these reconstruction units down to {most} layers, so that they take more memory and time: "
            f"{', '.join(large)}."
        )


def _input_of(images: str) -> RecordedInput | None:
    """The input that an image set records; None for anything else, of which `open_image_set` says what is wrong."""
    from genie_cli.artifacts.images import ImagesMetadata
    from genie_cli.artifacts.metadata import sniff, validate
    from genie_cli.data.sources import names_source
    from genie_cli.models.network_input import RecordedInput

    if names_source(images):
        return None
    try:
        metadata = validate(ImagesMetadata, sniff(Path(images)), Path(images))
    except InputError:
        return None
    return RecordedInput(images, metadata.teacher_sha256, metadata.input)


def _without_images(run: Run, plan: QuantizationPlan, teacher: Teacher) -> None:
    from genie_cli.quantization.data_free.quantize import quantize_without_images
    from genie_cli.quantization.disk_need import quantization_need
    from genie_cli.runtime.work import NO_WORK

    run.use_float32("the network is not run")
    run.check_room(plan.config.out, quantization_need(plan, 0, run.dtype, run.workers.size))
    with run.working(NO_WORK) as context:
        network = quantize_without_images(teacher, plan, context.report)
    if run.workers.is_first:
        _finish(run, teacher, None, network)


def _on_images(run: Run, config: QuantizeConfig, teacher: Teacher) -> None:
    from genie_cli.quantization.disk_need import quantization_need
    from genie_cli.quantization.images import calibration_images, open_image_set
    from genie_cli.quantization.plan import make_plan
    from genie_cli.quantization.quantize import quantize_network
    from genie_cli.quantization.reconstruction.batches import held_out_share
    from genie_cli.quantization.unsupported import unsupported_quantization

    workers = run.workers
    with run.checks():
        image_set = open_image_set(config.images, teacher, config.num_images, config.seed)
        run.tell_of(image_set)
        inputs = calibration_images(image_set, teacher, config.num_images, (workers.rank, workers.size))
        num_images = config.num_images or len(image_set)
        if config.reconstruct and round(len(inputs) * held_out_share(config)) >= len(inputs):
            raise UsageError(
                f"--holdout {config.holdout} of {len(inputs)} image(s) leaves none to learn on: lower it, or give more."
            )
        shared = min(config.batch_size, num_images) if config.reconstruct else num_images
        if workers.size > shared:
            raise UsageError(
                f"{workers.size} processes share {shared} images per step: start at most {shared}, "
                "or raise --batch-size."
            )
        plan = make_plan(teacher, config, run.device)
    _tell_of_plan(run, plan)
    made_for = {image_set.metadata.teacher_sha256, *image_set.metadata.other_teachers}
    if not made_for & {*teacher.known_sha256, None}:
        run.note(f"the images were made for another teacher, '{image_set.metadata.teacher}'.", warning=True)
    if config.reconstruct and config.batch_size > num_images:
        run.note(f"the batch of {config.batch_size} becomes {num_images}, the number of images.")
    determinants = {
        "command": "quantize",
        "config": config.determining(),
        "teacher": teacher.sha256,
        "input": teacher.input.model_dump(mode="json"),
        "images": image_set.sha256,
    }
    run.decide_arithmetic(
        config,
        "quantize",
        lambda context: unsupported_quantization(plan, inputs, context),
        lambda dtype: run.is_unfinished(config, config.out, determinants, dtype),
    )
    need = quantization_need(plan, len(inputs), run.dtype, workers.size)
    parts = (sum(plan.stages), "layers" if config.unit == "layer" else "units")
    with run.resumable(config, config.out, determinants, need, parts) as work:
        with run.working(work, _shorter(config)) as context:
            network = quantize_network(plan, inputs, context)
        if workers.is_first:
            _finish(run, teacher, image_set, network)


def _shorter(config: QuantizeConfig) -> list[str]:
    """The options that make a quantization shorter; without reconstruction it is short."""
    return ["a smaller --num-steps", *(["--patience"] if config.patience is None else [])]


def _finish(run: Run, teacher: Teacher, image_set: ImageSet | None, network: QuantizedNetwork) -> None:
    from genie_cli.artifacts.quantized import save_quantized
    from genie_cli.commands.display import duration, file_size, summary
    from genie_cli.quantization.export import to_artifact

    config = network.plan.config
    save_quantized(config.out, to_artifact(network, teacher, image_set, run.arithmetic(config)))
    size = sum(file.stat().st_size for file in config.out.iterdir())
    taken = sum(unit.num_steps for unit in network.units)
    run.write_performance(config.performance, {"steps": taken, "activations": network.memory})
    stored = ", ".join(f"{file_size(n)} ({place})" for place, n in network.memory.items() if n)
    recipe = f"{config.preset}, protocol {config.protocol}"
    if config.weight_grid != "asymmetric":
        recipe += f", {config.weight_grid} weights"
    recipe += "".join(f", {pattern}={w},{a or 'none'}" for pattern, (w, a) in (config.bits_override or {}).items())
    if config.reconstruct:
        by_layer = config.unit == "layer"
        recipe += f", {config.num_steps} steps per {'layer' if by_layer else 'unit'}"
        if config.patience is not None:
            recipe += f", {taken} of {config.num_steps * len(network.weights if by_layer else network.units)} taken"
    rows = {"teacher": f"{teacher.name} ({teacher.sha256[:12]})"}
    if image_set is not None:
        rows["images"] = f"{config.num_images or len(image_set)} of {config.images}"
    rows["recipe"] = recipe
    if network.units:
        rows["units"] = str(len(network.units))
    rows["quantized"] = network.plan.coverage.described()
    if network.output_errors:
        errors = network.output_errors
        told = ", ".join(f"{name} {error:.4f}" if len(errors) > 1 else f"{error:.4f}" for name, error in errors.items())
        rows["output"] = f"{told} of the network's own energy away from it, batch norms unfolded"
    rows["rewrites"] = f"{max(network.plan.checks.values()):.1e} from the network's own output at most"
    rows["device"] = run.description()
    rows["arithmetic"] = str(run.chosen_arithmetic)
    rows["time"] = duration(run.seconds)
    rows["memory"] = f"{run.peak_memory()} at most{f'; activations {stored}' if stored else ''}"
    rows["written"] = f"{config.out} ({file_size(size)})"
    own = "" if config.activation_bits is None else f"a{config.activation_bits}"
    summary(f"Quantized w{config.weight_bits}{own or ', activations in float'}", rows)
