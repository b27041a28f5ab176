"""The metric that is chosen for data and network, users' own metrics, and what does not go together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from genie_cli.data.samples import Samples
from genie_cli.errors import InputError, UsageError
from genie_cli.evaluation.metrics.choose import Wanted, choose_metrics
from genie_cli.evaluation.metrics.decision import Decision
from genie_cli.evaluation.metrics.network_outputs import NetworkOutputs

CLASSIFIER = NetworkOutputs(("output",), Decision(3))
MAPS = NetworkOutputs(("a", "b"), None, why_no_logits="it returns maps")
CODE = """
import torch


class Mean:
    def __init__(self):
        self.values = []

    def update(self, outputs, targets):
        self.values.append(outputs.mean() + targets)

    def compute(self):
        return {"mean": sum(self.values) / len(self.values), "all": torch.stack(self.values), "count": len(self.values)}


SHARED = Mean()


def shared():
    return SHARED


def a_class():
    return Mean


def no_object():
    return {"update": 1}


def computes(value):
    class Fixed(Mean):
        def compute(self):
            return value
    return Fixed()


def scalar():
    return computes(torch.tensor(2.5))


def text():
    return computes({"a": "b"})


def lists_alone():
    return computes({"a": [1.0, 2.0]})


def matrix():
    return computes({"a": 1.0, "b": torch.zeros(2, 2)})


def reserved():
    return computes({"drop": 1.0})


def broken():
    raise RuntimeError("out of order")


def decode(outputs):
    return outputs["logits"]
"""


class Data(Samples):
    num_images = 5

    def __init__(self, task: Any = None, has_targets: bool = True) -> None:
        self.task, self.has_targets = task, has_targets

    def batches(self, *args: Any) -> Any:
        raise AssertionError("a choice reads no images")

    calibration_pixels = batches


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "own_metrics.py"
    path.write_text(CODE)
    return path


@pytest.mark.parametrize(
    ("data", "outputs", "name"),
    [
        (Data("classification"), CLASSIFIER, "classification"),
        (Data("segmentation"), MAPS, "segmentation"),
        (Data(has_targets=False), MAPS, "fidelity"),
        (Data("classification"), MAPS, "fidelity"),
    ],
)
def test_defaults_follow_from_the_data(data: Data, outputs: NetworkOutputs, name: str) -> None:
    metrics = choose_metrics(Wanted(), data, outputs, has_teacher=True)
    assert metrics.name == name
    assert (metrics.own is None, metrics.teacher is None, metrics.pair is None) == (name == "fidelity",) * 2 + (False,)
    assert bool(metrics.notes) == (data.task == "classification" and outputs is MAPS)


def test_without_a_teacher_there_is_nothing_to_compare() -> None:
    metrics = choose_metrics(Wanted(), Data("classification"), CLASSIFIER, has_teacher=False)
    assert metrics.own is not None and metrics.teacher is None and metrics.pair is None


@pytest.mark.parametrize(
    ("wanted", "data", "outputs", "problem"),
    [
        (
            Wanted("segmentaton"),
            Data("segmentation"),
            MAPS,
            "Unknown metric 'segmentaton'.*Did you mean 'segmentation'",
        ),
        (Wanted(), Data(), CLASSIFIER, "targets of their own kind"),
        (Wanted("classification"), Data(has_targets=False), CLASSIFIER, "the data have none: use --metric fidelity"),
        (Wanted("segmentation"), Data("detection"), MAPS, "needs class maps, and the data give boxes"),
        (Wanted("detection"), Data("detection"), MAPS, "--decode FILE.py:FUNCTION"),
        (Wanted(ignore_class=2), Data("classification"), CLASSIFIER, "--ignore-class 2 is for --metric segmentation"),
        (Wanted("fidelity", "{file}:decode"), Data(), MAPS, "compares outputs as they are"),
        (Wanted("classification"), Data("classification"), MAPS, "no accuracy to measure: it returns maps"),
        (Wanted("{file}:mean"), Data(), MAPS, "has no factory 'mean'. Did you mean 'Mean'"),
    ],
)
def test_what_does_not_go_together(
    wanted: Wanted, data: Data, outputs: NetworkOutputs, problem: str, file: Path
) -> None:
    named = Wanted(*(each and each.format(file=file) for each in (wanted.metric, wanted.decode)), wanted.ignore_class)
    with pytest.raises(UsageError, match=problem):
        choose_metrics(named, data, outputs, has_teacher=True)


def test_fidelity_needs_a_second_network() -> None:
    with pytest.raises(UsageError, match="give --quantized FOLDER, or --folded"):
        choose_metrics(Wanted(), Data(has_targets=False), MAPS, has_teacher=False)
    with pytest.raises(UsageError, match="no accuracy to measure: it returns maps"):
        choose_metrics(Wanted(), Data("classification"), MAPS, has_teacher=False)


def test_a_decode_makes_logits_of_other_outputs(file: Path) -> None:
    metrics = choose_metrics(Wanted(decode=f"{file}:decode"), Data("classification"), MAPS, has_teacher=True)
    assert metrics.name == "classification" and metrics.decode is not None and metrics.own is not None
    metrics.own.update(torch.eye(4), torch.tensor([0, 1, 2, 2]))
    assert metrics.own.compute()["top1"] == 75
    assert not metrics.own.is_summed


# --- users' own


def test_an_own_metric_gives_its_numbers(file: Path) -> None:
    metrics = choose_metrics(Wanted(f"{file}:Mean"), Data(), MAPS, has_teacher=True)
    assert (metrics.name, metrics.pair, set(metrics.codes())) == ("own_metrics.py:Mean", None, {"metric"})
    assert metrics.own is not None and metrics.teacher is not None
    for value in (1.0, 2.0):
        metrics.own.update(torch.full((2,), value), 10)
    assert metrics.own.compute() == {"mean": 11.5, "all": [11.0, 12.0], "count": 2.0}
    metrics.teacher.update(torch.zeros(1), 0)
    assert metrics.teacher.compute()["mean"] == 0


def test_one_number_is_called_after_its_class(file: Path) -> None:
    own = choose_metrics(Wanted(f"{file}:scalar"), Data(), MAPS, has_teacher=False).own
    assert own is not None and own.compute() == {"Fixed": 2.5}


def test_a_metric_of_torchmetrics_fits_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "tm.py"
    path.write_text(
        "from torchmetrics import MetricCollection\nfrom torchmetrics.classification import MulticlassAccuracy, "
        "MulticlassF1Score\n\n\ndef both():\n    return MetricCollection([MulticlassAccuracy(3, average='micro'), "
        "MulticlassF1Score(3, average=None)])\n"
    )
    own = choose_metrics(Wanted(f"{path}:both"), Data("classification"), CLASSIFIER, has_teacher=False).own
    assert own is not None
    own.update(torch.eye(3)[[0, 1, 1, 2]], torch.tensor([0, 1, 2, 2]))
    assert own.compute() == {
        "MulticlassAccuracy": 0.75,
        "MulticlassF1Score": [1.0, pytest.approx(2 / 3), pytest.approx(2 / 3)],
    }


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("text", r"must compute a dict of numbers, it computed a dict \{'a': str\}"),
        ("lists_alone", "must compute a dict of numbers"),
        ("matrix", "must compute a dict of numbers"),
        ("reserved", "calls a number 'drop', as metrics files do"),
    ],
)
def test_what_an_own_metric_may_not_compute(name: str, problem: str, file: Path) -> None:
    own = choose_metrics(Wanted(f"{file}:{name}"), Data(), MAPS, has_teacher=False).own
    assert own is not None
    with pytest.raises(InputError, match=problem):
        own.compute()


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("shared", "must give a new object each time"),
        ("a_class", "it gave a class"),
        ("no_object", "it gave a dict"),
        ("broken", r"failed in broken\(\): RuntimeError: out of order \(own_metrics\.py, line"),
    ],
)
def test_factories_that_are_refused(name: str, problem: str, file: Path) -> None:
    with pytest.raises(InputError, match=problem):
        choose_metrics(Wanted(f"{file}:{name}"), Data(), MAPS, has_teacher=True)


def test_a_failing_update_says_what_it_got(file: Path) -> None:
    own = choose_metrics(Wanted(f"{file}:Mean"), Data(), MAPS, has_teacher=False).own
    assert own is not None
    with pytest.raises(InputError) as raised:
        own.update({"a": torch.zeros(2, 3)}, [1, 2])
    assert "which got outputs a dict {'a': [2, 3]} and targets a list of 2, the first int: AttributeError" in str(
        raised.value
    )
    assert "(own_metrics.py, line 10, in update: self.values.append(outputs.mean() + targets))" in str(raised.value)
