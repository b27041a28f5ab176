"""What all tests share."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import fx, nn

from genie_cli.config import InputSpec, ModelConfig
from genie_cli.models import teacher
from genie_cli.models.digits import DigitsResNet
from genie_cli.models.graph.capture import capture
from genie_cli.models.graph.tensors import named_tensors, set_tensor
from genie_cli.models.teacher import Teacher
from genie_cli.models.zoo import load_teacher
from tests.support.work import MeasuredFolder

NUMERIC = ("evaluation", "models/graph", "quantization", "student", "synthesis")
"""Folders of tests that compare figures: they run with the kernels of other processors and on the oldest torch too."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of those folders."""
    folders = tuple(Path(__file__).parent / name for name in NUMERIC)
    for item in items:
        if any(item.path.is_relative_to(folder) for folder in folders):
            item.add_marker(pytest.mark.numeric)


@pytest.fixture(scope="session", autouse=True)
def digits_networks_are_captured_once() -> Iterator[None]:
    """Hundreds of tests load the embedded network, in hundredths of a second: a copy of its graph gets its tensors."""
    known: dict[tuple[str, InputSpec], fx.GraphModule] = {}

    def capture_once(network: nn.Module, spec: InputSpec) -> fx.GraphModule:
        if type(network) is not DigitsResNet:
            return capture(network, spec)
        key = (repr(network), spec)
        if key not in known:
            known[key] = capture(copy.deepcopy(network), spec)
        graph_module, tensors = copy.deepcopy(known[key]), network.eval().state_dict()
        for name in named_tensors(graph_module):
            set_tensor(graph_module, name, tensors[name])
        return graph_module

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(teacher, "capture", capture_once)
        yield


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
