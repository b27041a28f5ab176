"""Distances of a student's outputs from its teacher's, against NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genie_cli.errors import InputError
from genie_cli.evaluation.metrics.fidelity import Fidelity


@settings(deadline=None)
@given(seed=st.integers(0, 2**32), scale=st.sampled_from([1e-6, 1e-2, 1.0]), batch_size=st.integers(1, 7))
def test_against_numpy(seed: int, scale: float, batch_size: int) -> None:
    rng = np.random.default_rng(seed)
    teacher = rng.normal(size=(6, 3, 4)).astype(np.float32)
    student = (teacher + scale * rng.normal(size=teacher.shape)).astype(np.float32)
    metric = Fidelity(["output"])
    for first in range(0, 6, batch_size):
        rows = slice(first, first + batch_size)
        metric.update(torch.from_numpy(student[rows]), torch.from_numpy(teacher[rows]))
    s, t = student.astype(np.float64).reshape(6, -1), teacher.astype(np.float64).reshape(6, -1)
    ratio = ((s - t) ** 2).sum() / (t**2).sum()
    cosine = np.mean((s * t).sum(1) / np.linalg.norm(s, axis=1) / np.linalg.norm(t, axis=1))
    assert metric.compute() == pytest.approx(
        {"sqnr_db": -10 * np.log10(ratio), "relative_error": np.sqrt(ratio), "cosine": cosine}, rel=1e-9
    )


def test_several_outputs_give_the_worst_of_each() -> None:
    metric = Fidelity(["near", "far"])
    teacher = (torch.ones(2, 4), torch.ones(2, 2, 2))
    metric.update((teacher[0] * 1.01, torch.tensor([[[1.0, 1], [1, -1]]]).expand(2, 2, 2)), teacher)
    found = metric.compute()
    near, far = found["outputs"]["near"], found["outputs"]["far"]
    assert near["relative_error"] == pytest.approx(0.01, rel=1e-5) and near["sqnr_db"] == pytest.approx(40, rel=1e-5)
    assert near["cosine"] == pytest.approx(1)
    assert far == {"sqnr_db": 0.0, "relative_error": 1.0, "cosine": 0.5}
    assert {key: found[key] for key in far} == far


def test_equal_outputs_and_outputs_of_zeros() -> None:
    same = Fidelity(["output"])
    same.update(torch.ones(2, 3), torch.ones(2, 3))
    assert same.compute() == {"sqnr_db": math.inf, "relative_error": 0.0, "cosine": pytest.approx(1)}
    zeros = Fidelity(["output"])
    zeros.update(torch.zeros(1, 3), torch.zeros(1, 3))
    assert zeros.compute() == {"sqnr_db": math.inf, "relative_error": 0.0, "cosine": 1.0}
    lost = Fidelity(["output"])
    lost.update(torch.ones(1, 3), torch.zeros(1, 3))
    assert lost.compute() == {"sqnr_db": -math.inf, "relative_error": math.inf, "cosine": 0.0}


def test_processes_add_up() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 5, 3, generator=generator)
    parts, whole = [Fidelity(["output"]) for _ in range(2)], Fidelity(["output"])
    whole.update(student, teacher)
    for i in range(5):
        parts[i % 2].update(student[i : i + 1], teacher[i : i + 1])
    for own, other in zip(parts[0].counts(), parts[1].counts(), strict=True):
        own += other
    assert parts[0].compute() == pytest.approx(whole.compute())


def test_another_number_of_outputs() -> None:
    with pytest.raises(InputError, match="Metric fidelity takes floats"):
        Fidelity(["a", "b"]).update(torch.ones(1, 2), torch.ones(1, 2))
