"""Fine-tuning: step sizes and biases of finished codes, learned together from the network's outputs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, fx, nn
from torch.nn import functional as F

from genie_cli.config import QuantizeConfig
from genie_cli.models.graph.layers import weight_layers
from genie_cli.models.graph.outputs import as_tuple
from genie_cli.models.graph.tensors import get_tensor
from genie_cli.models.teacher import Teacher, make_teacher
from genie_cli.quantization import finetuning
from genie_cli.quantization.augmentation import mixed_with_next
from genie_cli.quantization.finetuning import finetuning_config, finetuning_task, rate_share
from genie_cli.quantization.learned.scaled_weight import ScaledWeight
from genie_cli.quantization.plan import QuantizationPlan, make_plan
from genie_cli.quantization.quantize import quantize_network
from genie_cli.quantization.reconstruction.learned_unit import LearnedUnit
from genie_cli.quantization.reconstruction.parameters import UnitParameters
from genie_cli.quantization.reconstruction.task import UnitData
from genie_cli.quantization.result import QuantizedNetwork
from genie_cli.quantization.units.unit_graph import cut_out
from genie_cli.runtime.context import RunContext
from genie_cli.runtime.progress import Event, Note
from genie_cli.runtime.work import NO_WORK, Work
from genie_cli.student.formats import weight_format
from genie_cli.student.modules import IntegerWeight
from genie_cli.work.folder import WorkFolder
from tests.support import CPU
from tests.support.networks import noise, plain_input
from tests.support.work import KilledError, MortalFolder


class Classifier(nn.Module):
    """Two convolutions with batch norms, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm = nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.linear = nn.Linear(8, 5)
        nn.init.normal_(self.norm.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.first(x)))
        return self.linear(F.relu(self.second(x)).mean((2, 3)) * 20)


def silent(event: Event) -> None:
    """Nobody looks."""


def teacher() -> Teacher:
    return make_teacher("network", Classifier().eval(), plain_input(1, 8))


def plan_of(owner: Teacher, **options: object) -> QuantizationPlan:
    settings = {"weight_bits": 2, "activation_bits": 2, "protocol": "ait", "num_steps": 20, "batch_size": 16, **options}
    return make_plan(owner, QuantizeConfig(**settings), CPU)  # type: ignore[arg-type]


def quantized(**options: object) -> QuantizedNetwork:
    return quantize_network(
        plan_of(teacher(), **options), noise(64, size=8), RunContext.alone(CPU, torch.float32, silent)
    )


def answers(network: QuantizedNetwork, images: Tensor) -> Tensor:
    (logits,) = as_tuple(network.student()(images))
    return logits


@given(seed=st.integers(0, 2**16), bits=st.integers(2, 8), grid=st.sampled_from(["asymmetric", "symmetric"]))
def test_a_scaled_weight_starts_at_its_integers_and_has_their_gradient(seed: int, bits: int, grid: str):
    torch.manual_seed(seed)
    format = weight_format(bits, grid)  # type: ignore[arg-type]
    codes = torch.randint(format.quant_min, format.quant_max + 1, (3, 2, 2))
    zero_point = torch.randint(format.quant_min, format.quant_max + 1, (3, 1)) * (grid == "asymmetric")
    integer = IntegerWeight(codes, torch.rand(3, 1) + 0.1, zero_point, format)
    learned = ScaledWeight(integer)
    step_size = learned.start.clone().requires_grad_()
    parts = learned.parts(learned.elements, step_size)
    assert torch.equal(parts.weight, integer())
    direction = torch.randn(3, 2, 2)
    (expected,) = torch.autograd.grad(((codes - zero_point.view(3, 1, 1)) * step_size * direction).sum(), step_size)
    assert torch.allclose((parts.step_slope * direction).sum((1, 2), keepdim=True), expected)
    assert not parts.slope.any()
    learned.offset.fill_(1.0)
    moved = learned.harden()
    assert torch.equal(moved.codes, integer.codes)
    # one step moves the outermost grid point by at most a twentieth of a step size
    reach = (moved.scale - integer.scale).abs() * (format.quant_max - format.quant_min)
    assert bool((reach <= 0.0501 * integer.scale).all())


def test_images_are_mixed_with_the_next_of_the_batch():
    images = torch.tensor([0.0, 1.0, 10.0, 100.0]).view(4, 1, 1, 1)
    expected = [0.875 * 0 + 0.125 * 100, 0.625 * 1 + 0.375 * 0, 0.375 * 10 + 0.625 * 1, 0.125 * 100 + 0.875 * 10]
    assert torch.allclose(mixed_with_next(images).flatten(), torch.tensor(expected))


@given(num=st.integers(1, 9), seed=st.integers(0, 2**16))
def test_a_mixed_batch_keeps_weights_that_sum_to_one(num: int, seed: int):
    images = torch.randn(num, 2, 3, generator=torch.Generator().manual_seed(seed))
    mixed = mixed_with_next(images)
    assert mixed.shape == images.shape
    assert torch.allclose(mixed_with_next(images + 5.0), mixed + 5.0, atol=1e-5)
    lowest, highest = torch.minimum(images, images.roll(1, 0)), torch.maximum(images, images.roll(1, 0))
    assert bool(((mixed >= lowest - 1e-6) & (mixed <= highest + 1e-6)).all())


def test_codes_stay_and_the_answers_come_nearer():
    plain, tuned = quantized(), quantized(finetune_share=1.0)
    before, after = (
        {key: get_tensor(network.plan.folded.graph, key) for key in keys(network.plan.folded.graph)}
        for network in (plain, tuned)
    )
    assert all(torch.equal(plain.weights[name].codes, tuned.weights[name].codes) for name in plain.weights)
    assert all(not torch.equal(plain.weights[name].scale, tuned.weights[name].scale) for name in plain.weights)
    assert all(
        float(plain.activations[s].step_size) != float(tuned.activations[s].step_size) for s in plain.activations
    )
    assert before.keys() == after.keys() and all(not torch.equal(before[key], after[key]) for key in before)
    images = noise(256, size=8, seed=5)
    wanted = as_tuple(teacher().graph(images))[0].log_softmax(1)
    losses = [
        float(F.kl_div(answers(network, images).log_softmax(1), wanted, log_target=True, reduction="batchmean"))
        for network in (plain, tuned)
    ]
    assert losses[1] < losses[0]
    assert plain.finetuning is None
    assert tuned.finetuning is not None and tuned.finetuning.kept and tuned.finetuning.num_steps == 20
    report = (tuned.finetuning.loss_before, tuned.finetuning.loss_after)
    assert report == pytest.approx([plain_mixed_loss(network) for network in (plain, tuned)], rel=1e-4)
    assert tuned.output_errors.keys() == plain.output_errors.keys()


@pytest.mark.parametrize("protocol", ["ait", "integer"])
def test_what_makes_it_worse_is_left_out(protocol: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(finetuning, "BIAS_RATE", 1000.0)
    events: list[Event] = []
    plain = quantized(protocol=protocol)
    plan = plan_of(teacher(), finetune_share=1.0, protocol=protocol)
    tuned = quantize_network(plan, noise(64, size=8), RunContext.alone(CPU, torch.float32, events.append))
    notes = [event.message for event in events if isinstance(event, Note)]
    assert any("the fine-tuning at the end is left out" in message for message in notes)
    assert tuned.finetuning is not None and not tuned.finetuning.kept
    assert tuned.finetuning.loss_after > tuned.finetuning.loss_before
    for name, weight in plain.weights.items():
        assert torch.equal(weight.codes, tuned.weights[name].codes)
        assert torch.equal(weight.scale, tuned.weights[name].scale)
    for name, quantizer in plain.activations.items():
        assert torch.equal(quantizer.step_size, tuned.activations[name].step_size)
    images = noise(32, size=8, seed=5)
    assert torch.equal(answers(plain, images), answers(tuned, images))
    assert plain.output_errors == tuned.output_errors


def plain_mixed_loss(network: QuantizedNetwork) -> float:
    """The KL divergence on the images that `quantized` learns from, each mixed with the one before it of its batch."""
    total = 0.0
    for batch in noise(64, size=8).split(16):  # the batch size of `plan_of`
        share = (torch.arange(16) + 0.5).view(-1, 1, 1, 1) / 16
        mixed = (1 - share) * batch + share * torch.cat([batch[-1:], batch[:-1]])
        wanted = as_tuple(teacher().graph(mixed))[0].double().log_softmax(1)
        found = answers(network, mixed).double().log_softmax(1)
        total += float((wanted.exp() * (wanted - found)).sum())
    return total / 64


def keys(graph: fx.GraphModule) -> list[str]:
    return [layer.bias_key for layer in weight_layers(graph) if layer.bias_key is not None]


def test_the_errors_at_the_outputs_are_those_of_the_tuned_network():
    owner = teacher()
    images = noise(64, size=8)
    plan = plan_of(owner, finetune_share=1.0)
    network = quantize_network(plan, images, RunContext.alone(CPU, torch.float32, silent))
    wanted = as_tuple(owner.graph(images))[0].double()
    error = (answers(network, images).double() - wanted).square().sum() / wanted.square().sum()
    assert list(network.output_errors.values()) == pytest.approx([float(error)], rel=1e-4)


class TwoOutputs(nn.Module):
    """Class scores, returned in front of what they are computed from."""

    def __init__(self, num_scores: int) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first, self.norm = nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.embed, self.scores = nn.Linear(8, 5), nn.Linear(5, num_scores)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        embedding = self.embed(F.relu(self.norm(self.first(x))).mean((2, 3)) * 20)
        return {"logits": self.scores(F.relu(embedding)), "embedding": embedding}


@pytest.mark.parametrize("num_scores", [5, 3])
def test_outputs_that_are_returned_in_another_order_than_computed_stay_apart(num_scores: int):
    owner = make_teacher("network", TwoOutputs(num_scores).eval(), plain_input(1, 8))
    images = noise(64, size=8)
    plan = plan_of(owner, finetune_share=1.0, weight_bits=8, activation_bits=8)
    network = quantize_network(plan, images, RunContext.alone(CPU, torch.float32, silent))
    found = [value.double() for value in as_tuple(network.student()(images))]
    wanted = [value.double() for value in as_tuple(owner.graph(images))]
    errors = [float((a - b).square().sum() / b.square().sum()) for a, b in zip(found, wanted, strict=True)]
    assert list(network.output_errors.values()) == pytest.approx(errors, rel=1e-3)
    assert max(errors) < 0.01


def test_each_of_several_outputs_counts():
    owner = make_teacher("network", TwoOutputs(5).eval(), plain_input(1, 8))
    assert owner.logits is not None and finetuning_config(QuantizeConfig(), owner).loss == "squared"
    assert finetuning_config(QuantizeConfig(), teacher()).loss == "kl"
    images = noise(64, size=8)
    plain, tuned = (
        quantize_network(
            plan_of(owner, finetune_share=share, num_steps=200), images, RunContext.alone(CPU, torch.float32, silent)
        )
        for share in (0.0, 1.0)
    )
    assert tuned.finetuning is not None and tuned.finetuning.kept
    for name, error in tuned.output_errors.items():
        assert error < 1.2 * plain.output_errors[name], name


def test_the_gradient_is_that_of_the_whole_network():
    """One step's gradients against autograd through a network that is written out."""
    owner = teacher()
    plan = plan_of(owner, activation_bits=None, protocol="genie", finetune_share=0.5)
    finished = quantize_network(plan, noise(16, size=8), RunContext.alone(CPU, torch.float32, silent))
    config = finetuning_config(
        replace(plan, config=plan.config.model_copy(update={"finetune_share": 0.5})).config, owner
    )
    whole = plan_of(owner, activation_bits=None, protocol="genie", finetune_share=0.5).finetuned
    assert whole is not None
    graph = cut_out(plan.folded.graph, whole, plan.bits, CPU)
    own = dict(finished.weights)
    starts = {
        str(layer.bias_key): get_tensor(plan.folded.graph, str(layer.bias_key))
        for layer in weight_layers(plan.folded.graph)
    }
    data = UnitData((), (), (), (1.0,), torch.empty(0))
    task = finetuning_task(graph, LearnedUnit(own, dict(finished.activations), 0), starts, data, 200, CPU)
    few = finetuning_task(graph, LearnedUnit(own, dict(finished.activations), 0), starts, data, 50, CPU)
    config = finetuning_config(plan.config, owner)
    parameters = UnitParameters(task.weights, task.activations, config, CPU, task.biases, task.rate_share)
    slow = UnitParameters(few.weights, few.activations, config, CPU, few.biases, few.rate_share)
    assert [group["start"] for group in parameters.groups()] == [1.0, 0.01]  # of the largest, and of the biases' size
    assert [group["start"] for group in slow.groups()] == [0.5, 0.005]  # 50 steps of 100
    made = parameters.make(torch.float32, None)
    task.use(made.weights, made.step_sizes, made.biases)
    images = noise(8, size=8)
    (output,) = as_tuple(task.student(images))
    gradients = torch.autograd.grad(output.square().sum(), parameters.learned())
    layers = {layer.name: layer for layer in weight_layers(plan.folded.graph)}
    scales = {name: weight.scale.clone().requires_grad_() for name, weight in own.items()}
    values = {
        name: (weight.codes.float() - weight.zero_point.view(-1, *[1] * (weight.codes.dim() - 1)))
        * scales[name].view(-1, *[1] * (weight.codes.dim() - 1))
        for name, weight in own.items()
    }
    biases = {
        name: get_tensor(plan.folded.graph, layers[name].bias_key).clone().requires_grad_()  # type: ignore[arg-type]
        for name in own
    }
    first, second, linear = own
    x = F.relu(F.conv2d(images, values[first], biases[first], padding=1))
    x = F.relu(F.conv2d(x, values[second], biases[second], padding=1)).mean((2, 3)) * 20
    F.linear(x, values[linear], biases[linear]).square().sum().backward()
    units = [weight.offset_scale.flatten() for weight in task.weights.values()]
    expected = torch.cat([scales[name].grad.flatten() * unit for name, unit in zip(own, units, strict=True)])  # type: ignore[union-attr]
    assert torch.allclose(gradients[0], expected, rtol=1e-4, atol=1e-5)
    shifts = torch.cat([biases[name].grad * biases[name].square().mean().sqrt() for name in own])  # type: ignore[operator]
    assert torch.allclose(gradients[1], shifts.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("num_steps", "num_layers", "share"),
    [(100, 24, 1.0), (1000, 3, 1.0), (50, 20, 0.5), (200, 48, 0.25), (25, 96, 1 / 64)],
)
def test_few_steps_and_deep_networks_take_smaller_rates(num_steps: int, num_layers: int, share: float):
    assert rate_share(num_steps, num_layers) == pytest.approx(share)


@pytest.mark.parametrize("lives", [4, 5])
def test_a_run_that_is_killed_ends_in_the_same_network(tmp_path: Path, lives: int):
    """Killed behind a checkpoint of the fine-tuning, or behind all of it."""
    plan = plan_of(teacher(), finetune_share=1.0)
    assert plan.num_steps == 20 * (len(plan.units) + 1)

    def run(work: Work) -> QuantizedNetwork:
        context = replace(RunContext.alone(CPU, torch.float32, silent), work=work, log_every=10)
        return quantize_network(plan_of(teacher(), finetune_share=1.0), noise(64, size=8), context)

    whole = run(NO_WORK)
    num_parts = 2 * len(plan.units) + lives - 3  # each unit leaves a checkpoint and itself
    with pytest.raises(KilledError):
        run(MortalFolder(tmp_path, num_parts))
    again = run(WorkFolder(tmp_path))
    assert all(torch.equal(whole.weights[name].scale, again.weights[name].scale) for name in whole.weights)
    graphs = [network.plan.folded.graph for network in (whole, again)]
    assert all(torch.equal(get_tensor(graphs[0], key), get_tensor(graphs[1], key)) for key in keys(graphs[0]))


def test_without_it_nothing_is_added():
    plan = plan_of(teacher())
    assert plan.finetuned is None and plan.num_steps == 20 * len(plan.units)
