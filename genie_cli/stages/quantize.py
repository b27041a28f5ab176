"""Quantization: from a network, images and a configuration to a quantized network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from genie_cli.artifacts.images import ImageSet
from genie_cli.artifacts.metadata import Arithmetic
from genie_cli.artifacts.quantized import QuantizedArtifact
from genie_cli.artifacts.quantized_folder import folder_files
from genie_cli.config import QuantizeConfig
from genie_cli.errors import UsageError
from genie_cli.models.graph.fingerprint import graph_sha256
from genie_cli.models.graph.layers import weight_layers
from genie_cli.models.graph.repeatable import check_repeatable
from genie_cli.models.teacher import Teacher
from genie_cli.quantization.activations.passing import ImageRows
from genie_cli.quantization.augmentation import AugmentedImages
from genie_cli.quantization.bits.size import folder_size
from genie_cli.quantization.data_free.quantize import quantize_without_images
from genie_cli.quantization.disk_need import quantization_need
from genie_cli.quantization.export import recipe_hashes, to_artifact
from genie_cli.quantization.images import calibration_images
from genie_cli.quantization.learned.roundings import check_rounding
from genie_cli.quantization.plan import QuantizationPlan, check_loss, make_plan
from genie_cli.quantization.quantize import quantize_network
from genie_cli.quantization.reconstruction.batches import held_out_share
from genie_cli.quantization.result import QuantizedNetwork
from genie_cli.quantization.unsupported import unsupported_quantization
from genie_cli.runtime.determinism import derive_seed
from genie_cli.runtime.work import NO_WORK
from genie_cli.stages.bits import Search, learned_in_rounds, searched
from genie_cli.stages.run import Run
from genie_cli.student.overrides import layer_bits
from genie_cli.student.protocol import find_protocol


@dataclass(frozen=True)
class Quantized:
    """The result of a quantization, before it is written.

    Attributes:
        teacher: the network that was quantized.
        images: those that it was quantized on; None: on none.
        network: the quantized one.
        search: how its bits were found; None: the recipe said them.
    """

    teacher: Teacher
    images: ImageSet | None
    network: QuantizedNetwork
    search: Search | None = None

    def artifact(self, run: Run) -> QuantizedArtifact:
        """Integers, step sizes and all other tensors, with where they come from.

        Where the bits were searched within a size, the details for a report are left out if they do not fit.
        """
        artifact = to_artifact(self.network, self.teacher, self.images, run.arithmetic(self.network.plan.config))
        most = None if self.search is None else self.search.choice.problem.budget.num_bytes
        if most is not None and sum(map(len, folder_files(artifact).values())) > most:
            return replace(artifact, details=None)
        return artifact


@contextmanager
def quantized(
    run: Run,
    config: QuantizeConfig,
    open_network: Callable[[], Teacher],
    open_images: Callable[[Teacher], ImageSet],
) -> Iterator[Quantized]:
    """Quantize a network; inside of the block, in which the result is to be written, unfinished work is kept.

    Args:
        run: what to run on.
        config: the recipe.
        open_network: opens the network.
        open_images: opens its calibration images; not called where the recipe needs none.

    Raises:
        UsageError: a protocol, bits or a number of images that do not go with the network or the images.
        InputError: a network or images that cannot be used.
        NumbersError: a value that is not finite, in float32 too.
    """
    with run.checks():
        find_protocol(config.protocol)
        check_rounding(config.rounding)
        teacher = open_network()
        check_loss(teacher, config)
        check_repeatable(teacher, run.device)
        layer_bits([layer.name for layer in weight_layers(teacher.graph)], config.bits_override or {})
    run.tell_of(teacher)
    if config.data_free:
        with run.checks():
            plan = make_plan(teacher, config, run.device)
        _tell_of_plan(run, plan, None)
        yield Quantized(teacher, None, _without_images(run, plan, teacher))
    else:
        with _on_images(run, config, teacher, open_images) as result:
            yield result


def _without_images(run: Run, plan: QuantizationPlan, teacher: Teacher) -> QuantizedNetwork:
    run.use_float32("the network is not run")
    run.check_room(plan.config.out, quantization_need(plan, 0, run.dtype, run.workers.size))
    with run.working(NO_WORK) as context:
        return quantize_without_images(teacher, plan, context.report)


@contextmanager
def _on_images(
    run: Run, config: QuantizeConfig, teacher: Teacher, open_images: Callable[[Teacher], ImageSet]
) -> Iterator[Quantized]:
    with run.checks():
        images = open_images(teacher)
        run.tell_of(images)
        given = calibration_images(images, teacher, config.num_images, (run.workers.rank, run.workers.size))
        _check_shares(run, config, len(given), len(images))
        inputs: ImageRows = given
        if config.reconstruct and config.augmentation != "none":
            inputs = AugmentedImages(given, config.augmentation, derive_seed(config.seed, run.workers.rank))
        plan = make_plan(teacher, config, run.device)
    _tell_of_plan(run, plan, images)
    _tell_of_images(run, config, images, teacher)
    search = None
    if config.has_target:
        search = searched(run, plan, given, images)
        plan = search.plan
    determinants: dict[str, Any] = {
        "command": "quantize",
        "config": config.determining(),
        "teacher": teacher.sha256,
        "computation": graph_sha256(teacher.graph),
        "input": teacher.input.model_dump(mode="json"),
        "images": images.sha256,
        **_own_bits(plan.config),
        **_own_code(plan.config),
    }
    with _learned(run, plan, inputs, determinants, search) as network:
        yield Quantized(teacher, images, network, search)


def _own_bits(config: QuantizeConfig) -> dict[str, Any]:
    """The table of bits, where there is one: artifacts have it in the entries of their layers and sites."""
    return {} if config.bits_table is None else {"bits_table": config.bits_table.model_dump(mode="json")}


def _own_code(config: QuantizeConfig) -> dict[str, Any]:
    """Hashes of what the user registered, where the recipe takes any of it."""
    hashes = recipe_hashes(config)
    return {"plugins": hashes} if hashes else {}


@contextmanager
def _learned(
    run: Run,
    plan: QuantizationPlan,
    inputs: ImageRows,
    determinants: dict[str, Any],
    search: Search | None,
) -> Iterator[QuantizedNetwork]:
    config = plan.config
    run.decide_arithmetic(
        config,
        "quantize",
        lambda context: unsupported_quantization(plan, inputs, context),
        lambda dtype: run.is_unfinished(config, config.out, determinants, dtype),
    )
    need = quantization_need(plan, len(inputs), run.dtype, run.workers.size)
    has_repair = search is not None and config.repair and config.reconstruct
    if has_repair:  # the units of both rounds are kept
        need = replace(need, beside_output=2 * need.beside_output)
    num_parts = sum(plan.stages) * (2 if has_repair else 1) + (plan.finetuned is not None)
    parts = (num_parts, "layers" if config.unit == "layer" else "units")
    with run.keeping(config, config.out, determinants, need, parts) as work:
        with run.working(work, _shorter(config)) as context:
            if search is not None and has_repair:
                network = learned_in_rounds(search, inputs, context)
            else:
                network = quantize_network(plan, inputs, context)
        yield network


def _check_shares(run: Run, config: QuantizeConfig, num_own: int, num_found: int) -> None:
    """Refuse images of which none is left to learn on, or fewer than processes share.

    Args:
        run: the processes.
        config: the recipe.
        num_own: images of this process.
        num_found: images of the set.
    """
    if config.reconstruct and round(num_own * held_out_share(config)) >= num_own:
        raise UsageError(
            f"--holdout {config.holdout} of {num_own} image(s) leaves none to learn on: lower it, or give more."
        )
    num_images = config.num_images or num_found
    shared = min(config.batch_size, num_images) if config.reconstruct else num_images
    if run.workers.size > shared:
        raise UsageError(
            f"{run.workers.size} processes share {shared} images per step: start at most {shared}, "
            "or raise --batch-size."
        )


def _tell_of_images(run: Run, config: QuantizeConfig, images: ImageSet, teacher: Teacher) -> None:
    made_for = {images.metadata.teacher_sha256, *images.metadata.other_teachers}
    if not made_for & {*teacher.known_sha256, None}:
        run.note(f"the images were made for another teacher, '{images.metadata.teacher}'.", warning=True)
    if config.augmentation != "none" and not config.reconstruct:
        run.note("--augmentation changes nothing here: this recipe learns on no images.")
    num_images = config.num_images or len(images)
    if config.reconstruct and config.batch_size > num_images:
        run.note(f"the batch of {config.batch_size} becomes {num_images}, the number of images.")


def _tell_of_plan(run: Run, plan: QuantizationPlan, images: ImageSet | None) -> None:
    """Name, before the work, what stays in float and what is learned in unusually large pieces."""
    run.planned(lambda: _plan_facts(plan, images))
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


def _plan_facts(plan: QuantizationPlan, images: ImageSet | None) -> dict[str, Any]:
    """The plan in plain values."""
    config, num_parts = plan.config, sum(plan.stages)
    facts: dict[str, Any] = {
        "teacher": plan.teacher.name,
        "preset": config.preset,
        "protocol": config.protocol,
        "layers": len(plan.bits.weights),
        "units": len(plan.units),
        "steps": config.num_steps * num_parts + config.finetune_steps if config.reconstruct else 0,
        "quantized": plan.coverage.described(),
    }
    if images is not None:
        facts["num_images"] = config.num_images or len(images)
    if plan.budget is not None:
        facts["memory_budget_bytes"] = plan.budget.device + plan.budget.host
    if not config.has_target:
        arithmetic = Arithmetic(dtype="float32", kernels="", deterministic=config.deterministic)
        size = folder_size(plan, images, arithmetic)
        facts["folder_bytes"] = size.num_bytes(plan.bits.weights)
    return facts


def _shorter(config: QuantizeConfig) -> list[str]:
    """The options that make a quantization shorter; without reconstruction it is short."""
    return ["a smaller --num-steps", *(["--patience"] if config.patience is None else [])]
