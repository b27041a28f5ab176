"""Both stages in a few steps on small networks; on a pretended GPU with what they cost and leave there."""

from __future__ import annotations

import copy
import gc
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from genie_cli.config import ModelConfig, QuantizeConfig, SynthesizeConfig
from genie_cli.models import zoo
from genie_cli.models.teacher import Teacher, make_teacher
from genie_cli.quantization import presets as quantization_presets
from genie_cli.quantization.activations.budget import ActivationBudget
from genie_cli.quantization.plan import make_plan
from genie_cli.quantization.quantize import quantize_network
from genie_cli.runtime import cuda_graph
from genie_cli.runtime.context import RunContext
from genie_cli.runtime.progress import Event, Note, silent
from genie_cli.runtime.settings import configure_process
from genie_cli.student.build import insert_quantizers
from genie_cli.synthesis import presets as synthesis_presets
from genie_cli.synthesis.discrepancy import Student
from genie_cli.synthesis.synthesize import synthesize_images
from tests.support.networks import CellNet, noise, plain_input
from tests.support.pretended_gpu import CPU, GPU, PretendedGpu

NEVER = 10**9
SELDOM = 50
"""Steps between two readings of a loss: more than there are."""
WARMUP_STEPS = cuda_graph.WARMUP_STEPS
QUICKLY_FOUND = {"weight_range": "minmax", "activation_range": "minmax"}
"""First step sizes without a search, which is half of such a short run."""
PLENTY = ActivationBudget(1 << 30, 1 << 30)
SEARCHED = {"weight_range": "search", "activation_range": "search"}


class Small(nn.Module):
    """What the digits network lacks: max pooling, windows of average pooling that overlap, a plain chain."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv3, self.bn3 = nn.Conv2d(8, 12, 3, 2, 1, bias=False), nn.BatchNorm2d(12)
        self.fc = nn.Linear(12 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.bn1(self.conv1(x)).relu())
        x = x + self.bn2(self.conv2(x)).relu()
        x = self.bn3(self.conv3(x)).relu()
        return self.fc(F.adaptive_avg_pool2d(x, 2).flatten(1))


@cache
def network(name: str) -> Teacher:
    """``digits``, ``small`` or ``cells``, captured once; nobody changes it."""
    if name == "digits":
        return zoo.load_teacher(ModelConfig(name="digits_resnet"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make_teacher(name, CellNet() if name == "cells" else Small(), plain_input(3, 12))


def capture_networks() -> None:
    """Capture what tests use, before there is a pretended GPU: ``torch.export`` asks CUDA itself."""
    for name in ("digits", "small", "cells"):
        network(name)


# --- a stage on a context


def synthesis(context: RunContext, name: str = "digits", preset: str = "genie", **options: Any) -> dict[str, Tensor]:
    """Images and loss curve of a preset on a few images and steps, unless `options` say otherwise."""
    teacher, others, student = network(name), [], None
    needed: dict[str, Any] = {}
    if preset == "mixmix":
        others, needed = [teacher], {"other_teachers": (ModelConfig(name=name),)}
    if preset == "zaq":
        student, needed = Student(copy.deepcopy(_student(name)), context.device), {"student": Path("quantized")}
    few = {"preset": preset, "num_images": 4, "batch_size": 4, "num_steps": 9}
    config = SynthesizeConfig(**{**synthesis_presets.preset_options(preset), **needed, **few, **options})
    made = synthesize_images(teacher, config, context, others, student)
    rows = torch.tensor([[row.batch, row.step, row.loss, row.latent_lr] for row in made.log])
    return {"images": made.images, "log": rows}


def quantization(
    context: RunContext,
    name: str = "small",
    preset: str = "genie-m",
    budget: ActivationBudget = PLENTY,
    **options: Any,
) -> dict[str, Tensor]:
    """All that a preset learns on a few images in a few steps, unless `options` say otherwise."""
    teacher = network(name)
    few = {**QUICKLY_FOUND, "batch_size": 4, "warmup": 0.4}
    config = QuantizeConfig(**{**few, **quantization_presets.preset_options(preset), "num_steps": 16, **options})
    plan = replace(make_plan(teacher, config, context.device), budget=budget)
    made = quantize_network(plan, _images(teacher), context)
    learned = {name: activation.step_size for name, activation in made.activations.items()}
    for layer, weight in made.weights.items():
        learned |= {f"{layer}.{key}": value for key, value in weight.state_dict().items()}
    return learned


def as_bytes(tensors: Mapping[str, Tensor]) -> dict[str, bytes]:
    """The tensors, which are on the host, as bytes."""
    return {
        name: tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        for name, tensor in tensors.items()
    }


@contextmanager
def steps_recorded(is_recorded: bool) -> Iterator[None]:
    """Record steps after the warm-up, or compute each one anew."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda_graph, "WARMUP_STEPS", WARMUP_STEPS if is_recorded else NEVER)
        yield


@cache
def _student(name: str) -> fx.GraphModule:
    teacher = network(name)
    plan = make_plan(teacher, QuantizeConfig(**quantization_presets.preset_options("minmax")), CPU)
    made = quantize_network(plan, _images(teacher), RunContext.alone(CPU, torch.float32, silent))
    return insert_quantizers(plan.folded.graph, plan.bits, made.weights, made.activations).eval()


def _images(teacher: Teacher) -> Tensor:
    return noise(12, teacher.input.num_channels, teacher.input.size)


# --- a stage on a pretended GPU


@dataclass
class Run:
    """A stage on a pretended GPU.

    Attributes:
        result: all that it has made, as bytes.
        notes: what it has told the user.
        warned: what Python has warned of.
        gpu: the device, with its counts.
        stale: graphs of gradients that were alive when a recording began.
        held: other recordings that held memory when one began, for each.
        left: bytes on the device behind the run.
    """

    gpu: PretendedGpu
    result: dict[str, bytes] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    warned: list[str] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)
    held: list[int] = field(default_factory=list)
    left: int = 0


@contextmanager
def pretended(**options: Any) -> Iterator[PretendedGpu]:
    """A pretended GPU as the commands set it up."""
    with PretendedGpu(**options) as gpu:
        configure_process(GPU, deterministic=True)
        yield gpu


def run(
    stage: Callable[..., dict[str, Tensor]],
    *own: str,
    dtype: torch.dtype = torch.float32,
    is_recorded: bool = True,
    gpu_options: Mapping[str, Any] | None = None,
    context_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> Run:
    """Run `synthesis` or `quantization`, its losses read as seldom as can be, and look at what it leaves.

    Args:
        stage: which of the two.
        own: network and preset, or their defaults.
        dtype: arithmetic.
        is_recorded: steps are recorded after the warm-up.
        gpu_options: of `PretendedGpu`.
        context_options: fields of the run context that differ.
        options: of the stage.
    """
    with (
        warnings.catch_warnings(record=True) as warned,
        pretended(**(gpu_options or {})) as gpu,
        steps_recorded(is_recorded),
    ):
        warnings.simplefilter("always")
        made = Run(gpu)

        def look() -> None:
            made.stale += _gradient_graphs()
            made.held.append(sum(not graph.was_reset for graph in gpu.graphs))

        def report(event: Event) -> None:
            if isinstance(event, Note):
                made.notes.append(event.message)

        gpu.on_capture.append(look)
        context = RunContext.alone(torch.device("cuda"), dtype, report)
        context = replace(context, **{"log_every": SELDOM, **(context_options or {})})
        made.result = as_bytes(stage(context, *own, **options))
        gc.collect()
        made.warned, made.left = [str(each.message) for each in warned], gpu.allocated
        return made


def _gradient_graphs() -> Iterator[str]:
    """Tensors that still know how they were computed, wherever they are."""
    with torch._C.DisableTorchFunction():
        for each in gc.get_objects():
            if issubclass(type(each), Tensor) and each.grad_fn is not None:
                yield f"{each.grad_fn.name()} {tuple(each.shape)}"
