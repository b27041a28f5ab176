"""Biases that learn with their unit (`bias_lr`)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from genie_cli.config import QuantizeConfig
from genie_cli.models.graph.layers import weight_layers
from genie_cli.models.graph.outputs import as_tuple
from genie_cli.models.graph.tensors import get_tensor, named_tensors
from genie_cli.models.teacher import Teacher, make_teacher
from genie_cli.quantization import finetuning as module
from genie_cli.quantization.plan import QuantizationPlan, make_plan
from genie_cli.quantization.quantize import quantize_network
from genie_cli.quantization.reconstruction.learned_unit import LearnedUnit
from genie_cli.quantization.reconstruction.parameters import UnitParameters
from genie_cli.quantization.reconstruction.task import UnitData, UnitTask, make_task
from genie_cli.quantization.result import QuantizedNetwork
from genie_cli.quantization.units.unit_graph import UnitGraph, cut_out
from genie_cli.runtime.context import RunContext
from genie_cli.runtime.progress import Event
from genie_cli.runtime.work import NO_WORK, Work
from genie_cli.student.modules import ActivationQuantizer
from genie_cli.work.folder import WorkFolder
from tests.support import CPU
from tests.support.networks import noise, plain_input
from tests.support.work import KilledError, MortalFolder


class Residual(nn.Module):
    """A block of two convolutions with a batch norm and a skip connection, a layer in front and one behind it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(1, 6, 3, padding=1)
        self.first, self.norm = nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.second = nn.Conv2d(6, 6, 3, padding=1)
        self.linear = nn.Linear(6, 4)
        nn.init.normal_(self.norm.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(x + self.second(F.relu(self.norm(self.first(x)))))
        return self.linear(x.mean((2, 3)) * 10)


class BiasReadTwice(nn.Module):
    """A bias that two layers add, and a third time for itself."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.second.bias = self.first.bias

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        return (self.second(x) + 3 * self.first.bias.view(1, -1, 1, 1)).mean((2, 3))


def silent(event: Event) -> None:
    """Nobody looks."""


def teacher() -> Teacher:
    return make_teacher("network", Residual().eval(), plain_input(1, 8))


def plan_of(owner: Teacher, **options: object) -> QuantizationPlan:
    settings = {"weight_bits": 2, "activation_bits": 2, "protocol": "ait", "num_steps": 30, "batch_size": 16, **options}
    return make_plan(owner, QuantizeConfig(**settings), CPU)  # type: ignore[arg-type]


def quantized(work: Work = NO_WORK, **options: object) -> QuantizedNetwork:
    context = replace(RunContext.alone(CPU, torch.float32, silent), work=work, log_every=10)
    return quantize_network(plan_of(teacher(), **options), noise(64, size=8), context)


def biases(graph: fx.GraphModule) -> dict[str, Tensor]:
    keys = [str(layer.bias_key) for layer in weight_layers(graph)]
    return {key: get_tensor(graph, key) for key in keys}


ROUNDED = {"rounding": "nearest", "activation_bits": 8, "drop_prob": 0.0, "num_steps": 60}
"""Weights of two bits that do not learn: their errors have a mean, which biases alone can take away."""


@pytest.mark.parametrize("unit", ["block", "layer"])
def test_they_learn_and_the_outputs_come_nearer(unit: str):
    start = biases(plan_of(teacher()).folded.graph)
    still, moved = (quantized(**ROUNDED, unit=unit, bias_lr=rate) for rate in (0.0, 0.02))
    assert all(torch.equal(own, start[key]) for key, own in biases(still.plan.folded.graph).items())
    assert all(not torch.equal(own, start[key]) for key, own in biases(moved.plan.folded.graph).items())
    assert sum(moved.output_errors.values()) < 0.95 * sum(still.output_errors.values())


def test_the_student_answers_with_them():
    network = quantized(bias_lr=0.05)
    images = noise(64, size=8)
    (logits,) = as_tuple(network.student()(images))
    (wanted,) = as_tuple(teacher().graph(images))
    error = (logits.double() - wanted.double()).square().sum() / wanted.double().square().sum()
    assert list(network.output_errors.values()) == pytest.approx([float(error)], rel=1e-4)


def task_of_the_block(plan: QuantizationPlan) -> tuple[UnitTask, UnitGraph]:
    unit = next(unit for unit in plan.units if len(unit.layers) == 2)
    part = cut_out(plan.folded.graph, unit, plan.bits, CPU)
    assert not part.bits.activations
    data = UnitData((), (), (), (1.0,), torch.empty(0))
    initial: dict[str, ActivationQuantizer] = {}
    return make_task(part, plan, initial, LearnedUnit({}, {}, 0), data, CPU), part


def test_their_gradient_is_that_of_the_written_out_block():
    plan = plan_of(teacher(), activation_bits=None, protocol="genie", bias_lr=0.01)
    task, part = task_of_the_block(plan)
    parameters = UnitParameters(task.weights, task.activations, plan.config, CPU, task.biases)
    made = parameters.make(torch.float32, None)
    task.use(made.weights, made.step_sizes, made.biases)
    x = noise(8, num_channels=6, size=8)
    (output,) = as_tuple(task.student(x))
    gradient = torch.autograd.grad(output.square().sum(), parameters.shifts)[0]
    first, second = (weight.detach() for weight in made.weights)
    own = [value.clone().requires_grad_() for value in biases(part.teacher).values()]
    inner = F.relu(F.conv2d(x, first, own[0], padding=1))
    behind = F.relu(x + F.conv2d(inner, second, own[1], padding=1)).mean((2, 3)) * 10
    behind.square().sum().backward()
    expected = torch.cat([bias.grad * bias.square().mean().sqrt() for bias in own])  # type: ignore[operator]
    assert torch.allclose(gradient, expected.detach(), rtol=1e-4, atol=1e-5)


def test_the_rate_is_the_configured_one_and_falls():
    plan = plan_of(teacher(), activation_bits=None, protocol="genie", bias_lr=0.25)
    task, _ = task_of_the_block(plan)
    groups = UnitParameters(task.weights, task.activations, plan.config, CPU, task.biases).groups()
    assert (groups[-1]["start"], groups[-1]["decays"]) == (0.25, True)


def test_a_bias_that_is_read_elsewhere_changes_where_it_was_learned_alone():
    owner = make_teacher("network", BiasReadTwice().eval(), plain_input(1, 8))
    plan = plan_of(owner, bias_lr=0.05)
    before = named_tensors(plan.folded.graph)
    network = quantize_network(plan, noise(32, size=8), RunContext.alone(CPU, torch.float32, silent))
    after = named_tensors(network.plan.folded.graph)
    changed = {key for key, value in before.items() if not torch.equal(value, after[key])}
    assert changed == biases(plan.folded.graph).keys()
    assert len(changed) == 2


@pytest.mark.parametrize("unit", ["block", "layer"])
def test_a_run_that_is_killed_ends_in_the_same_network(tmp_path: Path, unit: str):
    whole = quantized(bias_lr=0.01, unit=unit)
    with pytest.raises(KilledError):
        quantized(MortalFolder(tmp_path, 3), bias_lr=0.01, unit=unit)
    again = quantized(WorkFolder(tmp_path), bias_lr=0.01, unit=unit)
    graphs = [biases(network.plan.folded.graph) for network in (whole, again)]
    assert all(torch.equal(bias, graphs[1][key]) for key, bias in graphs[0].items())
    assert all(torch.equal(weight.codes, again.weights[name].codes) for name, weight in whole.weights.items())


def test_integer_kernels_get_the_learned_ones():
    still, moved = (quantized(bias_lr=rate, protocol="integer", weight_bits=8, activation_bits=8) for rate in (0, 0.05))
    first, second = (biases(network.plan.folded.graph) for network in (still, moved))
    assert any(not torch.allclose(bias, second[key], rtol=1e-3) for key, bias in first.items())
    assert second.keys() == first.keys()


def test_fine_tuning_compares_with_the_teacher_s_own_biases(monkeypatch: pytest.MonkeyPatch):
    answers, images = [], noise(8, size=8)
    make = module.finetuning_task

    def noted(*args: object) -> UnitTask:
        task: UnitTask = make(*args)  # type: ignore[arg-type]
        assert task.teacher is not None
        answers.append(as_tuple(task.teacher(images))[0])
        return task

    monkeypatch.setattr(module, "finetuning_task", noted)
    network = quantized(bias_lr=0.1, finetune_share=0.1)
    assert torch.allclose(answers[0], as_tuple(teacher().graph(images))[0], atol=1e-4)
    folded = network.plan.folded.graph
    assert not torch.allclose(as_tuple(folded(images))[0], as_tuple(teacher().graph(images))[0], atol=1e-4)
