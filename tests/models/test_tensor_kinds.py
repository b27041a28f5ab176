"""Networks whose tensors have no values, are not dense or are too large, from a factory or as a module."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from genie_cli.config import ModelConfig
from genie_cli.errors import InputError
from genie_cli.models.checkpoints import state_sha256
from genie_cli.models.zoo import load_teacher, module_teacher

FACTORIES = """
import torch
from torch import nn

def plain():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())

def lazy():
    return nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.ReLU())

def meta():
    with torch.device("meta"):
        return plain()

def sparse():
    network = plain()
    network.register_buffer("table", torch.eye(3).to_sparse())
    return network

def half():
    return plain().half()

def double():
    network = plain().double()
    network[1].running_var.fill_(3e39)
    return network

def inference():
    with torch.inference_mode():
        return plain()
"""


@pytest.fixture
def file(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A user's file; a name of its own, for modules stay imported."""
    path = tmp_path / ("kinds_" + "".join(c if c.isalnum() else "_" for c in request.node.name) + ".py")
    path.write_text(FACTORIES)
    return path


def made(name: str) -> nn.Module:
    found: dict[str, object] = {}
    exec(FACTORIES, found)
    factory = found[name]
    assert callable(factory)
    network = factory()
    assert isinstance(network, nn.Module)
    return network


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lazy", "has a lazy layer, whose '0.weight' has no shape yet: run the network once"),
        ("meta", "cannot be used: '0.weight' is on the device meta, without values"),
        ("sparse", r"cannot be used: 'table' is not dense \(sparse_coo\)"),
        ("double", r"holds 3e\+39 in '1.running_var', and genie computes in float32, which ends at 3.4e\+38"),
    ],
)
def test_networks_that_cannot_be_used(name: str, message: str, file: Path) -> None:
    with pytest.raises(InputError, match=f"^Model '{file}:{name}' {message}"):
        load_teacher(ModelConfig(name=f"{file}:{name}", num_channels=1, input_size=8))
    with pytest.raises(InputError, match=f"^Network 'Sequential' {message}"):
        module_teacher(made(name), ModelConfig(name="Sequential", num_channels=1, input_size=8))


def test_a_lazy_network_is_refused_before_its_weights_are_read(file: Path) -> None:
    with pytest.raises(InputError, match="has a lazy layer"):
        load_teacher(ModelConfig(name=f"{file}:lazy", weights=f"{file}.safetensors"))


@pytest.mark.parametrize("name", ["half", "inference"])
def test_weights_of_float32_are_taken_as_they_are(name: str, file: Path, tmp_path: Path) -> None:
    network = made("plain")
    network.get_submodule("1").get_buffer("running_var").fill_(1e5)
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    shape = {"num_channels": 1, "input_size": 8, "mean": (0.5,), "std": (0.5,)}
    config = ModelConfig(name=f"{file}:{name}", weights=str(tmp_path / "w.safetensors"), **shape)
    teacher = load_teacher(config)
    assert teacher.sha256 == state_sha256(network)
    assert ["float16" in note for note in teacher.notes] == ([True] if name == "half" else [])


def test_a_half_network_keeps_its_own_weights(file: Path) -> None:
    torch.manual_seed(0)
    teacher = load_teacher(ModelConfig(name=f"{file}:half", num_channels=1, input_size=8, mean=(0.5,), std=(0.5,)))
    torch.manual_seed(0)
    network = made("half")
    before = state_sha256(network)
    assert module_teacher(network, ModelConfig(name="N", num_channels=1, input_size=8, mean=(0.5,), std=(0.5,))).sha256
    assert state_sha256(network) == before
    assert teacher.sha256 == state_sha256(network.float())
