"""Several processes that were killed go on from a step that all of them have; here they are threads."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from genie_cli.config import QuantizeConfig, SynthesizeConfig, build
from genie_cli.errors import DiskFullError, GenieError, WorkerError
from genie_cli.models.teacher import Teacher
from genie_cli.quantization import presets as quantizers
from genie_cli.quantization.quantize import QuantizedNetwork
from genie_cli.quantization.reconstruction.learned_unit import unpack_unit
from genie_cli.runtime.distribution import SOLO, Workers
from genie_cli.runtime.work import NO_WORK, Saved, Work
from genie_cli.synthesis import presets as synthesizers
from genie_cli.synthesis.synthesize import Synthesis
from genie_cli.work import folder as work_folder
from genie_cli.work.folder import WorkFolder
from tests.support import CPU, intervals, stages
from tests.support.networks import noise
from tests.support.recipes import MINMAX_RANGES
from tests.support.work import KilledError, TornFolder

EVERY = 5
"""Steps between two chances for a checkpoint."""


@dataclass(frozen=True)
class Threads(Workers):
    """Workers of one process: what they hand each other goes through lists.

    One runs at a time, until it waits for the others, since they share PyTorch's global generator.
    """

    barrier: threading.Barrier = field(default_factory=lambda: threading.Barrier(1))
    turn: threading.Lock = field(default_factory=threading.Lock)
    given: tuple[list[Any], ...] = ()

    def meet(self) -> None:
        self.turn.release()
        try:
            self.barrier.wait()
        except threading.BrokenBarrierError:
            raise WorkerError("Another one has ended.") from None
        finally:
            self.turn.acquire()

    def exchange(self, value: Any) -> list[Any]:
        self.given[self.rank][:] = [value]
        self.meet()
        everyones = [own[0] for own in self.given]
        self.meet()
        return everyones

    def sum_(self, tensor: Tensor) -> Tensor:
        return tensor.copy_(torch.stack(self.exchange(tensor.clone())).sum(0))

    def all_gather_rows(self, tensor: Tensor) -> Tensor:
        return torch.cat(self.exchange(tensor.clone()))

    def agree(self, error: GenieError | None) -> None:
        for found in self.exchange(error):
            if found is not None:
                raise found


def together(size: int, run: Callable[[Workers], Any]) -> list[Any]:
    """What `run` returns in each of so many workers; where one is killed, the others end too."""
    barrier, turn, given = threading.Barrier(size), threading.Lock(), tuple([] for _ in range(size))
    outcomes: list[Any] = [None] * size

    def work(rank: int) -> None:
        with turn:
            try:
                outcomes[rank] = run(Threads(rank, size, barrier, turn, given))
            except BaseException as error:
                outcomes[rank] = error
                barrier.abort()

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    errors = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    if errors:
        raise next((error for error in errors if not isinstance(error, WorkerError)), errors[0])
    return outcomes


def state_at(step: int, workers: Workers) -> Saved:
    return Saved({"x": torch.tensor([step, workers.rank])}, {"step": step})


def save(folder: Path, steps: list[int], workers: Workers) -> None:
    work = WorkFolder(folder)
    work.checkpoint("unit0", workers)
    for step in steps:
        work.save_checkpoint("unit0", state_at(step, workers), workers)


def newest(folder: Path, size: int) -> list[list[int] | None]:
    def find(workers: Workers) -> list[int] | None:
        saved = WorkFolder(folder).checkpoint("unit0", workers)
        return None if saved is None else saved.tensors["x"].tolist()

    return together(size, find)


# --- which state is gone on from


def test_each_gets_its_own_state_of_the_newest_step(tmp_path: Path) -> None:
    together(2, lambda workers: save(tmp_path, [50, 100, 150], workers))
    assert newest(tmp_path, 2) == [[150, 0], [150, 1]]
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("late", [0, 1])
def test_one_killed_before_its_write_leaves_a_step_in_common(late: int, tmp_path: Path) -> None:
    steps = iter(range(50, 1000, 50))
    common = next(steps)
    together(2, lambda workers: save(tmp_path, [common], workers))
    for step in steps:  # each time one writes and the other does not; then both, from the step in common

        def torn(workers: Workers, step: int = step) -> None:
            work = TornFolder(tmp_path, lives=workers.rank != late)
            work.checkpoint("unit0", workers)
            work.save_checkpoint("unit0", Saved({"x": torch.tensor([-step, workers.rank])}, {"step": step}), workers)

        with pytest.raises(KilledError):
            together(2, torn)
        assert newest(tmp_path, 2) == [[common, 0], [common, 1]]
        common = step + 20
        together(2, lambda workers, step=common: save(tmp_path, [step], workers))
        assert newest(tmp_path, 2) == [[common, 0], [common, 1]]


def test_a_step_that_one_had_no_room_for_is_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = work_folder._write

    def full(path: Path, saved: Saved) -> None:
        if path.name.endswith("1of2") and saved.facts["step"] in (100, 150, 200):
            raise DiskFullError("full")
        write(path, saved)

    monkeypatch.setattr(work_folder, "_write", full)
    together(2, lambda workers: save(tmp_path, [50, 100, 150, 200], workers))
    assert newest(tmp_path, 2) == [[50, 0], [50, 1]]
    together(2, lambda workers: save(tmp_path, [250, 300], workers))
    assert newest(tmp_path, 2) == [[300, 0], [300, 1]]


def test_a_damaged_state_of_one_sends_all_to_the_step_before(tmp_path: Path) -> None:
    together(2, lambda workers: save(tmp_path, [50, 100], workers))
    damaged = tmp_path / "unit0.checkpoint1-1of2"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert newest(tmp_path, 2) == [[50, 0], [50, 1]]
    (tmp_path / "unit0.checkpoint0-0of2").unlink()
    assert newest(tmp_path, 2) == [None, None]
    together(2, lambda workers: save(tmp_path, [20], workers))
    assert newest(tmp_path, 2) == [[20, 0], [20, 1]]


def test_states_are_of_one_number_of_processes_and_end_with_their_part(tmp_path: Path) -> None:
    together(2, lambda workers: save(tmp_path, [50, 100], workers))
    assert newest(tmp_path, 1) == [None]
    assert newest(tmp_path, 3) == [None, None, None]
    save(tmp_path, [10], SOLO)
    assert newest(tmp_path, 2) == [[100, 0], [100, 1]]
    (tmp_path / "unit00.checkpoint0").write_bytes(b"another part's")
    WorkFolder(tmp_path).finish("unit0", Saved({}, {}))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["unit0.part", "unit00.checkpoint0"]


def test_the_first_says_for_all_when_one_is_due(tmp_path: Path) -> None:
    def ask(hasty: int) -> Callable[[Workers], bool]:
        return lambda workers: WorkFolder(tmp_path, 0 if workers.rank == hasty else math.inf).is_due("unit0", workers)

    assert together(2, ask(0)) == [True, True]
    assert together(2, ask(1)) == [False, False]


# --- quantization


@pytest.fixture
def quantize(digits_teacher: Teacher, monkeypatch: pytest.MonkeyPatch) -> Callable[..., QuantizedNetwork]:
    """Quantize on this worker's share of the images."""
    intervals.mask_pool(monkeypatch, 1 << 16)
    images = noise(12)

    def run(workers: Workers, work: Work, **more: Any) -> QuantizedNetwork:
        options = {**quantizers.preset_options("genie-m"), "batch_size": 4, "weight_bits": 3, **MINMAX_RANGES, **more}
        config, own = build(QuantizeConfig, options), images[list(workers.share(len(images)))]
        return stages.quantize(digits_teacher, own, config, workers=workers, work=work, log_every=EVERY)

    return run


def state_of(network: QuantizedNetwork) -> dict[str, list[Any]]:
    weights = {name: [getattr(w, part).tolist() for part in ("codes", "scale")] for name, w in network.weights.items()}
    return {**weights, **{name: [float(site.step_size)] for name, site in network.activations.items()}}


@pytest.mark.parametrize(
    ("mortal", "more"),
    [(0, {"num_steps": 18}), (1, {"num_steps": 60, "patience": 7, "holdout": 0.34, "warmup": 0.0})],
)
def test_quantization_goes_on_to_the_same_network(
    mortal: int, more: dict[str, Any], quantize: Callable[..., QuantizedNetwork], tmp_path: Path
) -> None:
    more = {**more, "unit": "network"}
    whole = together(2, lambda workers: quantize(workers, NO_WORK, **more))
    resumed, deaths = None, 0
    while resumed is None:  # each time from one checkpoint to the next: the mortal one dies before its write

        def run(workers: Workers) -> QuantizedNetwork:
            return quantize(workers, TornFolder(tmp_path, 1 if workers.rank == mortal else math.inf), **more)

        try:
            resumed = together(2, run)
        except KilledError:
            deaths += 1
            assert deaths < 20
    taken = whole[0].units[0].num_steps
    assert deaths == (taken - 1) // EVERY - 1 >= 1
    assert (taken < more["num_steps"]) == ("patience" in more)
    for own, its_whole in zip(resumed, whole, strict=True):
        assert own.units == its_whole.units
        assert state_of(own) == state_of(its_whole) == state_of(whole[0])


def test_another_number_of_processes_keeps_units_and_starts_the_one_at_work_anew(
    quantize: Callable[..., QuantizedNetwork], tmp_path: Path
) -> None:
    steps = 11  # two checkpoints a unit
    with pytest.raises(KilledError):
        together(2, lambda workers: quantize(workers, TornFolder(tmp_path, 3), num_steps=steps))
    finished = WorkFolder(tmp_path).part("unit0")
    assert finished is not None and WorkFolder(tmp_path).num_parts() == 1
    work = TornFolder(tmp_path)
    network = quantize(SOLO, work, num_steps=steps)
    assert work.found == {}
    for name, weight in unpack_unit(finished, CPU).weights.items():
        assert torch.equal(network.weights[name].codes, weight.codes)
    assert not work.has_checkpoint()
    alone = quantize(SOLO, NO_WORK, num_steps=steps)
    for unit, other in zip(network.units[:-1], alone.units[:-1], strict=True):  # the last one's is noise
        assert unit.relative_error < 2 * other.relative_error


# --- synthesis


@pytest.mark.parametrize("size", [1, 3])
def test_batches_go_on_whoever_works_on_them(size: int, digits_teacher: Teacher, tmp_path: Path) -> None:
    options = {**synthesizers.preset_options("genie"), "num_steps": 25, "num_images": 8, "batch_size": 2}
    config = build(SynthesizeConfig, options)

    def run(workers: Workers, work: Work) -> Synthesis:
        return stages.synthesize(digits_teacher, config, workers=workers, work=work)

    whole = run(SOLO, NO_WORK)
    for rank in range(2):  # each in the middle of its second batch
        with pytest.raises(KilledError):
            run(Workers(rank, 2), TornFolder(tmp_path, 5))
    works = [TornFolder(tmp_path) for _ in range(size)]
    assert works[0].num_parts() == 2
    for result in together(size, lambda workers: run(workers, works[workers.rank])):
        assert torch.equal(result.images, whole.images)
        assert result.log == whole.log
    assert {name: step for work in works for name, step in work.found.items()} == {"batch2": 10, "batch3": 10}
