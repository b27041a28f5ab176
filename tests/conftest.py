"""What all tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from genie_cli.config import ModelConfig
from genie_cli.models.teacher import Teacher
from genie_cli.models.zoo import load_teacher
from tests.support.captures import capture_digits_once
from tests.support.work import MeasuredFolder

NUMERIC = (
    "evaluation", "quantization", "student/test_grid.py", "student/test_student_modules.py", "student/test_load.py",
    "synthesis", "models/graph/test_equalization.py", "models/graph/test_families.py", "models/graph/test_moving.py",
    "models/graph/test_rows_first.py",
)  # fmt: skip
"""Folders and files of tests that compare figures: they run with the kernels of other processors and on the oldest
torch too."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark those tests."""
    places = tuple(Path(__file__).parent / name for name in NUMERIC)
    for item in items:
        if any(item.path.is_relative_to(place) for place in places):
            item.add_marker(pytest.mark.numeric)


@pytest.fixture(scope="session", autouse=True)
def digits_networks_are_captured_once() -> None:
    capture_digits_once()


@pytest.fixture(scope="session", autouse=True)
def processes_import_these_sources() -> Iterator[None]:
    """Python started by a test, in whatever folder, imports the library and `tests.support` from this checkout."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent.parent), prepend=os.pathsep)
        yield


@pytest.fixture(scope="session")
def digits_teacher() -> Teacher:
    """The embedded network; nobody changes it."""
    return load_teacher(ModelConfig(name="digits_resnet"))


@pytest.fixture
def measured_work(tmp_path: Path) -> MeasuredFolder:
    """A work folder with a checkpoint whenever there can be one."""
    (tmp_path / "work").mkdir()
    return MeasuredFolder(tmp_path / "work", interval=0)
