"""What is learned together (layer, block, network), how weights round, and what each loss and preset does with it."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from genie_cli.artifacts.quantized_folder import load_quantized
from genie_cli.config import QuantizeConfig, build
from genie_cli.models.graph.folding import fold_batch_norms
from genie_cli.models.graph.layers import weight_layers
from genie_cli.models.graph.tensors import get_tensor
from genie_cli.models.teacher import Teacher, make_teacher
from genie_cli.quantization.presets import PRESETS, preset_options
from genie_cli.quantization.quantize import QuantizedNetwork
from genie_cli.quantization.reconstruction.batches import Batches, held_out_rows
from genie_cli.quantization.units.partition import reconstruction_units
from genie_cli.quantization.units.unit_graph import cut_out, layer_by_layer
from genie_cli.runtime.progress import Advanced, Event, StageStarted, silent
from genie_cli.student.bit_assignment import assign_bits
from genie_cli.student.formats import weight_format
from genie_cli.student.grid import minmax_weight_grid, quantize_weight, search_weight_grid
from genie_cli.student.modules import ActivationQuantizer, IntegerWeight
from genie_cli.student.protocol import find_protocol
from tests.support import CPU, stages
from tests.support.networks import digit_images, noise, plain_input
from tests.support.students import node_values, save_student, student_of
from tests.support.units import Learn, UnitTask, around_each_unit

FAST = {
    "weight_bits": 2, "activation_bits": 4, "num_steps": 4, "batch_size": 16, "rounding_lr": 0.1,
    "weight_range": "minmax", "activation_range": "minmax",
}  # fmt: skip


@pytest.fixture(scope="module")
def digits() -> Tensor:
    return digit_images(16)


def quantize(
    teacher: Teacher, images: Tensor, report: Any = silent, log_every: int | None = None, **options: Any
) -> QuantizedNetwork:
    config = QuantizeConfig(**{**FAST, **options})
    return stages.quantize(teacher, images, config, report=report, log_every=log_every)


@dataclass
class Watched:
    """What one unit was given to learn from: copies, since stores are released behind the unit."""

    task: UnitTask
    targets: Tensor
    quantized_inputs: Tensor
    finished: dict[str, IntegerWeight]
    starts: dict[str, float]
    inputs: list[Tensor] = field(default_factory=list)


def read(store: Any) -> Tensor:
    return store.read(0, len(store)).clone()


def watch(
    monkeypatch: pytest.MonkeyPatch, teacher: Teacher, images: Tensor, **options: Any
) -> tuple[QuantizedNetwork, list[Watched]]:
    calls: list[Watched] = []

    def keep(task: UnitTask, learn: Learn) -> int:
        modules = dict(task.student.named_modules())
        finished = {
            layer: modules[f"weight_quantizers.{layer.replace('_', '__').replace('.', '_d')}"]
            for layer in layers_of(teacher)
            if f"weight_quantizers.{layer.replace('_', '__').replace('.', '_d')}" in modules
        }
        own = Watched(
            task,
            *map(read, (*task.data.targets, *task.data.quantized_inputs)),
            {name: module for name, module in finished.items() if isinstance(module, IntegerWeight)},
            {name: float(activation.step_size.detach()) for name, activation in task.activations.items()},
        )
        calls.append(own)
        with task.student.register_forward_pre_hook(lambda module, args: own.inputs.append(args[0].clone())):
            return learn(task)

    around_each_unit(monkeypatch, keep)
    return quantize(teacher, images, **options), calls


def layers_of(teacher: Teacher) -> list[str]:
    return [layer.name for layer in weight_layers(teacher.graph)]


# a layer at a time


@pytest.fixture(scope="module")
def by_layer(digits_teacher: Teacher, digits: Tensor) -> tuple[QuantizedNetwork, list[Watched]]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        return watch(monkeypatch, digits_teacher, digits, unit="layer", drop_prob=0.0)


def test_every_layer_learns_alone_and_in_order(digits_teacher: Teacher, by_layer: tuple[Any, list[Watched]]):
    network, calls = by_layer
    assert [call.task.name for call in calls] == layers_of(digits_teacher) == list(network.weights)
    assert all(list(call.task.weights) == [call.task.name] for call in calls)
    # units are still told block by block, with the steps of all their layers
    assert [(unit.name, unit.num_steps) for unit in network.units] == [
        ("conv1", 4), ("layer1", 8), ("layer2", 12), ("layer3", 12), ("fc", 4),
    ]  # fmt: skip


def test_every_layer_is_reconstructed_at_its_own_output(
    digits_teacher: Teacher, digits: Tensor, by_layer: tuple[Any, list[Watched]]
):
    """Behind its ReLU where nothing else reads the layer; inside a block too, where no cut is free of the skip."""
    folded = fold_batch_norms(digits_teacher.graph).graph
    values = node_values(folded, digits)
    ends = {}
    for layer in weight_layers(folded):
        (reader,) = layer.node.users
        is_relu = reader.op != "output" and "relu" in reader.name
        ends[layer.name] = reader.name if is_relu else layer.node.name
    for call in by_layer[1]:
        name = call.task.name
        torch.testing.assert_close(call.targets, values[ends[name]], rtol=0, atol=1e-5, msg=name)
    with_relu = {name for name, end in ends.items() if "relu" in end}
    assert with_relu == {"conv1", "layer1.0.conv1", "layer2.0.conv1", "layer3.0.conv1"}


def test_earlier_layers_of_a_block_are_frozen_with_their_finished_integers(by_layer: tuple[Any, list[Watched]]):
    network, calls = by_layer
    seen = {call.task.name: call.finished for call in calls}
    assert list(seen["layer1.0.conv1"]) == [] and list(seen["layer1.0.conv2"]) == ["layer1.0.conv1"]
    for call in calls:
        for name, frozen in call.finished.items():
            assert torch.equal(frozen.codes, network.weights[name].codes), name
            assert torch.equal(frozen.scale, network.weights[name].scale), name
        for module in call.task.student.modules():
            if isinstance(module, ActivationQuantizer):  # finished too: one of those in the network, to the bit
                assert float(module.step_size) in {float(a.step_size) for a in network.activations.values()}
    sites = [name for call in calls for name in call.task.activations]
    assert sorted(sites) == sorted(network.activations)  # each learns once


def test_a_layer_inside_a_block_starts_from_the_quantized_input_of_the_block(by_layer: tuple[Any, list[Watched]]):
    calls = {call.task.name: call for call in by_layer[1]}
    first, second = calls["layer2.0.conv1"], calls["layer2.0.conv2"]
    assert torch.equal(first.quantized_inputs, second.quantized_inputs)
    assert not torch.equal(first.quantized_inputs, calls["layer1.0.conv1"].quantized_inputs)
    assert all(len(call.inputs) == 4 for call in calls.values())


def test_progress_counts_the_steps_of_every_layer(digits_teacher: Teacher, digits: Tensor):
    events: list[Event] = []
    quantize(digits_teacher, digits, events.append, unit="layer", num_steps=3)
    assert events[0] == StageStarted("quantize", 30)
    done = [event.done for event in events if isinstance(event, Advanced)]
    assert done == sorted(done) and done[-1] == 30 and set(range(3, 31, 3)) <= set(done)


def test_layers_learn_better_than_rounding_to_nearest(digits_teacher: Teacher, digits: Tensor):
    learned = quantize(digits_teacher, digits, unit="layer", rounding="adaround", num_steps=40)
    nearest = quantize(digits_teacher, digits, reconstruct=False)
    for own, baseline in zip(learned.units[1:], nearest.units[1:], strict=True):
        assert own.relative_error < baseline.relative_error, own.name
    assert learned.units[-1].relative_error < 0.7 * nearest.units[-1].relative_error


class Branches(nn.Module):
    """A gate (as squeeze-excitation has), a concatenation and a skip."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.squeeze, self.excite = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.left, self.right, self.join = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 3, 1, 1), nn.Conv2d(8, 8, 3, 1, 1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.nn.functional.silu(self.stem(x))
        x = x * self.excite(self.squeeze(x.mean((2, 3), keepdim=True)).relu()).sigmoid()
        x = x + self.join(torch.cat([self.left(x).relu(), self.right(x)], 1)).relu()
        return self.fc(x.mean((2, 3)))


class Chain(nn.Module):
    """No skip at all."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU6(), nn.Conv2d(4, 6, 3))
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(x).mean((2, 3)))


NETWORKS = {"branches": Branches, "chain": Chain}
NOISE = noise(8, 3, 8)


@pytest.fixture(scope="module", params=NETWORKS)
def network(request: pytest.FixtureRequest) -> Teacher:
    return make_teacher(request.param, NETWORKS[request.param](), plain_input(3, 8))


@pytest.mark.parametrize("whole", [False, True], ids=["blocks", "network"])
def test_layer_by_layer_every_layer_comes_last_once(network: Teacher, whole: bool):
    folded = fold_batch_norms(network.graph).graph
    plan = assign_bits(folded, find_protocol("ait"), 4, 4)
    values = node_values(folded, NOISE)
    names: list[str] = []
    for unit in reconstruction_units(folded, whole=whole):
        piece = cut_out(folded, unit, plan, CPU)
        sites: set[str] = set()
        for part in layer_by_layer(folded, piece):
            names.append(part.name)
            assert part.sources == piece.sources and part.name in part.bits.weights
            (end,) = part.outputs
            with torch.no_grad():
                output = part.teacher(*(values[source.name] for source in part.sources))
            torch.testing.assert_close(output, values[end.name], rtol=0, atol=1e-5)
            sites |= {site.name for site in part.bits.activations}
        assert sites == {site.name for site in piece.bits.activations}
    assert names == [layer.name for layer in weight_layers(folded)]


@pytest.mark.parametrize("unit", ["layer", "block", "network"])
@pytest.mark.parametrize("rounding", ["nearest", "adaround", "genie", "adaquant"])
def test_any_unit_goes_with_any_rounding(network: Teacher, unit: str, rounding: str):
    options = {"unit": unit, "rounding": rounding, "protocol": "ait", "num_steps": 2}
    found = quantize(network, NOISE, **options)
    names = [layer.name for layer in weight_layers(found.plan.folded.graph)]
    assert list(found.weights) == names and set(found.activations) == {
        site.name for site in found.plan.bits.activations
    }
    assert all(math.isfinite(own.relative_error) for own in found.units)
    assert torch.isfinite(student_of(found)(NOISE)).all()


# everything at once


def test_unit_network_is_one_unit(digits_teacher: Teacher, digits: Tensor, monkeypatch: pytest.MonkeyPatch):
    network, (call,) = watch(monkeypatch, digits_teacher, digits, unit="network", drop_prob=0.0)
    assert [(unit.name, list(unit.layers), unit.num_steps) for unit in network.units] == [
        ("network", layers_of(digits_teacher), 4)
    ]
    assert list(call.task.weights) == layers_of(digits_teacher) and call.finished == {}
    assert set(call.task.activations) == set(network.activations)
    assert torch.equal(call.quantized_inputs, digits)
    with torch.no_grad():
        torch.testing.assert_close(call.targets, digits_teacher.graph(digits), rtol=0, atol=1e-4)


def divergence(found: Tensor, wanted: Tensor) -> float:
    """Mean over images of KL(teacher || student), in float64."""

    def chances(logits: Tensor) -> np.ndarray:
        values = np.exp(logits.double().numpy() - logits.double().numpy().max(1, keepdims=True))
        return values / values.sum(1, keepdims=True)

    p, q = chances(wanted), chances(found)
    return float((p * (np.log(p) - np.log(q))).sum(1).mean())


@torch.no_grad()
def logits_of(network: QuantizedNetwork, images: Tensor) -> Tensor:
    return student_of(network)(images)


def test_kl_starts_at_the_divergence_and_falls(
    digits_teacher: Teacher, digits: Tensor, monkeypatch: pytest.MonkeyPatch
):
    options = {"unit": "network", "weight_bits": 3, "drop_prob": 0.0, "rounding_lr": 2e-3}
    events: list[Event] = []
    learned = quantize(
        digits_teacher, digits, events.append, log_every=1, loss="kl", rounding="adaquant", num_steps=40, **options
    )
    losses = [event.values["loss"] for event in events if isinstance(event, Advanced) and "loss" in event.values]
    with torch.no_grad():
        wanted = digits_teacher.graph(digits)
    start = quantize(digits_teacher, digits, reconstruct=False, **options)
    assert losses[0] == pytest.approx(divergence(logits_of(start, digits), wanted), rel=1e-3)
    assert losses[-1] < 0.5 * losses[0]
    assert divergence(logits_of(learned, digits), wanted) < 0.5 * losses[0]


# how weights round


def grids(network: QuantizedNetwork, search: Any) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """Layer -> codes of nearest rounding, step size and zero point of its own initial grid."""
    found = {}
    for layer in weight_layers(network.plan.folded.graph):
        weight = get_tensor(network.plan.folded.graph, layer.weight_key)
        format = weight_format(network.plan.bits.weights[layer.name])
        scale, zero_point = search(weight, format)
        found[layer.name] = (quantize_weight(weight, scale, zero_point, format), scale, zero_point)
    return found


RANGES = {"search": search_weight_grid, "minmax": minmax_weight_grid}


@pytest.mark.parametrize(("unit", "weight_range"), [("layer", "minmax"), ("block", "search"), ("network", "minmax")])
def test_adaround_keeps_the_weight_step_sizes(digits_teacher: Teacher, digits: Tensor, unit: str, weight_range: str):
    options = {"unit": unit, "weight_range": weight_range, "weight_step_lr": 0.01, "num_steps": 6, "rounding_lr": 0.3}
    learned = quantize(digits_teacher, digits, rounding="adaround", **options)
    moved = 0
    for name, (codes, scale, zero_point) in grids(learned, RANGES[weight_range]).items():
        assert torch.equal(learned.weights[name].scale, scale), name
        assert torch.equal(learned.weights[name].zero_point.float(), zero_point), name
        moved += int((learned.weights[name].codes != codes).sum())
        assert (learned.weights[name].codes - codes).abs().max() <= 1  # up or down, no further
    assert moved > 0


def test_genie_and_adaquant_move_the_weight_step_sizes(digits_teacher: Teacher, digits: Tensor):
    for rounding in ("genie", "adaquant"):
        learned = quantize(digits_teacher, digits, rounding=rounding, num_steps=2)
        for name, (_, scale, _) in grids(learned, minmax_weight_grid).items():
            assert not torch.equal(learned.weights[name].scale, scale), (rounding, name)


@pytest.mark.parametrize("unit", ["layer", "block", "network"])
def test_nearest_keeps_the_codes_while_activation_steps_learn(
    digits_teacher: Teacher, digits: Tensor, unit: str, monkeypatch: pytest.MonkeyPatch
):
    network, calls = watch(monkeypatch, digits_teacher, digits, unit=unit, rounding="nearest", drop_prob=0.0)
    for name, (codes, scale, zero_point) in grids(network, minmax_weight_grid).items():
        assert torch.equal(network.weights[name].codes.float(), codes), name
        assert torch.equal(network.weights[name].scale, scale), name
        assert torch.equal(network.weights[name].zero_point.float(), zero_point), name
    starts = {name: start for call in calls for name, start in call.starts.items()}
    moved = [name for name, start in starts.items() if float(network.activations[name].step_size) != start]
    assert set(starts) == set(network.activations) and len(moved) >= len(starts) - 1


@pytest.mark.parametrize("preset", ["adaround", "adaquant", "brecq", "qdrop", "lsq", "ait", "genie-m"])
def test_no_preset_falls_apart_on_a_small_budget(preset: str, digits_teacher: Teacher, digits: Tensor):
    """Rates that grow as the steps shrink must not throw the network off."""
    few = {"weight_bits": 3, "num_steps": 40, "batch_size": 16, "activation_range": "minmax"}
    options = [preset_options(preset), few, {"preset": preset}]
    learned, nearest = (
        stages.quantize(digits_teacher, digits, build(QuantizeConfig, *options, more))
        for more in ({}, {"reconstruct": False})
    )
    assert learned.units[-1].relative_error < nearest.units[-1].relative_error


# inputs


class Untouchable:
    """A store that nobody may read."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"full-precision inputs were asked for: {name}")


@pytest.mark.parametrize("unit", ["layer", "block", "network"])
def test_without_drops_full_precision_inputs_are_never_read(
    digits_teacher: Teacher, digits: Tensor, unit: str, monkeypatch: pytest.MonkeyPatch
):
    def guarded(task: UnitTask, learn: Learn) -> int:
        return learn(dataclasses.replace(task, data=dataclasses.replace(task.data, full_inputs=(Untouchable(),))))

    around_each_unit(monkeypatch, guarded)
    options = {"unit": unit, "rounding": "adaround", "holdout": 0.25, "patience": 2}
    quantize(digits_teacher, digits, drop_prob=0.0, **options)
    with pytest.raises(AssertionError, match="gather"):
        quantize(digits_teacher, digits, drop_prob=0.5, **options)


# hold-out


@pytest.mark.parametrize("preset", [name for name in PRESETS if not preset_options(name).get("data_free")])
def test_held_out_error_is_told_with_every_preset(
    preset: str, digits_teacher: Teacher, digits: Tensor, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
):
    drawn: set[int] = set()
    draw = Batches.draw

    def record(batches: Any) -> Tensor:
        rows = draw(batches)
        drawn.update(rows.tolist())
        return rows

    monkeypatch.setattr(Batches, "draw", record)
    few = {"num_steps": 3, "batch_size": 8, "holdout": 0.25, "weight_bits": 3, "activation_range": "minmax"}
    config = build(QuantizeConfig, preset_options(preset), few, {"preset": preset})
    network = stages.quantize(digits_teacher, digits, config)
    assert len(drawn) == (12 if config.reconstruct else 0)
    save_student(network, digits_teacher, tmp_path / "q")
    told = load_quantized(tmp_path / "q").metrics["units"]
    assert [unit["held_out_error"] for unit in told] == [unit.held_out_error for unit in network.units]
    student = student_of(network)
    held_out = held_out_rows(16, config).tolist()
    assert not drawn & set(held_out)
    with torch.no_grad():
        found, wanted = student(digits).double(), digits_teacher.graph(digits).double()
    error = (found - wanted)[held_out].square().sum() / wanted[held_out].square().sum()
    if network.plan.finetuned is None:  # else it may be another network behind its units
        assert network.units[-1].held_out_error == pytest.approx(error.item(), rel=1e-3)
