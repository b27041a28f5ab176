"""GENIE-M over whole networks: what is learned, what is carried on, seeds, edges, invariances."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

from genie_cli.config import QuantizeConfig
from genie_cli.errors import UsageError
from genie_cli.models.graph.folding import fold_batch_norms
from genie_cli.models.graph.layers import weight_layers
from genie_cli.models.graph.tensors import get_tensor, named_tensors
from genie_cli.models.teacher import Teacher, make_teacher
from genie_cli.quantization import quantize as quantize_module
from genie_cli.quantization.activations.step_sizes import CALIBRATION_IMAGES
from genie_cli.quantization.activations.store import ActivationStore
from genie_cli.quantization.learned.soft_rounding import largest_rate, rectified_sigmoid
from genie_cli.quantization.presets import preset_options
from genie_cli.quantization.quantize import QuantizedNetwork
from genie_cli.quantization.reconstruction import learner
from genie_cli.quantization.reconstruction.batches import Batches
from genie_cli.quantization.units.partition import reconstruction_units
from genie_cli.runtime.determinism import make_generator
from genie_cli.runtime.progress import Advanced, Event, StageFinished, StageStarted
from genie_cli.student.bit_assignment import assign_bits
from genie_cli.student.formats import activation_format, weight_format
from genie_cli.student.grid import minmax_step_size
from genie_cli.student.modules import ActivationQuantizer
from genie_cli.student.protocol import find_protocol
from tests.support import CPU, intervals, stages
from tests.support.networks import digit_images, plain_input
from tests.support.recipes import MINMAX_RANGES
from tests.support.students import learned_bytes, node_values, student_of
from tests.support.units import Learn, UnitTask, around_each_unit

SPEC = plain_input(1, 8)
FAST = {"weight_bits": 2, "activation_bits": 4, "num_steps": 30, "rounding_lr": 0.1}
"""W2A4 with a rate at which thirty steps are enough to round otherwise than to the nearest."""


@pytest.fixture(scope="module")
def digits() -> Tensor:
    return digit_images(48)


def quantize(
    teacher: Teacher,
    images: Tensor,
    dtype: torch.dtype = torch.float32,
    device: torch.device = CPU,
    report: Callable[[Event], None] = lambda event: None,
    **options: Any,
) -> QuantizedNetwork:
    return stages.quantize(
        teacher, images, QuantizeConfig(**{**FAST, **options}), device=device, dtype=dtype, report=report
    )


def assert_sound(network: QuantizedNetwork, images: Tensor) -> None:
    for name, weight in network.weights.items():
        bits = network.plan.bits.weights[name]
        assert weight.format == weight_format(bits) and int(weight.codes.max()) <= 2**bits - 1, name
        assert (weight.scale > 0).all() and torch.isfinite(weight.scale).all(), name
        assert ((weight.zero_point >= 0) & (weight.zero_point <= 2**bits - 1)).all(), name
    for name, activation in network.activations.items():
        assert math.isfinite(activation.step_size.item()) and activation.step_size.item() > 0, name
    assert all(math.isfinite(unit.relative_error) for unit in network.units)
    assert torch.isfinite(student_of(network)(images)).all()


@pytest.fixture(scope="module")
def learned(digits_teacher: Teacher, digits: Tensor) -> QuantizedNetwork:
    return quantize(digits_teacher, digits)


@pytest.fixture(scope="module")
def nearest(digits_teacher: Teacher, digits: Tensor) -> QuantizedNetwork:
    return quantize(digits_teacher, digits, reconstruct=False)


# learning


def test_reconstruction_beats_rounding_to_nearest(learned: QuantizedNetwork, nearest: QuantizedNetwork):
    errors = {unit.name: unit.relative_error for unit in learned.units}
    baseline = {unit.name: unit.relative_error for unit in nearest.units}
    assert list(errors) == list(baseline) == ["conv1", "layer1", "layer2", "layer3", "fc"]
    for name in ("layer1", "layer2", "layer3", "fc"):
        assert errors[name] < 0.7 * baseline[name], name


def test_reconstruction_of_one_unit_beats_rounding_to_nearest_on_the_same_input(
    digits_teacher: Teacher, digits: Tensor
):
    """No unit before it is quantized to few bits, so that both see nearly the same input."""
    options = {"activation_bits": 8}
    found = [quantize(digits_teacher, digits[:34], reconstruct=r, **options).units[1] for r in (True, False)]
    assert found[0].relative_error < 0.7 * found[1].relative_error


def test_nearest_rounding_is_that_of_the_initial_grid(nearest: QuantizedNetwork):
    for layer in weight_layers(nearest.plan.folded.graph):
        weight, quantized = get_tensor(nearest.plan.folded.graph, layer.weight_key), nearest.weights[layer.name]
        rows = weight.flatten(1)
        codes = (rows / quantized.scale).round() + quantized.zero_point
        assert torch.equal(quantized.codes.flatten(1).float(), codes.clamp(0, 2**quantized.format.bits - 1))


def test_bits_follow_the_protocol_and_codes_their_range(learned: QuantizedNetwork, digits: Tensor):
    assert_sound(learned, digits)
    bits = {name: weight.format.bits for name, weight in learned.weights.items()}
    assert bits == {name: 8 if name in ("conv1", "fc") else 2 for name in bits} and len(bits) == 10
    assert {name: a.format.bits for name, a in learned.activations.items()} == {
        site.name: site.bits for site in learned.plan.bits.activations
    }
    assert not any(activation.format.signed for activation in learned.activations.values())  # all behind a ReLU


def test_units_cover_all_layers_in_order(learned: QuantizedNetwork):
    layers = [name for unit in learned.units for name in unit.layers]
    assert layers == [layer.name for layer in weight_layers(learned.plan.folded.graph)]


def test_teacher_is_left_alone(digits_teacher: Teacher, digits: Tensor):
    before = {key: value.clone() for key, value in named_tensors(digits_teacher.graph).items()}
    images = digits.clone()
    quantize(digits_teacher, images, num_steps=2, **MINMAX_RANGES)
    assert all(torch.equal(value, before[key]) for key, value in named_tensors(digits_teacher.graph).items())
    assert torch.equal(images, digits)


def relative_square(error: Tensor, value: Tensor) -> float:
    return float(error.double().square().sum() / value.double().square().sum())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_carried_activations_are_those_of_the_finished_student(
    digits_teacher: Teacher, digits: Tensor, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
):
    carried: list[tuple[Tensor, Tensor]] = []
    real = quantize_module.relative_errors

    def record(
        values: tuple[ActivationStore], targets: tuple[ActivationStore], *others: Any
    ) -> tuple[float, float | None]:
        carried.append((values[0].read(0, len(images)), targets[0].read(0, len(images))))
        return real(values, targets, *others)

    monkeypatch.setattr(quantize_module, "relative_errors", record)
    images = digits[:24]  # fewer than one forward batch
    network = quantize(digits_teacher, images, dtype, num_steps=5)
    student = student_of(network)
    found, wanted = node_values(student, images), node_values(network.plan.folded.graph, images)
    units = reconstruction_units(network.plan.folded.graph)
    assert len(carried) == len(units) == 5
    for unit, (values, targets) in zip(units, carried, strict=True):
        (output,) = unit.outputs
        student_value, teacher_value = found[output.name], wanted[output.name]
        assert values.dtype == targets.dtype == dtype
        if dtype == torch.bfloat16:  # kept to eight bits; what lay between two grid points may come to lie on the other
            assert relative_square(targets.float() - teacher_value, teacher_value) < 1e-4
            own_error = relative_square(student_value - teacher_value, teacher_value)
            assert relative_square(values.float() - student_value, student_value) < 0.02 * own_error + 1e-5
            continue
        torch.testing.assert_close(targets, teacher_value, rtol=0, atol=1e-5)
        # other layouts sum in another order, and a value between two grid points may come to lie on the other one
        differing = (values - student_value).abs() > 1e-5
        assert differing.float().mean() < 1e-4 if values.dim() > 2 else differing.any(1).sum() <= 1
    values, targets = (kept.double() for kept in carried[-1])
    assert network.units[-1].relative_error == pytest.approx(relative_square(values - targets, targets), rel=1e-6)


# seeds and counts


def test_same_seed_gives_the_same_bytes_and_another_seed_others(digits_teacher: Teacher, digits: Tensor):
    def run(global_seed: int, **options: Any) -> QuantizedNetwork:
        torch.manual_seed(global_seed)  # the global state does not enter
        return quantize(digits_teacher, digits[:16], num_steps=10, **MINMAX_RANGES, **options)

    first, again, other = run(1), run(2), run(1, seed=1)
    assert learned_bytes(again) == learned_bytes(first)
    assert [unit.relative_error for unit in again.units] == [unit.relative_error for unit in first.units]
    assert learned_bytes(other) != learned_bytes(first)


@pytest.mark.parametrize(
    "options",
    [
        {"num_images": 33, "batch_size": 32},
        {"num_images": 5, "batch_size": 32},
        {"num_images": 2, "batch_size": 1},
        {"num_images": 48, "batch_size": 7},
        {"num_images": 8, "num_steps": 1},
        {"num_images": 8, "num_steps": 1, "warmup": 0.0},
        {"num_images": 8, "drop_prob": 0.0},
        {"num_images": 8, "drop_prob": 1.0},
        {"num_images": 8, "weight_step_lr": 10.0},
        {"num_images": 8, "activation_step_lr": 10.0, "activation_bits": 2},
        {"num_images": 8, "protocol": "ait", "activation_bits": 2},
    ],
    ids=lambda options: "-".join(f"{key}={value}" for key, value in options.items()),
)
def test_any_number_of_images_and_steps(digits_teacher: Teacher, digits: Tensor, options: dict[str, Any]):
    images = digits[: options.pop("num_images")]
    assert_sound(quantize(digits_teacher, images, **{"num_steps": 3, **MINMAX_RANGES, **options}), images)


def test_batches_are_full_and_even():
    drawn = Batches(torch.arange(33), 32, torch.Generator().manual_seed(0))
    batches = [drawn.draw() for _ in range(33)]
    assert all(len(batch) == 32 for batch in batches)
    counts = torch.bincount(torch.cat(batches), minlength=33)
    assert (counts == 32).all()  # 33 * 32 draws of 33 images
    first_pass = torch.cat(batches[:2])[:33]
    assert sorted(first_pass.tolist()) == list(range(33))


def test_batches_hold_the_rows_asked_for_alone():
    drawn = Batches(torch.tensor([3, 5, 8]), 2, torch.Generator().manual_seed(0))
    assert set(torch.cat([drawn.draw() for _ in range(6)]).tolist()) == {3, 5, 8}


def test_batch_is_no_larger_than_the_set(digits_teacher: Teacher, digits: Tensor, monkeypatch: pytest.MonkeyPatch):
    _, watched = watch(monkeypatch, digits_teacher, digits[:5], num_steps=1, batch_size=32)
    assert {len(own.inputs[0]) for own in watched.values()} == {5}


def test_each_unit_and_purpose_draws_from_a_place_of_its_own(
    digits_teacher: Teacher, digits: Tensor, monkeypatch: pytest.MonkeyPatch
):
    places: list[tuple[int | str, ...]] = []

    def record(device: torch.device, *place: int | str) -> torch.Generator:
        places.append(place)
        return make_generator(device, *place)  # type: ignore[arg-type]

    monkeypatch.setattr(learner, "make_generator", record)
    quantize(digits_teacher, digits[:4], num_steps=1, seed=9)
    assert len(places) == len(set(places)) == 10 and {place[0] for place in places} == {9}


def test_progress_counts_all_units(digits_teacher: Teacher, digits: Tensor):
    events: list[Event] = []
    quantize(digits_teacher, digits[:8], num_steps=3, report=events.append)
    assert events[0] == StageStarted("quantize", 15) and events[-1] == StageFinished("quantize")
    done = [event.done for event in events if isinstance(event, Advanced)]
    assert done == sorted(done) and done[-1] == 15 and min(done) == 3


def test_unknown_protocol_is_a_usage_error(digits_teacher: Teacher, digits: Tensor):
    with pytest.raises(UsageError, match="genie"):
        quantize(digits_teacher, digits, protocol="geni")


# one unit's learning


@dataclass
class Watched:
    """A unit's task with the inputs that its student saw and its first loss."""

    task: UnitTask
    inputs: list[Tensor]
    full_inputs: Tensor
    quantized_inputs: Tensor
    targets: Tensor
    loss: float = math.nan


def watch(
    monkeypatch: pytest.MonkeyPatch, teacher: Teacher, images: Tensor, **options: Any
) -> tuple[QuantizedNetwork, dict[str, Watched]]:
    watched: dict[str, Watched] = {}

    def keep(task: UnitTask, learn: Learn) -> int:
        data = task.data
        stores = (*data.full_inputs, *data.quantized_inputs, *data.targets)  # they are released behind the unit
        own = watched[task.name] = Watched(task, [], *(store.read(0, len(store)) for store in stores))

        def keep_loss(step: int, loss: float) -> None:
            own.loss = loss

        with task.student.register_forward_pre_hook(lambda module, args: own.inputs.append(args[0].clone())):
            return learn(task, keep_loss)

    around_each_unit(monkeypatch, keep)
    return quantize(teacher, images, **options), watched


@pytest.mark.parametrize(("drop_prob", "share"), [(0.0, 0.0), (0.5, 0.5), (1.0, 1.0)])
def test_input_mixes_full_precision_and_quantized_elements(
    digits_teacher: Teacher, digits: Tensor, monkeypatch: pytest.MonkeyPatch, drop_prob: float, share: float
):
    options = {"num_steps": 2, "batch_size": 8, "drop_prob": drop_prob, **MINMAX_RANGES}
    network, watched = watch(monkeypatch, digits_teacher, digits[:20], **options)
    own = watched["layer2"]
    task, inputs = own.task, own.inputs
    indices = Batches(torch.arange(20), 8, make_generator(CPU, 0, "batches", "layer2"))
    assert len(inputs) == 2
    for mixed in inputs:
        rows = indices.draw()
        full, quantized = own.full_inputs[rows], own.quantized_inputs[rows]
        differing = full != quantized
        assert ((mixed == full) | (mixed == quantized)).all() and differing.float().mean() > 0.1
        assert float((mixed == full)[differing].float().mean()) == pytest.approx(share, abs=0.03)
    if drop_prob == 1:  # nothing is quantized, so nothing is learned about steps
        unchanged = {name: a.step_size.item() for name, a in task.activations.items()}
        assert unchanged == {name: network.activations[name].step_size.item() for name in unchanged}


def test_loss_sums_over_channels_and_averages_over_the_rest(
    digits_teacher: Teacher, digits: Tensor, monkeypatch: pytest.MonkeyPatch
):
    """The first loss, with softbits, steps and inputs at their start: that of the initial student by hand."""
    rates = {"weight_step_lr": 0.0, "activation_step_lr": 0.0, "rounding_lr": 0.0}
    _, watched = watch(monkeypatch, digits_teacher, digits[:10], num_steps=1, drop_prob=0.0, batch_size=10, **rates)
    for name in ("layer1", "fc"):
        own, task = watched[name], watched[name].task
        for layer, slot in task.slots.items():
            weight = task.weights[layer]
            slot.value = weight.parts(rectified_sigmoid(weight.elements)[0], weight.start).weight
        with torch.no_grad():
            error = (task.student(own.quantized_inputs) - own.targets).square()
        wanted = error.sum() / (error.numel() / error.shape[1])
        assert watched[name].loss == pytest.approx(wanted.item(), rel=1e-4), name


def test_rates(digits_teacher: Teacher, digits: Tensor, monkeypatch: pytest.MonkeyPatch):
    seen: list[list[float]] = []

    class RecordingAdam(torch.optim.Adam):
        def step(self, *args: Any, **kwargs: Any) -> Any:
            seen.append([float(group["lr"]) for group in self.param_groups])
            return super().step(*args, **kwargs)

    monkeypatch.setattr(torch.optim, "Adam", RecordingAdam)
    rates = {"rounding_lr": 0.1, "weight_step_lr": 0.02, "activation_step_lr": 0.003}
    quantize(digits_teacher, digits[:8], num_steps=4, **rates)
    cosine = [0.5 * (1 + math.cos(math.pi * step / 4)) for step in range(4)]
    assert len(seen) == 20
    for first in range(0, 20, 4):
        for step, decay in enumerate(cosine):
            # elements, and offsets of the step sizes of weights and sites, whose units set them apart
            assert seen[first + step] == pytest.approx([0.1, 0.02 * decay])


@pytest.mark.parametrize(("round_weight", "warmup"), [(5.0, 0.2), (0.0, 0.2), (5.0, 0.99)])
def test_regularizer_decides_the_softbits_after_the_warm_up(
    digits_teacher: Teacher, digits: Tensor, monkeypatch: pytest.MonkeyPatch, round_weight: float, warmup: float
):
    options = {"round_weight": round_weight, "warmup": warmup, "num_steps": 50, "beta_start": 8.0, **MINMAX_RANGES}
    _, watched = watch(monkeypatch, digits_teacher, digits[:8], **options)
    softbits, _ = rectified_sigmoid(watched["layer3"].task.weights["layer3.0.conv2"].elements)
    decided = float(((softbits < 0.02) | (softbits > 0.98)).float().mean())
    assert decided > 0.8 if (round_weight, warmup) == (5.0, 0.2) else decided < 0.5


@pytest.mark.parametrize("space", ["checkpoint", "relative"])
def test_weight_steps_move_in_the_space_asked_for(monkeypatch: pytest.MonkeyPatch, space: str):
    teacher = make_teacher("normed", Normed(folded_by_hand=False), SPEC)
    multipliers = fold_batch_norms(teacher.graph).multipliers
    assert set(multipliers) == {"conv1", "conv2"} and (multipliers["conv1"] < 0).any()
    multipliers["fc"] = torch.ones(4)
    options = {"num_steps": 1, "weight_step_space": space, "weight_step_lr": 1e-4}
    network, watched = watch(monkeypatch, teacher, torch.randn(8, 1, 8, 8), **options)
    weights = {name: weight for own in watched.values() for name, weight in own.task.weights.items()}
    assert set(weights) == set(multipliers)
    for name, weight in weights.items():
        start = weight.start.flatten()
        offset_scale = multipliers[name].abs() if space == "checkpoint" else start
        offset_scale = torch.minimum(offset_scale, largest_rate(start, weight.format) / 1e-4)
        torch.testing.assert_close(weight.offset_scale.flatten(), offset_scale)
        # Adam's first step is the rate itself: the checkpoint's step, or the share of the start, moves by it
        moved = (network.weights[name].scale.flatten() - start).abs()
        learning = weight.offset.flatten() != 0
        torch.testing.assert_close(moved[learning], 1e-4 * offset_scale[learning], rtol=0.02, atol=1e-8)
        assert learning.float().mean() > 0.5


# calibration


class TwoConvs(nn.Module):
    """An identity in front of a convolution: the second layer's input is the image itself."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.conv2 = nn.Conv2d(1, 1, 1, bias=False), nn.Conv2d(1, 4, 3)
        self.conv1.weight.data.fill_(1)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv2(self.conv1(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def two_convs() -> fx.GraphModule:
    return fold_batch_norms(make_teacher("two", TwoConvs(), SPEC).graph).graph


def calibrate(graph: fx.GraphModule, images: Tensor, **options: Any) -> dict[str, ActivationQuantizer]:
    plan = assign_bits(graph, find_protocol("ait"), 4, 4)
    return stages.calibrate(graph, plan, images, QuantizeConfig(**options), rows=7)


def test_minmax_step_is_the_largest_value_over_the_grid(two_convs: fx.GraphModule):
    images = torch.rand(40, 1, 8, 8)
    found = calibrate(two_convs, images, activation_range="minmax")
    assert list(found) == ["conv2.input", "fc.input"]
    assert not found["conv2.input"].format.signed
    assert found["conv2.input"].step_size.item() == pytest.approx(images.max().item() / 15)


def test_a_later_image_counts(two_convs: fx.GraphModule):
    images = torch.rand(60, 1, 8, 8)
    for activation_range in ("minmax", "search"):
        before = calibrate(two_convs, images, activation_range=activation_range)["conv2.input"]
        larger = images.clone()
        larger[59] *= 20
        after = calibrate(two_convs, larger, activation_range=activation_range)["conv2.input"]
        assert after.step_size.item() > 2 * before.step_size.item()
    negative = images.clone()
    negative[50, 0, 3, 3] = -0.01
    assert calibrate(two_convs, negative)["conv2.input"].format.signed


def test_no_more_than_256_images_are_looked_at_evenly_spaced(two_convs: fx.GraphModule):
    images = torch.rand(3 * CALIBRATION_IMAGES, 1, 8, 8)
    seen = torch.linspace(0, len(images) - 1, CALIBRATION_IMAGES).round().long().tolist()
    assert {0, len(images) - 1} <= set(seen)
    for index in (seen[100], next(i for i in range(300, 310) if i not in seen)):
        outlier = images.clone()
        outlier[index] = 30.0
        step = calibrate(two_convs, outlier, activation_range="minmax")["conv2.input"].step_size.item()
        assert (step == pytest.approx(2.0)) == (index in seen)


def test_search_clips_where_that_lowers_the_error(two_convs: fx.GraphModule):
    images = torch.rand(64, 1, 8, 8)
    images[5, 0, 0, 0] = 3.0
    step = calibrate(two_convs, images)["conv2.input"].step_size.item()
    ratios = 1 - np.arange(100) / 100
    values = images.double().numpy()
    errors = []
    for candidate in 3.0 / 15 * ratios:
        codes = np.clip(np.round(values / candidate), 0, 15)
        errors.append((np.abs(values - codes * candidate) ** 2.4).mean())
    assert step == pytest.approx(3.0 / 15 * ratios[int(np.argmin(errors))], rel=0.03)
    assert step < 0.8 * 3.0 / 15


def test_range_and_sign_come_from_all_values_and_the_error_from_an_even_sample(
    two_convs: fx.GraphModule, monkeypatch: pytest.MonkeyPatch
):
    intervals.calibration_samples(monkeypatch, 100)
    images = torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    plain = calibrate(two_convs, images)["conv2.input"].step_size.item()
    for place in range(1, 4):  # pixels in a row: two of three at least are not in the sample
        outlier = images.clone()
        outlier[3, 0, 0, place] = -0.5
        assert calibrate(two_convs, outlier)["conv2.input"].format.signed
    steps, full = [], []
    for place in range(1, 4):
        outlier = images.clone()
        outlier[3, 0, 0, place] = 3.0
        steps.append(calibrate(two_convs, outlier)["conv2.input"].step_size.item())
        full.append(calibrate(two_convs, outlier, activation_range="minmax")["conv2.input"].step_size.item())
    assert full == pytest.approx([3.0 / 15] * 3)
    assert sorted(steps)[1] == pytest.approx(plain, rel=0.1)  # not in the sample: it does not pull the step up
    ratios = torch.tensor(steps) / full[0] * 100
    torch.testing.assert_close(ratios, ratios.round(), rtol=0, atol=1e-3)  # hundredths of the full range


def test_minmax_preset(digits_teacher: Teacher, digits: Tensor):
    network = quantize(digits_teacher, digits, weight_bits=4, **preset_options("minmax"))
    graph = network.plan.folded.graph
    for layer in weight_layers(graph):
        rows = get_tensor(graph, layer.weight_key).flatten(1).double()
        weight = network.weights[layer.name]
        span = rows.amax(1).clamp(min=0) - rows.amin(1).clamp(max=0)
        torch.testing.assert_close(
            weight.scale.flatten().double(), span / (2**weight.format.bits - 1), rtol=1e-5, atol=0
        )
        zero_point = (-rows.amin(1).clamp(max=0) / weight.scale.flatten()).round()
        assert torch.equal(weight.zero_point.flatten().double(), zero_point)
    values = node_values(student_of(network), digits)
    for site in network.plan.bits.activations:
        if site.name == "layer1.0.conv1.input":  # the last whose values come from finished layers alone
            wanted = minmax_step_size(values[site.node], activation_format(site.bits, signed=False))
            assert network.activations[site.name].step_size.item() == pytest.approx(wanted, rel=1e-5)
    assert all(unit.relative_error < 0.2 for unit in network.units)


# edges


class Edges(nn.Module):
    """A network whose middle is up to the test, between a pooling and a log-softmax."""

    def __init__(self, middle: nn.Module, channels: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.pool = nn.AvgPool2d(2)
        self.conv = nn.Conv2d(1, channels, 3, padding=1)
        self.middle = middle
        self.fc = nn.Linear(channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.middle(self.conv(self.pool(x)).relu())
        return self.fc(x.mean((2, 3))).log_softmax(1)


def dead_channel() -> nn.Module:
    """A channel without weights and variance, one with gamma 0, one with a negative gamma."""
    conv, norm = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
    conv.weight.data[0] = 0
    norm.running_var[0] = 1e-35
    norm.weight.data[1] = 0
    norm.weight.data[2] = -1
    return nn.Sequential(conv, norm, nn.ReLU())


def silent_tensor() -> nn.Module:
    """A convolution whose output a ReLU takes to zero everywhere, in front of another."""
    conv = nn.Conv2d(4, 4, 3, padding=1)
    conv.bias.data.fill_(-1e3)
    return nn.Sequential(conv, nn.ReLU(), nn.Conv2d(4, 4, 1))


class SplitChannels(nn.Module):
    """As ShuffleNet's blocks: half of the channels are convolved, which is a view with gaps."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept, taken = x.chunk(2, 1)
        return torch.cat([kept, self.conv2(self.conv1(taken).relu())], 1)


EDGES: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "dead-channel": (dead_channel, 4),
    "one-output-channel": (lambda: nn.Conv2d(1, 1, 3), 1),
    "weightless-unit": (lambda: nn.MaxPool2d(2), 4),
    "all-zero-tensor": (silent_tensor, 4),
    "depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4), 4),
    "unfolded-batch-norm": (lambda: nn.Sequential(nn.MaxPool2d(2), nn.BatchNorm2d(4)), 4),
    "split-channels": (SplitChannels, 4),
}


@cache
def edges_teacher(name: str) -> Teacher:
    middle, channels = EDGES[name]
    return make_teacher("edges", Edges(middle(), channels), SPEC)


@pytest.mark.parametrize("name", EDGES)
@pytest.mark.parametrize("protocol", ["genie", "ait"])
def test_edges(name: str, protocol: str):
    teacher = edges_teacher(name)
    images = torch.rand(9, 1, 8, 8)
    network = quantize(teacher, images, protocol=protocol, num_steps=4)
    assert_sound(network, images)
    assert all(unit.relative_error < 1.5 for unit in network.units)
    assert_sound(quantize(teacher, images, protocol=protocol, **preset_options("minmax")), images)


def test_layer_with_gamma_zero_keeps_its_steps():
    teacher = edges_teacher("dead-channel")
    network = quantize(teacher, torch.rand(9, 1, 8, 8), num_steps=10, protocol="ait")
    weight = network.weights["middle.0"]
    dead = weight().flatten(1).abs().amax(1)
    assert dead[0] == 0 and dead[1] == 0 and dead[2] > 0


# folding


class Normed(nn.Module):
    """Two convolutions with batch norms, or with the same folded into them by hand."""

    def __init__(self, folded_by_hand: bool) -> None:
        super().__init__()
        draws = torch.Generator().manual_seed(5)
        self.conv1, self.conv2 = (nn.Conv2d(i, 6, 3, padding=1, bias=folded_by_hand) for i in (1, 6))
        self.bn1, self.bn2 = (nn.Identity() if folded_by_hand else nn.BatchNorm2d(6) for _ in range(2))
        self.fc = nn.Linear(6, 4)
        for conv, norm in ((self.conv1, self.bn1), (self.conv2, self.bn2)):
            weight = torch.randn(conv.weight.shape, generator=draws) * 0.3
            gamma, beta, mean = (torch.randn(6, generator=draws) for _ in range(3))
            var = torch.rand(6, generator=draws) + 0.1
            if folded_by_hand:
                multiplier = gamma.double() / torch.sqrt(var.double() + 1e-5)
                conv.weight.data = (weight.double() * multiplier.view(-1, 1, 1, 1)).float()
                conv.bias.data = (beta.double() - mean.double() * multiplier).float()
            else:
                conv.weight.data = weight
                norm.load_state_dict(
                    {"weight": gamma, "bias": beta, "running_mean": mean, "running_var": var}, strict=False
                )
        self.fc.weight.data = torch.randn(4, 6, generator=draws)
        self.fc.bias.data.zero_()

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x)).relu()
        return self.fc(self.bn2(self.conv2(x)).relu().mean((2, 3)))


def test_batch_norms_folded_by_hand_change_nothing_in_relative_space():
    images = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    teachers = [make_teacher("normed", Normed(by_hand), SPEC) for by_hand in (False, True)]
    relative = [quantize(t, images, weight_step_space="relative", weight_step_lr=0.01) for t in teachers]
    assert learned_bytes(relative[0]) == learned_bytes(relative[1])
    checkpoint = [quantize(t, images, weight_step_lr=0.01) for t in teachers]
    assert learned_bytes(checkpoint[0]) != learned_bytes(checkpoint[1])
