"""What only the pretended GPU tells of the CUDA branches: bits of recordings, waits, memory, streams, layouts."""

from __future__ import annotations

import gc
import math
import weakref
from collections import Counter
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from genie_cli.config import QuantizeConfig
from genie_cli.errors import DeviceError
from genie_cli.quantization import presets as quantization_presets
from genie_cli.quantization.activations.budget import ActivationBudget
from genie_cli.quantization.reconstruction.learner import UnitLearner
from genie_cli.quantization.reconstruction.reconstruct import _Course
from genie_cli.runtime.cuda_graph import GraphedStep
from genie_cli.runtime.distribution import Workers
from genie_cli.runtime.work import Saved
from genie_cli.synthesis import presets as synthesis_presets
from genie_cli.synthesis.distill import Batch
from genie_cli.work.folder import WorkFolder
from tests.cuda.runs import SEARCHED, WARMUP_STEPS, Run, quantization, run, synthesis

pytestmark = pytest.mark.slow

LEARNING = [
    name
    for name in quantization_presets.PRESETS
    if QuantizeConfig(**quantization_presets.preset_options(name)).reconstruct
]


@cache
def run_of(stage: str, preset: str, is_recorded: bool = True) -> Run:
    """A preset's run on the digits network (`synthesis`) or on the small one, made once for all tests."""
    if stage == "synthesis":
        two_batches_at_once = {"num_images": 8} if preset == "genie" else {}
        return run(synthesis, "digits", preset, is_recorded=is_recorded, **two_batches_at_once)
    return run(quantization, "small", preset, is_recorded=is_recorded, **(SEARCHED if preset == "genie-m" else {}))


EVERY_PRESET = pytest.mark.parametrize(
    ("stage", "preset"),
    [*(("synthesis", name) for name in synthesis_presets.PRESETS), *(("quantization", name) for name in LEARNING)],
)
BOTH_STAGES = pytest.mark.parametrize("stage", [synthesis, quantization])


# --- recorded steps


@EVERY_PRESET
def test_recorded_steps_give_the_bits_of_steps_that_are_not(stage: str, preset: str):
    recorded, eager = run_of(stage, preset), run_of(stage, preset, is_recorded=False)
    assert recorded.gpu.graphs and all(graph.num_replays > 0 for graph in recorded.gpu.graphs)
    assert not eager.gpu.graphs
    assert recorded.result == eager.result


def test_units_of_several_tensors_are_recorded_too_and_no_step_of_them_waits():
    cells = partial(run, quantization, "cells", max_unit_layers=5)
    recorded, eager = cells(), cells(is_recorded=False)
    assert recorded.gpu.graphs and all(graph.num_replays > 0 for graph in recorded.gpu.graphs)
    assert recorded.result == eager.result and not recorded.notes and not recorded.left
    assert waits(cells(num_steps=20)) == waits(cells(num_steps=24))


@BOTH_STAGES
def test_recorded_steps_give_the_same_bits_in_bfloat16(stage: Callable[..., Any]):
    recorded, eager = (run(stage, "small", dtype=torch.bfloat16, is_recorded=is_so) for is_so in (True, False))
    assert recorded.gpu.graphs and recorded.result == eager.result


@EVERY_PRESET
def test_each_recorded_step_has_a_stream_of_its_own(stage: str, preset: str):
    """Libraries keep a workspace per stream: graphs of one stream would share it while they replay side by side."""
    streams = [graph.stream for graph in run_of(stage, preset).gpu.graphs]
    assert len(set(streams)) == len(streams) and 0 not in streams


@EVERY_PRESET
@pytest.mark.parametrize("is_recorded", [True, False], ids=["recorded", "eager"])
def test_streams_wait_for_one_another_where_they_have_to(stage: str, preset: str, is_recorded: bool):
    assert run_of(stage, preset, is_recorded).gpu.disorders == []


@EVERY_PRESET
def test_memory_of_each_recording_is_given_back(stage: str, preset: str):
    made = run_of(stage, preset)
    assert all(graph.was_reset for graph in made.gpu.graphs)
    assert made.left == 0


@EVERY_PRESET
def test_a_recording_finds_no_gradients_of_an_earlier_step(stage: str, preset: str):
    assert run_of(stage, preset).stale == []


@EVERY_PRESET
def test_nothing_is_told_and_nothing_is_warned_of(stage: str, preset: str):
    made = run_of(stage, preset)
    assert made.warned == [] and made.notes == []


def test_several_batches_are_recorded_at_once():
    made = run_of("synthesis", "genie")
    assert [graph.num_replays for graph in made.gpu.graphs] == [9 - 1 - WARMUP_STEPS] * 2
    assert made.held == [0, 1]


def test_a_unit_is_recorded_with_and_without_its_regularizer():
    replays = [graph.num_replays for graph in run_of("quantization", "genie-m").gpu.graphs]
    plain = math.ceil(0.4 * 16)
    assert replays == [plain - WARMUP_STEPS, 16 - plain - WARMUP_STEPS] * 4


@pytest.mark.parametrize("preset", LEARNING)
def test_a_unit_holds_one_recording_at_a_time(preset: str):
    assert set(run_of("quantization", preset).held) == {0}


@BOTH_STAGES
def test_no_finished_part_is_kept_alive(stage: Callable[..., Any], monkeypatch: pytest.MonkeyPatch):
    """Python's collector is off, so that a reference cycle would keep what it holds, and a recording's memory."""
    made: list[weakref.ref[Any]] = []
    for kind in (Batch, UnitLearner, GraphedStep):
        start = kind.__init__

        def noted(self: Any, *args: Any, start: Any = start) -> None:
            made.append(weakref.ref(self))
            start(self, *args)

        monkeypatch.setattr(kind, "__init__", noted)
    monkeypatch.setattr(gc, "collect", lambda: 0)
    gc.disable()
    try:
        run(stage, "small", **({"batches_at_once": 1, "num_images": 8} if stage is synthesis else {}))
        assert len(made) >= 4
        assert [each() for each in made if each() is not None] == []
    finally:
        gc.enable()


@pytest.mark.parametrize("preset", sorted(set(quantization_presets.PRESETS) - set(LEARNING) - {"dfq"}))
def test_presets_that_learn_nothing_record_nothing(preset: str):
    made = run(quantization, "small", preset)
    assert made.result and not made.gpu.graphs and made.gpu.disorders == []


# --- the host waits


def waits(made: Run) -> Counter[tuple[str, str]]:
    """(What the host waits for, where) -> how often; without recordings."""
    counted = made.gpu.synchronisations
    return Counter({key: count for key, count in counted.items() if key[1] != GraphedStep._record.__qualname__})


@pytest.mark.parametrize("preset", synthesis_presets.PRESETS)
def test_no_step_of_a_synthesis_waits(preset: str):
    """Losses are read at the first step and at the last; more steps between them make no more waits.

    The pace of the work is told behind each power of two: none lies between these.
    """
    few, more = (waits(run(synthesis, "small", preset, num_steps=num_steps)) for num_steps in (5, 7))
    assert few == more
    assert few["reads values", "distill.<locals>.log"] == 2


@pytest.mark.parametrize("preset", LEARNING)
def test_no_step_of_a_reconstruction_waits(preset: str):
    search = SEARCHED if preset == "genie-m" else {}
    # the pace of the work is told behind each power of two: none lies between these
    few, more = (waits(run(quantization, "small", preset, num_steps=steps, **search)) for steps in (20, 24))
    assert few == more
    assert few["reads a value", _Course._report.__qualname__] > 0


def test_activations_on_the_host_cost_three_waits_per_step_at_most():
    """Both inputs and the target go up through two buffers; each is waited for before it is filled again."""
    on_host = partial(run, quantization, budget=ActivationBudget(0, 1 << 30))
    extra = waits(on_host(num_steps=15)) - waits(on_host(num_steps=9))
    assert {kind for kind, _ in extra} == {"for an event"}
    assert sum(extra.values()) <= 3 * (15 - 9) * 4


@pytest.mark.parametrize("budget", [ActivationBudget(0, 1 << 30), ActivationBudget(0, 0)], ids=["host", "disk"])
def test_it_makes_no_difference_where_activations_lie(budget: ActivationBudget):
    assert run(quantization, budget=budget).result == run(quantization).result


# --- going on after a kill


class Cut(WorkFolder):
    """Ends the run behind the third checkpoint."""

    left = 3

    def save_checkpoint(self, name: str, saved: Saved, workers: Workers) -> None:
        super().save_checkpoint(name, saved, workers)
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


@BOTH_STAGES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_run_that_was_killed_goes_on_to_the_same_bits(stage: Callable[..., Any], dtype: torch.dtype, tmp_path: Path):
    def made(**context: Any) -> Run:
        return run(stage, "small", dtype=dtype, num_steps=17, context_options={"log_every": 3, **context})

    whole = made()
    with pytest.raises(KeyboardInterrupt):
        made(work=Cut(tmp_path, 0.0))
    assert list(tmp_path.glob("*.checkpoint*"))
    resumed = made(work=WorkFolder(tmp_path, math.inf))
    assert resumed.result == whole.result
    replays = [sum(graph.num_replays for graph in each.gpu.graphs) for each in (whole, resumed)]
    assert 0 < replays[1] < replays[0]


# --- memory is short


@BOTH_STAGES
def test_steps_are_not_recorded_where_memory_has_no_room_for_it(stage: Callable[..., Any]):
    own = (stage, "small", "zeroq" if stage is synthesis else "lsq")
    eager = run(*own, is_recorded=False)
    short, roomy = (run(*own, gpu_options={"total_memory": int(share * eager.gpu.peak)}) for share in (1.02, 2))
    assert not short.gpu.graphs and roomy.gpu.graphs
    assert short.result == eager.result == roomy.result
    name = "batch 1" if stage is synthesis else "unit 'network'"
    assert short.notes == [f"{name}: memory has no room for a recording of its steps, which take longer."]
    assert roomy.notes == []


def test_the_last_pass_of_a_batch_has_the_memory_of_its_recording():
    eager = run(synthesis, "small", "kw", is_recorded=False)
    tight = run(synthesis, "small", "kw", gpu_options={"total_memory": int(1.2 * eager.gpu.peak)})
    assert tight.gpu.graphs and tight.result == eager.result


def test_a_batch_that_does_not_fit_is_answered_by_a_size_that_does():
    pixels = partial(run, synthesis, "small", "zeroq", batches_at_once=1)
    peaks = [pixels(num_images=size, batch_size=size, num_steps=2).gpu.peak for size in (16, 8)]
    between = {"total_memory": sum(peaks) // 2}
    with pytest.raises(DeviceError, match=r"16 images does not fit into the memory of cuda.*--batch-size 8 does"):
        pixels(num_images=16, batch_size=16, gpu_options=between)
    fitting = pixels(num_images=16, batch_size=8, gpu_options=between)
    assert fitting.result == pixels(num_images=16, batch_size=8).result


def test_a_step_that_does_not_fit_goes_on_in_micro_batches():
    whole = run(quantization, "small", "lsq", batch_size=12)
    short = run(quantization, "small", "lsq", batch_size=12, gpu_options={"total_memory": int(0.7 * whole.gpu.peak)})
    assert any("going on in micro-batches of 6" in note for note in short.notes)
    assert short.gpu.graphs and short.gpu.disorders == []


# --- several processes


class TwoAlike(Workers):
    """Two processes that do the same: what they sum is twice what each has."""

    def sum_(self, tensor: Tensor) -> Tensor:
        assert not torch.cuda.is_current_stream_capturing(), "a sum over processes is no part of a recording"
        return tensor.mul_(2)

    def all_gather_rows(self, tensor: Tensor) -> Tensor:
        return torch.cat([tensor, tensor])


def test_several_processes_record_a_step_on_both_sides_of_the_sum():
    together = partial(run, quantization, batch_size=8, context_options={"workers": TwoAlike(0, 2)})
    recorded, eager = together(), together(is_recorded=False)
    assert recorded.result == eager.result
    assert recorded.gpu.disorders == [] and recorded.left == 0
    replays = [graph.num_replays for graph in recorded.gpu.graphs]
    plain = math.ceil(0.4 * 16)
    steps_of_each = (plain, 16, 16 - plain)  # gradients without the regularizer, updates, gradients with it
    assert sorted(replays) == sorted([num_steps - WARMUP_STEPS for num_steps in steps_of_each] * 4)


# --- layouts


def test_activations_of_recorded_steps_stay_channels_last():
    """A step on another layout would convert what it reads and writes, or run on slower kernels."""
    planes = (3, 128)  # the generator's images, and the map that its first layer makes
    of_batch = run(synthesis, "small").gpu.graphs
    of_units = run(quantization, "digits", num_steps=10).gpu.graphs[2:]  # an image of one channel has no layout
    for graphs, other in ((of_batch, planes), (of_units, ())):
        seen, wrong = 0, []
        for operation in (each for graph in graphs for each in graph.operations if not each.is_view):
            for layout in (*operation.inputs, *operation.outputs):
                if layout.is_channels_last is None or layout.shape[0] != 4 or layout.shape[1] in other:
                    continue
                seen += 1
                wrong += [] if layout.is_channels_last else [f"{operation.name} {layout.shape}"]
        assert seen > 50 and wrong == []


def test_the_gradient_of_max_pooling_is_one_operation():
    """From compute capability 9.0 on PyTorch's own kernel repeats bit for bit; before, its work is done in many."""
    names = []
    for capability in ((9, 0), (8, 0)):
        (graph,) = run(synthesis, "small", "zeroq", gpu_options={"capability": capability}).gpu.graphs
        names.append([operation.name for operation in graph.operations])
    assert names[0].count("max_pool2d_with_indices_backward") == 1
    assert names[1].count("max_pool2d_with_indices_backward") == 0
    assert len(names[0]) < len(names[1]) - 9
