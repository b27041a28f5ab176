"""Networks inside of wrappers, and networks that have run: taken as the networks that they are."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from typer.testing import CliRunner

import genie_cli
from genie_cli.app import app
from genie_cli.config import InputSpec, ModelConfig
from genie_cli.errors import InputError
from genie_cli.models.cold_copy import copies
from genie_cli.models.graph.capture import capture
from genie_cli.models.unwrapping import unwrapped
from genie_cli.models.zoo import load_teacher

SPEC = InputSpec(num_channels=1, size=8, mean=(0.0,), std=(1.0,))
MODEL = ("--num-channels", "1", "--input-size", "8", "--mean", "0", "--std", "1")

NETWORKS = '''
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel


class Scaled(nn.Module):
    """Keeps the weight that it computes of its parameters for the next call, in one way or another."""

    def __init__(self, way="dict"):
        super().__init__()
        torch.manual_seed(0)
        self.way, self.scale = way, nn.Parameter(torch.rand(4, 1, 1) + 0.5)
        self.kept, self.listed = {}, []
        if way == "none":
            self.cache = None

    def factor(self):
        if self.way == "dict":
            if "factor" not in self.kept:
                self.kept["factor"] = self.scale.abs() + 1
            return self.kept["factor"]
        if self.way == "list":
            if not self.listed:
                self.listed.append(self.scale.abs() + 1)
            return self.listed[0]
        if self.way == "none":
            if self.cache is None:
                self.cache = self.scale.abs() + 1
            return self.cache
        if not hasattr(self, "absent"):
            self.absent = self.scale.abs() + 1
        return self.absent

    def forward(self, x):
        self.features = x * self.factor()
        return self.features


class Net(nn.Module):
    def __init__(self, way="dict"):
        super().__init__()
        torch.manual_seed(1)
        self.conv, self.norm = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)
        self.scaled, self.head = Scaled(way), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.scaled(self.norm(self.conv(x)).relu()).mean((2, 3)))


def build():
    return Net()


def parallel():
    return nn.DataParallel(build())


def compiled():
    return torch.compile(build())


def averaged():
    return AveragedModel(nn.DataParallel(torch.compile(build())))
'''


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The networks' file, and a quantized folder for each way to keep a tensor."""
    folder = tmp_path_factory.mktemp("networks")
    source = NETWORKS + "".join(f"\n\ndef {way}():\n    return Net('{way}')\n" for way in WAYS)
    (folder / "wrapped_networks.py").write_text(source)
    save_file({"images": torch.zeros(2, 1, 8, 8, dtype=torch.uint8)}, folder / "images.safetensors")
    for way in WAYS:
        command = ["quantize", "--model", f"{folder}/wrapped_networks.py:{way}", *MODEL, "--preset", "minmax"]
        command += ["--images", f"{folder}/images.safetensors", "--out", f"{folder}/{way}"]
        outcome = CliRunner().invoke(app, command)
        assert outcome.exit_code == 0, outcome.output
    return folder


WAYS = ("dict", "list", "none", "absent")


def build(made: Path, name: str) -> Any:
    namespace: dict[str, Any] = {}
    exec((made / "wrapped_networks.py").read_text(), namespace)
    return namespace[name]()


# --- wrappers


@pytest.mark.parametrize("name", ["parallel", "compiled", "averaged"])
def test_a_wrapped_network_is_the_network(name: str, made: Path) -> None:
    options = {"input_size": 8, "num_channels": 1, "mean": (0,), "std": (1,)}
    plain, wrapped = (
        load_teacher(ModelConfig(name=f"{made}/wrapped_networks.py:{each}", **options)) for each in ("build", name)
    )
    assert wrapped.sha256 == plain.sha256
    assert list(wrapped.graph.state_dict()) == list(plain.graph.state_dict())


@pytest.mark.parametrize("name", ["parallel", "compiled", "averaged"])
def test_load_takes_a_wrapped_network(name: str, made: Path) -> None:
    images = torch.rand(3, 1, 8, 8)
    wanted = genie_cli.load(build(made, "build"), made / "dict")(images)
    assert torch.equal(genie_cli.load(build(made, name), made / "dict")(images), wanted)


class Holder(nn.Module):
    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part, self.head = part, nn.Linear(4, 3)

    def forward(self, *args: Tensor, **options: Any) -> Tensor:
        return self.head(self.part(*args, **options))


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile, AveragedModel], ids=lambda wrap: wrap.__name__)
def test_parts_may_be_wrapped_too(wrap: Callable[[nn.Module], nn.Module]) -> None:
    torch.manual_seed(0)
    network = Holder(wrap(nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()))).eval()
    graph, images = capture(unwrapped(network), SPEC), torch.rand(3, 1, 8, 8)
    assert torch.allclose(graph(images), network(images), atol=1e-6)


def test_parallel_parts_run_where_they_are() -> None:
    part = nn.DataParallel(nn.Linear(2, 2))
    part.device_ids = [0, 1]  # as where there are two GPUs
    unwrapped(nn.Sequential(part))
    assert part(torch.ones(1, 2)).shape == (1, 2)


# --- networks that have run


@pytest.mark.parametrize("with_gradients", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_a_network_that_has_run_is_loaded(way: str, with_gradients: bool, made: Path) -> None:
    images = torch.rand(3, 1, 8, 8)
    fresh, warm = build(made, way), build(made, way).eval()
    with torch.set_grad_enabled(with_gradients):
        before = warm(images)
    wanted = genie_cli.load(fresh, made / way)(images)
    assert torch.equal(genie_cli.load(warm, made / way)(images), wanted)
    with torch.no_grad():
        assert torch.equal(warm(images), before)  # left alone


def test_weights_of_a_network_that_has_run_are_not_those_that_are_loaded(made: Path) -> None:
    images, warm = torch.rand(3, 1, 8, 8), build(made, "dict").eval()
    with torch.no_grad():
        warm.scaled.scale.add_(5)
        warm(images)
    assert torch.equal(
        genie_cli.load(warm, made / "dict")(images), genie_cli.load(build(made, "dict"), made / "dict")(images)
    )


def test_a_network_without_kept_tensors_is_copied_once() -> None:
    assert len(list(copies(nn.Linear(2, 2)))) == 1


def test_the_first_error_is_the_one_that_is_told(made: Path) -> None:
    warm = build(made, "dict").eval()
    warm.head = nn.Linear(4, 7)
    warm(torch.rand(1, 1, 8, 8))
    with pytest.raises(InputError, match="does not fit this network"):
        genie_cli.load(warm, made / "dict")


def test_a_network_that_cannot_be_copied_is_told_of(made: Path) -> None:
    network = build(made, "dict")
    network.lock = threading.Lock()
    with pytest.raises(InputError, match=r"cannot be copied \(TypeError.*FILE.py:FACTORY"):
        genie_cli.load(network, made / "dict")
