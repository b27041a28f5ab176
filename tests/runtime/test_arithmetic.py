"""The arithmetic of a run: what the user wants, what is faster, what an unfinished run has, what a network allows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from genie_cli.errors import InputError
from genie_cli.runtime import arithmetic
from genie_cli.runtime.arithmetic import Precision, choose_arithmetic, decide_arithmetic
from genie_cli.runtime.arithmetic_speed import Passes, Seconds
from genie_cli.runtime.context import RunContext
from genie_cli.runtime.distribution import SOLO, Workers

CPU, FLOAT, HALF = torch.device("cpu"), torch.float32, torch.bfloat16


@pytest.fixture
def gain(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Set the share by which bfloat16 is faster."""

    def measured(share: float) -> None:
        monkeypatch.setattr(arithmetic, "cpu_seconds", lambda passes: Seconds(1.0 + share, 1.0))

    return measured


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(passes: Passes) -> Seconds:
        raise AssertionError("nothing is to be measured")

    monkeypatch.setattr(arithmetic, "cpu_seconds", refuse)


@dataclass
class Decision:
    """`decide_arithmetic` with what it asks and says."""

    precision: Precision = "auto"
    workers: Workers = SOLO
    lacking: str | None = None
    unfinished: tuple[torch.dtype, ...] = ()
    asked: list[torch.dtype] = field(default_factory=list)
    said: list[tuple[str, bool]] = field(default_factory=list)

    def make(self) -> arithmetic.ChosenArithmetic:
        def unsupported(context: RunContext) -> str | None:
            self.asked.append(context.dtype)
            return self.lacking

        return decide_arithmetic(
            self.precision,
            CPU,
            self.workers,
            "quantize",
            unsupported,
            self.unfinished.__contains__,
            lambda message, warning: self.said.append((message, warning)),
        )


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize(("precision", "dtype"), [("fp32", FLOAT), ("bf16", HALF)])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_named_precision_is_taken(precision: Precision, dtype: torch.dtype, device: str):
    assert choose_arithmetic(precision, torch.device(device), "synthesize").dtype == dtype


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0.43, "bfloat16: it gains 43 %, measured"),
        (0.16, "bfloat16: it gains 16 %, measured"),
        (0.14, "float32: bfloat16 gains 14 %, measured"),
        (0.03, "float32: bfloat16 gains 3 %, measured"),
        (-0.5, "float32: bfloat16 takes 2.0 times as long, measured"),
    ],
)
def test_auto_takes_bfloat16_on_a_cpu_where_it_gains(gain: Callable[[float], None], share: float, text: str):
    gain(share)
    assert str(choose_arithmetic("auto", CPU, "quantize")) == text


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize(("capability", "dtype"), [((7, 5), FLOAT), ((8, 0), HALF), ((9, 0), HALF)], ids=str)
def test_auto_on_a_gpu_looks_at_its_matrix_units(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], dtype: torch.dtype
):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert choose_arithmetic("auto", torch.device("cuda"), "quantize").dtype == dtype


def test_what_is_faster_and_can_be_computed_is_taken(gain: Callable[[float], None]):
    gain(0.5)
    decision = Decision()
    assert str(decision.make()) == "bfloat16: it gains 50 %, measured"
    assert (decision.asked, decision.said) == ([HALF], [])


@pytest.mark.parametrize(("precision", "is_warning"), [("auto", False), ("bf16", True)])
def test_what_cannot_be_computed_is_named(gain: Callable[[float], None], precision: Precision, is_warning: bool):
    gain(0.5)
    decision = Decision(precision, lacking="avg_pool3d of 'lrn'")
    assert str(decision.make()) == "float32: avg_pool3d of 'lrn' cannot be computed in bfloat16"
    reason = "avg_pool3d of 'lrn' cannot be computed in bfloat16: the run goes on in float32."
    assert decision.said == [(reason, is_warning)]


def test_float32_is_not_tried(gain: Callable[[float], None]):
    gain(0.0)
    decision = Decision(lacking="never asked")
    assert decision.make().dtype == FLOAT
    assert decision.asked == []


@pytest.mark.parametrize(("share", "left"), [(0.5, FLOAT), (0.0, HALF)])
def test_an_unfinished_run_goes_on_in_its_own_arithmetic(
    gain: Callable[[float], None], share: float, left: torch.dtype
):
    gain(share)
    decided = Decision(unfinished=(left,)).make()
    assert decided.dtype == left
    assert "unfinished run" in decided.reason
    assert Decision(unfinished=(FLOAT, HALF)).make().dtype != left, "with two of them the faster one goes on"


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize(("precision", "left", "dtype"), [("fp32", HALF, FLOAT), ("bf16", FLOAT, HALF)])
def test_an_unfinished_run_does_not_win_over_the_user(precision: Precision, left: torch.dtype, dtype: torch.dtype):
    assert Decision(precision, unfinished=(left,)).make().dtype == dtype


@dataclass(frozen=True)
class Table(Workers):
    """One of two processes, whose other one says these numbers in turn, and has no errors."""

    others: Iterator[float] = field(default_factory=lambda: iter(()))

    def sum_(self, tensor: Tensor) -> Tensor:
        return tensor.add_(next(self.others))

    def agree(self, error: Exception | None) -> None:
        if error is not None:
            raise error


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize(("first_says", "dtype"), [([1, 0], HALF), ([0], FLOAT)])
def test_the_first_process_decides_for_the_others(first_says: list[float], dtype: torch.dtype):
    decided = Decision(workers=Table(1, 2, iter(first_says))).make()
    assert (decided.dtype, decided.reason) == (dtype, "as the first process chose")


def test_one_process_that_cannot_makes_all_take_float32(gain: Callable[[float], None]):
    gain(0.5)
    decided = Decision(workers=Table(0, 2, iter([0, 1]))).make()
    assert (decided.dtype, decided.reason) == (FLOAT, "what another process met cannot be computed in bfloat16")
    assert Decision(workers=Table(1, 2, iter([1, 0])), lacking="gru of 'rnn'").make().dtype == FLOAT


def test_bad_input_that_shows_early_is_the_users_error(gain: Callable[[float], None]):
    gain(0.5)

    def unsupported(context: RunContext) -> str | None:
        raise InputError("no batch norms")

    with pytest.raises(InputError, match="no batch norms"):
        decide_arithmetic("auto", CPU, SOLO, "synthesize", unsupported, lambda dtype: False, lambda *said: None)
