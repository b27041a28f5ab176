"""What all tests share."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import fx, nn

from genie_cli.artifacts.work_folder import WorkFolder
from genie_cli.config import InputSpec
from genie_cli.models import teacher
from genie_cli.models.digits import DigitsResNet
from genie_cli.models.graph.capture import capture
from genie_cli.models.graph.tensors import named_tensors, set_tensor


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


class MeasuredWork(WorkFolder):
    """Knows the sizes of the largest checkpoint and of all parts."""

    largest = parts = 0

    def save_checkpoint(self, name: str, *saved: Any) -> None:
        super().save_checkpoint(name, *saved)
        self.largest = max(self.largest, *(file.stat().st_size for file in self.path.glob("*.checkpoint*")))

    def finish(self, name: str, *saved: Any) -> None:
        super().finish(name, *saved)
        self.parts += (self.path / f"{name}.part").stat().st_size


@pytest.fixture
def measured_work(tmp_path: Path) -> MeasuredWork:
    """A work folder with a checkpoint whenever there can be one."""
    (tmp_path / "work").mkdir()
    return MeasuredWork(tmp_path / "work", interval=0)
