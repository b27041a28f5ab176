"""NaN and infinity: caught where they arise, named, tried again in float32, then reported."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from genie_cli.config import ModelConfig, QuantizeConfig, SynthesizeConfig
from genie_cli.data.labeled import TensorImages
from genie_cli.errors import InputError, NumbersError
from genie_cli.models.graph.equivalence import make_reference
from genie_cli.models.graph.outputs import as_tuple
from genie_cli.models.graph.tensors import get_tensor
from genie_cli.models.teacher import Teacher
from genie_cli.models.zoo import load_teacher
from genie_cli.quantization.quantize import QuantizedNetwork
from genie_cli.runtime.progress import Event, Note
from genie_cli.synthesis.synthesize import Synthesis
from tests.support import batches, stages, units
from tests.support.networks import noise
from tests.support.recipes import MINMAX_RANGES
from tests.support.work import until_done

FAILS_AFTER = 7
"""Steps that go well."""


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Makes one step's loss NaN: in bfloat16 alone, or in float32 too."""

    def break_steps(always: bool) -> None:
        def is_bad(steps_done: int, dtype: torch.dtype) -> bool:
            return steps_done == FAILS_AFTER and (always or dtype == torch.bfloat16)

        units.spoil_losses(monkeypatch, lambda unit, *now: unit == "layer2" and is_bad(*now))
        batches.spoil_losses(monkeypatch, is_bad)

    return break_steps


def quantize(teacher: Teacher, report: Callable[[Event], None] = lambda event: None, **more: Any) -> QuantizedNetwork:
    config = QuantizeConfig(num_steps=20, batch_size=4, weight_bits=2, activation_bits=4, **MINMAX_RANGES)
    return stages.quantize(teacher, noise(8), config, dtype=torch.bfloat16, report=report, log_every=5, **more)


def synthesize(teacher: Teacher, report: Callable[[Event], None] = lambda event: None, **more: Any) -> Synthesis:
    config = SynthesizeConfig(num_images=4, batch_size=4, num_steps=20)
    return stages.synthesize(teacher, config, dtype=torch.bfloat16, report=report, log_every=5, **more)


def numbers(result: QuantizedNetwork | Synthesis) -> list[Tensor]:
    if isinstance(result, Synthesis):
        return [result.images]
    steps = [activation.step_size for activation in result.activations.values()]
    return [*(weight() for weight in result.weights.values()), *steps]


@pytest.mark.parametrize(("run", "name"), [(synthesize, "Batch 1"), (quantize, "Unit 'layer2'")])
def test_a_bad_step_is_named_and_tried_again_in_float32(run: Any, name: str, digits_teacher: Teacher, broken: Any):
    broken(False)
    events: list[Event] = []
    result = run(digits_teacher, events.append)
    (note,) = [event for event in events if isinstance(event, Note)]
    assert note.warning and note.message.startswith(f"{name}: the loss is NaN or infinite at step {FAILS_AFTER + 1}")
    assert note.message.endswith("tried again in float32.")
    assert all(value.isfinite().all() for value in numbers(result))


@pytest.mark.parametrize(("run", "name"), [(synthesize, "Batch 1"), (quantize, "Unit 'layer2'")])
def test_what_fails_in_float32_too_is_reported(run: Any, name: str, digits_teacher: Teacher, broken: Any):
    broken(True)
    with pytest.raises(NumbersError, match=f"^{name}: .* at step {FAILS_AFTER + 1}[^0-9]") as raised:
        run(digits_teacher)
    assert raised.value.exit_code == 6


@pytest.mark.parametrize(("run", "lives"), [(synthesize, 3), (synthesize, 1000), (quantize, 8)])
def test_the_second_try_does_not_depend_on_checkpoints(
    run: Any, lives: int, digits_teacher: Teacher, broken: Any, tmp_path: Path
):
    """Those of the first try would lead it elsewhere, and come by the clock; its own go on after a kill."""
    broken(False)
    whole = numbers(run(digits_teacher))
    result, deaths = until_done(lambda work: run(digits_teacher, work=work), tmp_path, lives)
    assert all(torch.equal(a, b) for a, b in zip(numbers(result), whole, strict=True))
    assert (lives < 1000) == (deaths > 1)
    assert not list(tmp_path.glob("*checkpoint*"))


def test_gradients_of_the_last_step_count(digits_teacher: Teacher, monkeypatch: pytest.MonkeyPatch):
    units.spoil_offsets(monkeypatch, "layer1", 20)
    with pytest.raises(NumbersError, match=r"Unit 'layer1': the gradients .* step 20, and the step sizes of 'layer1"):
        quantize(digits_teacher)


FACTORY = """
import torch
from torch import nn

def make():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(2))
    net.eval()(torch.zeros(1, 3, 8, 8))
    {change}
    return net
"""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("net[0].weight.data[0, 0, 0, 0] = float('nan')", "NaN or infinity in '0.weight'"),
        ("net[1].running_mean[1] = float('inf')", "NaN or infinity in '1.running_mean'"),
        ("net[1].running_var[1] = -0.5", "negative variance in '1.running_var': -0.5"),
    ],
)
def test_a_factory_with_bad_weights_is_refused(change: str, message: str, tmp_path: Path):
    path = tmp_path / "net.py"
    path.write_text(FACTORY.format(change=change))
    with pytest.raises(InputError, match=f"net.py:make' holds .*{message}"):
        load_teacher(ModelConfig(name=f"{path}:make", input_size=8))


def overflowing(teacher: Teacher, by: float) -> Any:
    """The network with one layer's weights so large that what it computes overflows."""
    graph = copy.deepcopy(teacher.graph)
    get_tensor(graph, "layer2.0.conv1.weight").mul_(by)
    return graph


def test_values_that_overflow_are_caught_in_calibration(digits_teacher: Teacher):
    graph = overflowing(digits_teacher, 1e38)
    broken = replace(digits_teacher, graph=graph, reference=make_reference(graph, digits_teacher.input, as_tuple)[0])
    with pytest.raises(NumbersError, match="'layer2"):
        quantize(broken)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bad_logits_are_named_by_batch_and_layer(dtype: torch.dtype, digits_teacher: Teacher):
    images = TensorImages(
        torch.full((6, 1, 16, 16), 200, dtype=torch.uint8), torch.zeros(6).long(), digits_teacher.input
    )
    events: list[Event] = []
    with pytest.raises(NumbersError, match=r"Batch 1 .*logits of 4 of 4 images .* at layer 'layer2"):
        stages.evaluate(overflowing(digits_teacher, 1e38), images, 10, 4, dtype=dtype, report=events.append)
    assert sum(isinstance(event, Note) for event in events) == (dtype != torch.float32)


class OnlyFloat32(nn.Module):
    """Overflows in anything smaller."""

    def forward(self, x: Tensor) -> Tensor:
        logits = x.flatten(1)[:, :3]
        return logits / 0 if torch.is_autocast_enabled("cpu") else logits


def test_logits_are_tried_again_in_float32(digits_teacher: Teacher):
    images = TensorImages(
        torch.arange(6 * 256).view(6, 1, 16, 16).to(torch.uint8), torch.full((6,), 2), digits_teacher.input
    )
    events: list[Event] = []
    result = stages.evaluate(OnlyFloat32(), images, 3, 3, dtype=torch.bfloat16, report=events.append)
    assert result.own["top1"] == 100
    assert [event.message[:7] for event in events if isinstance(event, Note)] == ["Batch 1", "Batch 2"]
