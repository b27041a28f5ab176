"""Units that begin and end with several tensors: what is carried on, what is compared, whose the quantizers are."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genie_cli.config import QuantizeConfig
from genie_cli.models.graph.cuts import output_nodes
from genie_cli.models.teacher import Teacher, make_teacher
from genie_cli.quantization.activations.carried import Carried
from genie_cli.quantization.activations.store import ActivationStore
from genie_cli.quantization.disk_need import quantization_need
from genie_cli.quantization.quantize import QuantizedNetwork
from genie_cli.quantization.reconstruction.batches import Batches
from genie_cli.quantization.units.partition import reconstruction_units
from genie_cli.quantization.units.unit_graph import cut_out
from genie_cli.runtime.determinism import make_generator
from genie_cli.runtime.progress import Event, Note
from genie_cli.student.bit_assignment import assign_bits
from genie_cli.student.modules import ActivationQuantizer
from genie_cli.student.protocol import find_protocol
from tests.support import CPU, stages
from tests.support.networks import CellNet, noise, plain_input
from tests.support.students import learned_bytes, node_values, student_of
from tests.support.units import Learn, UnitTask, around_each_unit, keep_gradients, limit_memory
from tests.support.work import until_done

FAST = {
    "weight_bits": 3, "activation_bits": 4, "num_steps": 6, "batch_size": 8, "rounding_lr": 0.1, "protocol": "ait",
    "weight_range": "minmax", "activation_range": "minmax", "max_unit_layers": 2,
}  # fmt: skip
UNITS = ["stem", "side", "cells.0", "cells.1", "cells.2", "cells.3", "join", "fc"]
IMAGES = noise(16, 3, 8)


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return make_teacher("cells", CellNet(), plain_input(3, 8))


def quantize(teacher: Teacher, **options: Any) -> QuantizedNetwork:
    running = {name: options.pop(name) for name in ("dtype", "report", "work", "log_every") if name in options}
    return stages.quantize(teacher, IMAGES, QuantizeConfig(**{**FAST, **options}), **running)


@pytest.fixture(scope="module")
def learned(teacher: Teacher) -> QuantizedNetwork:
    return quantize(teacher)


def relative_square(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted.double()).square().sum() / wanted.double().square().sum())


# what is carried on


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, tuple[Tensor, Tensor, ActivationStore]]]:
    """Behind each unit: tensor -> the teacher's values, the quantized ones, and the store of these."""
    found: list[dict[str, tuple[Tensor, Tensor, ActivationStore]]] = []
    add = Carried.add_quantized

    def keep(carried: Carried, *others: Any) -> None:
        add(carried, *others)
        found.append(
            {
                node.name: (carried._full[node].read(0, 16), store.read(0, 16), store)
                for node, store in carried._quantized.items()
            }
        )

    monkeypatch.setattr(Carried, "add_quantized", keep)
    return found


def test_every_live_tensor_is_that_of_the_finished_student(teacher: Teacher, kept: list[dict[str, Any]]):
    network = quantize(teacher)
    folded = network.plan.folded.graph
    found, wanted = node_values(student_of(network), IMAGES), node_values(folded, IMAGES)
    assert [unit.name for unit in network.units] == UNITS
    for unit, alive in zip(network.plan.units, kept, strict=True):
        assert set(alive) == {node.name for node in (*unit.passing, *unit.outputs)}
        for name, (full, quantized, _) in alive.items():
            torch.testing.assert_close(full, wanted[name], rtol=0, atol=1e-5)
            # other layouts sum in another order, and a value between two grid points may come to lie on the other one
            assert ((quantized - found[name]).abs() > 1e-5).float().mean() < 0.01, (unit.name, name)
    assert sum(network.output_errors.values()) == pytest.approx(
        relative_square(student_of(network)(IMAGES), teacher.graph(IMAGES)), rel=0.01
    )


def test_a_tensor_that_passes_is_not_stored_again(teacher: Teacher, kept: list[dict[str, Any]]):
    network = quantize(teacher, reconstruct=False)
    for before, behind, unit in zip(kept[:-1], kept[1:], network.plan.units[1:], strict=True):
        assert all(behind[node.name][2] is before[node.name][2] for node in unit.passing)
    assert sum(len(unit.passing) for unit in network.plan.units) == 1 + 2 + 3 + 4  # behind side and the first cells
    live = [{name: 4 * 16 * value[0][0].numel() for name, value in alive.items()} for alive in kept]
    # two sets in front of a unit, and two of its outputs: what a unit is the last to need is there until it is done
    most = max(
        2 * sum(before.values()) + 2 * sum(behind[node.name] for node in unit.outputs)
        for before, behind, unit in zip(live[:-1], live[1:], network.plan.units[1:], strict=True)
    )
    assert 0.5 * most < network.memory["host"] <= most
    need = quantization_need(replace(network.plan, budget=replace(network.plan.budget, host=0)), 16, torch.float32, 1)
    assert network.memory["host"] <= need.temporary <= 1.5 * network.memory["host"]


def test_errors_are_sums_of_the_outputs_own(teacher: Teacher, kept: list[dict[str, Any]]):
    network = quantize(teacher, max_unit_layers=5)
    assert [unit.num_outputs for unit in network.units] == [1, 3, 1, 1, 1]
    for unit, report, alive in zip(network.plan.units, network.units, kept, strict=True):
        shares = [relative_square(alive[node.name][1], alive[node.name][0]) for node in unit.outputs]
        assert report.relative_error == pytest.approx(sum(shares), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_where_tensors_lie_does_not_change_the_network(teacher: Teacher, dtype: torch.dtype, monkeypatch: Any):
    one = quantize(teacher, dtype=dtype)
    needed = stages.plan_of(teacher, QuantizeConfig(**FAST)).budget
    assert needed is not None
    monkeypatch.setattr("genie_cli.quantization.plan.activation_budget", lambda *_: replace(needed, host=20_000))
    other = quantize(teacher, dtype=dtype)
    assert other.memory["disk"] > 0 and other.memory["host"] > 0 == one.memory["disk"]
    assert learned_bytes(one) == learned_bytes(other)


# whose the quantizers are


def test_a_site_is_learned_by_its_first_reader_and_fixed_for_the_others(
    teacher: Teacher, monkeypatch: pytest.MonkeyPatch
):
    learning: dict[str, list[str]] = {}
    fixed: dict[str, dict[str, float]] = {}

    def look(task: UnitTask, learn: Learn) -> int:
        learning[task.name] = list(task.activations)
        fixed[task.name] = {
            name: float(module.step_size)
            for name, module in task.student.named_modules()
            if isinstance(module, ActivationQuantizer)
        }
        return learn(task)

    around_each_unit(monkeypatch, look)
    network = quantize(teacher)
    assert sorted(itertools.chain(*learning.values())) == sorted(network.activations)  # each once
    assert learning["cells.0"] == ["cells.0.conv1.input", "cells.0.conv2.input"]
    assert learning["cells.1"] == ["cells.1.conv1.input", "cells.1.conv2.input"]
    third = fixed["cells.2"]  # reads the tensor that cells.1 reads first, and the last one
    assert list(third.values()) == [float(network.activations["cells.1.conv1.input"].step_size)]
    join = fixed["cells.3"]  # it ends with the concatenation of all six
    assert len(join) == 4  # but its own input, and its output, which no layer reads


def test_all_readers_see_one_quantizer(learned: QuantizedNetwork):
    """The student of each unit, on the values of the whole student, gives what the whole student has there."""
    folded = learned.plan.folded.graph
    values = node_values(student_of(learned), IMAGES)
    for unit in learned.plan.units:
        part = cut_out(folded, unit, learned.plan.bits, CPU)
        made = part.student(learned.weights, learned.activations).eval()(*(values[node.name] for node in unit.sources))
        for node, found in zip(unit.outputs, made if isinstance(made, tuple) else (made,), strict=True):
            torch.testing.assert_close(found, values[node.name], rtol=0, atol=1e-5)


@pytest.mark.parametrize("protocol", ["ait", "hardware"])
def test_every_site_has_one_unit(teacher: Teacher, protocol: str):
    folded = stages.plan_of(teacher, QuantizeConfig(**FAST)).folded.graph
    bits = assign_bits(folded, find_protocol(protocol), 4, 4)
    for max_layers in (1, 2, 5, 12):
        parts = [cut_out(folded, unit, bits, CPU) for unit in reconstruction_units(folded, max_layers=max_layers)]
        assert sorted(site.name for part in parts for site in part.own_sites) == sorted(
            site.name for site in bits.activations
        )


# the loss


def test_outputs_count_relative_to_their_energy(teacher: Teacher, monkeypatch: pytest.MonkeyPatch):
    """The first loss with nothing moved, by hand: the squared errors, each scaled to the mean energy."""
    seen: dict[str, tuple[UnitTask, list[Tensor], list[Tensor]]] = {}
    losses: dict[str, float] = {}

    def look(task: UnitTask, learn: Learn) -> int:
        stores = (task.data.quantized_inputs, task.data.targets)
        seen[task.name] = (task, *([store.read(0, 16) for store in own] for own in stores))
        return learn(task, lambda step, loss: losses.update({task.name: loss}))

    around_each_unit(monkeypatch, look)
    rates = {"weight_step_lr": 0.0, "activation_step_lr": 0.0, "rounding_lr": 0.0, "rounding": "adaquant"}
    quantize(teacher, max_unit_layers=5, num_steps=1, drop_prob=0.0, batch_size=16, **rates)
    task, inputs, targets = seen["side"]
    assert len(targets) == 3
    task.use_finished_weights()
    with torch.no_grad():
        outputs = task.student.eval()(*inputs)
    places = 16 * 4 * 4
    energies = [float(target.double().square().sum()) / places for target in targets]
    errors = [
        float((own - target).double().square().sum()) / places for own, target in zip(outputs, targets, strict=True)
    ]
    mean = sum(energies) / 3
    assert max(energies) > 1.5 * min(energies)
    wanted = sum(mean * error / energy for error, energy in zip(errors, energies, strict=True))
    assert losses["side"] == pytest.approx(wanted, rel=1e-4)
    assert losses["side"] != pytest.approx(sum(errors), rel=1e-2)
    single = seen["fc"]
    assert single[0].data.target_weights == (1.0,)


@pytest.mark.parametrize("options", [{}, {"unit": "layer"}, {"rounding": "adaquant"}, {"protocol": "hardware"}])
def test_learning_beats_rounding_to_nearest(teacher: Teacher, options: dict[str, Any]):
    options = {"num_steps": 60, "max_unit_layers": 5, **options}
    found, nearest = quantize(teacher, **options), quantize(teacher, reconstruct=False, **options)
    assert sum(found.output_errors.values()) < 0.9 * sum(nearest.output_errors.values())


class Pooled(nn.Module):
    """A pooling of what enters a layer, behind that layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.one, self.two = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 2, 2)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        one = self.one(x).relu()
        pooled = F.max_pool2d(x, 2)
        return self.fc(torch.cat([self.two(one).relu(), pooled], 1).mean((2, 3)))


def test_an_output_that_nothing_learns_about_is_no_obstacle():
    network = quantize(make_teacher("pooled", Pooled(), plain_input(3, 8)), max_unit_layers=1)
    second = network.plan.units[1]
    assert second.layers == ("one",) and ["max_pool" in str(node.target) for node in second.outputs] == [False, True]
    assert [unit.num_outputs for unit in network.units] == [1, 2, 1, 1]
    assert torch.isfinite(student_of(network)(IMAGES)).all()
    assert 0 < sum(network.output_errors.values()) < 0.1


# the ways of a run


@pytest.mark.parametrize("options", [{}, {"unit": "layer"}, {"patience": 4, "holdout": 0.25, "num_steps": 12}])
def test_a_killed_run_ends_in_the_same_bytes(teacher: Teacher, tmp_path: Path, options: dict[str, Any]):
    options = {"max_unit_layers": 5, **options}
    whole = quantize(teacher, log_every=2, **options)
    resumed, deaths = until_done(lambda work: quantize(teacher, log_every=2, work=work, **options), tmp_path, lives=3)
    assert deaths >= 3
    assert learned_bytes(resumed) == learned_bytes(whole)
    assert resumed.units == whole.units and resumed.output_errors == whole.output_errors


def test_gradients_of_micro_batches_add_up(teacher: Teacher, monkeypatch: pytest.MonkeyPatch):
    options = {"max_unit_layers": 5, "drop_prob": 0.0, "num_steps": 2, "warmup": 0.0}
    whole = keep_gradients(monkeypatch)
    quantize(teacher, **options)
    monkeypatch.undo()
    sizes, parts = limit_memory(monkeypatch, 3), keep_gradients(monkeypatch)
    events: list[Event] = []
    quantize(teacher, report=events.append, **options)
    assert max(sizes) <= 3 and any("micro-batches" in event.message for event in events if isinstance(event, Note))
    for one, other in zip(whole[0::2], parts[0::2], strict=True):  # the first step of each unit, before any was taken
        for a, b in zip(one, other, strict=True):
            assert float((a - b).norm()) <= 0.02 * float(a.norm()) + 1e-6


def test_each_input_is_mixed_element_by_element(teacher: Teacher, monkeypatch: pytest.MonkeyPatch):
    inputs: list[tuple[Tensor, ...]] = []
    versions: list[list[Tensor]] = []

    def look(task: UnitTask, learn: Learn) -> int:
        if task.name != "cells.2":
            return learn(task)
        for stores in (task.data.full_inputs, task.data.quantized_inputs):
            versions.append([store.read(0, 16) for store in stores])
        with task.student.register_forward_pre_hook(lambda module, args: inputs.append(tuple(x.clone() for x in args))):
            return learn(task)

    around_each_unit(monkeypatch, look)
    quantize(teacher, num_steps=1)
    rows = Batches(torch.arange(16), 8, make_generator(CPU, 0, "batches", "cells.2")).draw()
    fulls, quantizeds = versions
    assert len(fulls) == len(inputs[0]) == 2
    for full, quantized, mixed in zip(fulls, quantizeds, inputs[0], strict=True):
        differing = full[rows] != quantized[rows]
        assert ((mixed == full[rows]) | (mixed == quantized[rows])).all() and differing.float().mean() > 0.1
        assert float((mixed == full[rows])[differing].float().mean()) == pytest.approx(0.5, abs=0.15)


# networks of several outputs


class TwoEnds(CellNet):
    """Returns a tensor that later layers read, one that they do not, and the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        states = [self.stem(x).relu()]
        states.append(self.side(states[0]).relu())
        for cell in self.cells:
            states.append(cell(states[-1], states[-2]))
        early = self.head(states[3])
        logits = self.fc(self.join(torch.cat(states, 1)).relu().mean((2, 3)))
        return {"logits": logits, "map": states[2], "early": early}


@pytest.fixture(scope="module")
def ends() -> Teacher:
    return make_teacher("ends", TwoEnds(), plain_input(3, 8))


@pytest.mark.parametrize("protocol", ["ait", "hardware"])
@pytest.mark.parametrize(("unit", "limit"), [("block", 2), ("block", 12), ("layer", 5), ("network", 2)])
def test_early_outputs_are_carried_to_the_end_and_count(ends: Teacher, protocol: str, unit: str, limit: int):
    network = quantize(ends, protocol=protocol, unit=unit, max_unit_layers=limit)
    with torch.no_grad():
        found, wanted = student_of(network)(IMAGES), ends.graph(IMAGES)
    shares = [relative_square(own, target) for own, target in zip(found, wanted, strict=True)]
    assert len(shares) == 3 and min(shares) > 0
    assert network.output_errors == pytest.approx(dict(zip(ends.outputs.names, shares, strict=True)), rel=0.02)


def test_kl_compares_the_class_scores_alone(ends: Teacher, monkeypatch: pytest.MonkeyPatch):
    weights: list[tuple[float, ...]] = []

    def look(task: UnitTask, learn: Learn) -> int:
        weights.append(task.data.target_weights)
        return learn(task)

    around_each_unit(monkeypatch, look)
    network = quantize(ends, unit="network", loss="kl", patience=2, holdout=0.25)
    (unit,) = network.plan.units
    scores = output_nodes(network.plan.folded.graph)[0]
    assert weights == [tuple(float(node is scores) for node in unit.outputs)] and sum(weights[0]) == 1
