"""Accuracy on real networks, at as many of the paper's steps as the time allows."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from measuring import Stopwatch

from genie_cli.config import ModelConfig, QuantizeConfig, SynthesizeConfig
from genie_cli.data.sources import open_data
from genie_cli.evaluation.evaluate import evaluate
from genie_cli.evaluation.metrics.choose import Wanted, choose_metrics
from genie_cli.evaluation.metrics.network_outputs import NetworkOutputs
from genie_cli.models.graph.placement import move
from genie_cli.models.teacher import Teacher
from genie_cli.models.zoo import load_teacher
from genie_cli.quantization.plan import make_plan
from genie_cli.quantization.presets import preset_options as quantization_options
from genie_cli.quantization.quantize import quantize_network
from genie_cli.quantization.result import QuantizedNetwork
from genie_cli.synthesis.presets import preset_options as synthesis_options
from genie_cli.synthesis.synthesize import synthesize_images
from gpu.bench import Bench, SkippedError
from gpu.stages import context

_PROBE_STEPS = 60
"""Steps per batch and per unit of the short run that tells how long a step takes."""
_CAREFUL = 0.8
"""Of the seconds that are left, those that the steps are chosen for."""


@dataclass(frozen=True)
class Recipe:
    """A zero-shot quantization.

    Attributes:
        name: what the findings call it.
        images: preset of the synthesis.
        quantizer: preset of the quantization.
        bits: of weights and activations.
    """

    name: str
    images: str
    quantizer: str
    bits: int

    def configs(self, bench: Bench, share: float | None) -> tuple[SynthesizeConfig, QuantizeConfig]:
        """Both stages, with this share of their presets' steps, or with those of a short run (None)."""
        synthesis = {**synthesis_options(self.images), "num_images": bench.size(128, 8)}
        bits = {"weight_bits": self.bits, "activation_bits": self.bits}
        quantization = {**quantization_options(self.quantizer), **bits}
        whole = [SynthesizeConfig(**synthesis).num_steps, QuantizeConfig(**quantization).num_steps]
        short = bench.size(_PROBE_STEPS, 6)
        steps = [short if share is None else max(2, round(share * num)) for num in whole]
        return (
            SynthesizeConfig(**{**synthesis, "num_steps": steps[0]}),
            QuantizeConfig(**{**quantization, "num_steps": steps[1]}),
        )


LITE = Recipe("W4A4", "genie-fast", "genie-m", 4)
M1 = Recipe("W2A2, M1", "zeroq", "qdrop", 2)
M7 = Recipe("W2A2, M7", "genie", "genie-m", 2)


def accuracy(bench: Bench) -> None:
    """EfficientNet-Lite0 zero-shot at W4A4; on CIFAR ResNet-20 the first and the last row of the paper's Table 2."""
    kits = bench.options.kits
    if kits is None:
        raise SkippedError("needs --kits")
    with bench.part("EfficientNet-Lite0"):
        _efficientnet(bench, kits / "imagenet", time.monotonic() + 0.4 * bench.seconds_left())
    with bench.part("CIFAR ResNet-20"):
        _cifar(bench, kits / "cifar10", time.monotonic() + bench.seconds_left())


def _efficientnet(bench: Bench, kit: Path, deadline: float) -> None:
    model = ModelConfig(
        name=f"{kit / 'efficientnet_lite.py'}:efficientnet_lite0",
        weights=str(kit / "efficientnet_lite0.safetensors"),
        mean=(0.498,) * 3,
        std=(0.502,) * 3,
        input_size=bench.size(224, 32),
    )
    decoding = bench.size(12.0, 0.0)  # seconds for 1000 files, in one process
    _measure(
        bench, "EfficientNet-Lite0", load_teacher(model), (LITE,), f"imagefolder:{kit / 'images'}", deadline - decoding
    )


def _cifar(bench: Bench, kit: Path, deadline: float) -> None:
    model = ModelConfig(name="cifar_resnet20", weights=str(kit / "resnet20.safetensors"))
    _measure(bench, "CIFAR ResNet-20", load_teacher(model), (M1, M7), str(kit / "test.safetensors"), deadline)


def _measure(
    bench: Bench, name: str, teacher: Teacher, recipes: tuple[Recipe, ...], data: str, deadline: float
) -> None:
    """Run the recipes by the deadline, at the same share of their steps, and tell their accuracies."""
    share = _share_that_fits(bench, teacher, recipes, deadline)
    for recipe in recipes:
        started = time.monotonic()
        configs = recipe.configs(bench, share)
        network, _ = _quantized(bench, teacher, configs)
        seconds = time.monotonic() - started
        labeled = open_data(data, teacher.input, num_images=bench.size(None, 16))
        student, full = (move(graph, bench.device) for graph in (network.student(), copy.deepcopy(teacher.graph)))
        in_float32 = context(bench, dtype=torch.float32)
        metrics = choose_metrics(Wanted("classification"), labeled, NetworkOutputs.of(teacher), has_teacher=True)
        found = evaluate(student, labeled, metrics, 128, in_float32, full).as_json()
        bench.figure(
            f"{name}, {recipe.name}",
            {
                "top-1": found["top1"],
                "float": found["teacher_top1"],
                "agreement": found["agreement"],
                "images": configs[0].num_images,
                "steps per batch": configs[0].num_steps,
                "steps per unit": configs[1].num_steps,
                "share of the preset's steps": share,
                "s": seconds,
            },
        )


def _share_that_fits(bench: Bench, teacher: Teacher, recipes: tuple[Recipe, ...], deadline: float) -> float:
    """The share of the steps, up to all, at which the recipes end by the deadline, told by a short run of the last."""
    started = time.monotonic()
    short, whole = (recipes[-1].configs(bench, share) for share in (None, 1.0))
    _, seconds_per_step = _quantized(bench, teacher, short, log_every=bench.size(20, 2))
    elapsed = time.monotonic() - started
    fixed = elapsed - sum(config.num_steps * took for config, took in zip(short, seconds_per_step, strict=True))
    steps = sum(config.num_steps * took for config, took in zip(whole, seconds_per_step, strict=True))
    per_recipe = _CAREFUL * (deadline - time.monotonic()) / len(recipes)
    return bench.size(min(1.0, max(0.0, per_recipe - fixed) / steps), 0.0)


def _quantized(
    bench: Bench, teacher: Teacher, configs: tuple[SynthesizeConfig, QuantizeConfig], log_every: int | None = None
) -> tuple[QuantizedNetwork, tuple[float, float]]:
    """The network, and the seconds of a step of the one batch and of a step of all units."""
    synthesis, quantization = (Stopwatch() for _ in range(2))
    images = synthesize_images(teacher, configs[0], context(bench, synthesis, log_every=log_every)).images
    plan = make_plan(teacher, configs[1], bench.device)
    network = quantize_network(plan, images, context(bench, quantization, log_every=log_every))
    return network, (sum(synthesis.medians().values()), sum(quantization.medians().values()))
