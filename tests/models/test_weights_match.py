"""Weights files as trainers write them: every wrapper is found, a choice is asked for, and code is refused."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import Tensor, nn

from genie_cli.config import ModelConfig
from genie_cli.errors import InputError, UsageError
from genie_cli.models.checkpoints import load_into, read_state, state_sha256
from genie_cli.models.zoo import load_architecture, load_teacher

State = dict[str, Tensor]


class Branch(nn.Module):
    """A stem, and a head on it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3))
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stem(x).relu().mean((2, 3)))


class Shared(Branch):
    """The stem's parts under names of their own, and a second head with the weight of the first."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = self.stem[0], self.stem[-1]
        self.tied = nn.Linear(3, 2)
        self.tied.weight = self.head.weight


def made(kind: Callable[[], nn.Module] = Branch, seed: int = 1) -> nn.Module:
    torch.manual_seed(seed)
    network = kind()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
    return network


def under(prefix: str, state: State) -> State:
    return {f"{prefix}{name}": value for name, value in state.items()}


def load(content: Any, path: Path, network: nn.Module | None = None, key: str | None = None) -> nn.Module:
    torch.save(content, path)
    network = made(seed=2) if network is None else network
    load_into(network, read_state(path), f"Weights file {path.name}", key)
    return network


# --- one choice


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: under("model.", s),
        lambda s: under("net.", s),
        lambda s: under("backbone.", s),
        lambda s: under("some.network.of.mine.", s),
        lambda s: under("module.model.net.", s),
        lambda s: {"state_dict": under("model.module.", s), "epoch": 3, "hyper_parameters": {"lr": 0.1}},
        lambda s: {"checkpoint": {"model": {"state_dict": under("_orig_mod.", s)}}},
        lambda s: {"state_dict": s, "best_accuracy": torch.tensor(1.0)},
        lambda s: {"model_ema": under("module.", s)},
        lambda s: {"params_ema": s},
        lambda s: {"ema": {"decay": 0.999, "num_updates": 7, "shadow": under("module.", s)}},
        lambda s: {"state_dict": s, "state_dict_ema": {k: v.clone() for k, v in s.items()}},
        lambda s: {"model": s, "optimizer": {"exp_avg": {k: v + 1 for k, v in s.items()}}},
        lambda s: {"model": s, "args": argparse.Namespace(out=Path("runs"), lr=0.1), "best": np.float64(91.2)},
        lambda s: {part: {k[5:]: v for k, v in s.items() if k.startswith(part)} for part in ("stem", "head")},
        lambda s: {k.replace("stem.", "stem.module."): v for k, v in s.items()},
        lambda s: {k.replace("head.", "head._orig_mod."): v for k, v in under("module.", s).items()},
    ],
    ids=[
        "model.", "net.", "backbone.", "own prefix", "three prefixes", "lightning", "three wrappers", "a score beside",
        "model_ema", "params_ema", "shadow", "equal average", "named moments", "options beside", "parts apart",
        "parallel part", "compiled part",
    ],
)  # fmt: skip
def test_a_network_is_found_under_any_wrappers(wrap: Callable[[State], Any], tmp_path: Path) -> None:
    network = made()
    assert state_sha256(load(wrap(network.state_dict()), tmp_path / "w.pth")) == state_sha256(network)


@pytest.mark.parametrize("name", ["model.safetensors", "model.bin"])
def test_a_file_is_known_by_its_content(name: str, tmp_path: Path) -> None:
    network = made()
    save_file(under("module.", network.state_dict()), tmp_path / name)
    other = made(seed=2)
    load_into(other, read_state(tmp_path / name), name)
    assert state_sha256(other) == state_sha256(network)


def test_a_network_that_is_wrapped_itself_takes_weights_that_are_not(tmp_path: Path) -> None:
    wrapped = nn.ModuleDict({"net": made(seed=2)})
    load(under("model.", made().state_dict()), tmp_path / "w.pth", wrapped)
    assert state_sha256(wrapped["net"]) == state_sha256(made())


def test_what_lies_beside_the_network_is_told(tmp_path: Path) -> None:
    network, other = made(), made(seed=2)
    content = {**under("model.", network.state_dict()), "criterion.weight": torch.ones(2), "steps": torch.tensor(4)}
    torch.save({"state_dict": content}, tmp_path / "w.pth")
    (told,) = load_into(other, read_state(tmp_path / "w.pth"), "Weights file w.pth")
    assert state_sha256(other) == state_sha256(network)
    assert "under 'state_dict.model'; 1 beside them are left out, first 'state_dict.criterion.weight'" in told


# --- names that a file leaves out


def test_a_shared_tensor_needs_one_of_its_names(tmp_path: Path) -> None:
    network = made(Shared)
    save_model(network, str(tmp_path / "w.safetensors"))
    state = read_state(tmp_path / "w.safetensors")
    assert len(state) < len(network.state_dict())
    other = made(Shared, seed=2)
    load_into(other, under("backbone.", state), "w")
    assert state_sha256(other) == state_sha256(network)


def test_values_that_differ_for_one_tensor_are_refused() -> None:
    state = made(Shared).state_dict()
    state["tied.weight"] = state["tied.weight"] + 1
    with pytest.raises(InputError, match=r"different values for 'head.weight' and 'tied.weight'"):
        load_into(made(Shared, seed=2), state, "w")


# --- more than one choice


def test_sets_that_differ_need_a_key(tmp_path: Path) -> None:
    plain, average = made(), made(seed=3)
    content = {"state_dict": plain.state_dict(), "state_dict_ema": under("module.", average.state_dict())}
    with pytest.raises(InputError, match=r"state_dict, state_dict_ema.module\. Choose one with --weights-key"):
        load(content, tmp_path / "w.pth")
    assert state_sha256(load(content, tmp_path / "w.pth", key="state_dict")) == state_sha256(plain)
    assert state_sha256(load(content, tmp_path / "w.pth", key="state_dict_ema")) == state_sha256(average)


@pytest.mark.parametrize("key", ["ema.shadow", "ema/shadow", "shadow"])
def test_an_average_of_parameters_takes_the_buffers_beside_it(key: str, tmp_path: Path) -> None:
    plain, average = made(), made(seed=3)
    content = {"model": plain.state_dict(), "ema": {"shadow": dict(average.named_parameters())}}
    with pytest.raises(InputError, match=r"model, ema\.shadow"):
        load(content, tmp_path / "w.pth")
    loaded = load(content, tmp_path / "w.pth", key=key)
    assert torch.equal(loaded.head.weight, average.head.weight)
    assert torch.equal(loaded.stem[1].running_mean, plain.stem[1].running_mean)


def test_two_prefixes_in_one_mapping_need_a_key(tmp_path: Path) -> None:
    student, teacher = made(), made(seed=3)
    content = {**under("student.", student.state_dict()), **under("teacher.", teacher.state_dict())}
    with pytest.raises(InputError, match=r"student, teacher\. Choose one"):
        load(content, tmp_path / "w.pth")
    assert state_sha256(load(content, tmp_path / "w.pth", key="teacher")) == state_sha256(teacher)


def test_an_absent_key_lists_those_that_there_are(tmp_path: Path) -> None:
    content = {"model": under("net.", made().state_dict()), "ema": {"shadow": made(seed=3).state_dict()}}
    with pytest.raises(InputError, match=r"nothing under 'models'.* model \(9 tensors\), model\.net \(9 .*ema\.shadow"):
        load(content, tmp_path / "w.pth", key="models")


def test_weights_of_another_network_list_what_the_file_holds(tmp_path: Path) -> None:
    content = {"generator": {"a.weight": torch.ones(2)}, "critic": {"b.weight": torch.ones(2)}}
    with pytest.raises(InputError) as raised:
        load(content, tmp_path / "w.pth")
    assert "8 keys are missing, first 'stem.0.weight'" in str(raised.value)
    assert "generator (1 tensor)" in str(raised.value)
    assert "--weights-key" in str(raised.value)


def test_the_command_line_picks(tmp_path: Path) -> None:
    torch.manual_seed(1)
    (tmp_path / "own_network.py").write_text(
        "from torch import nn\n"
        "def build():\n"
        "    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten())\n"
    )
    name = f"{tmp_path}/own_network.py:build"
    options = {"name": name, "input_size": 8, "num_channels": 1, "mean": (0,), "std": (1,)}
    state = load_architecture(ModelConfig(name=name)).state_dict()
    torch.save({"a": state, "b": {k: v + 1 for k, v in state.items()}}, tmp_path / "w.pth")
    hashes = {
        key: load_teacher(ModelConfig(**options, weights=str(tmp_path / "w.pth"), weights_key=key)).sha256
        for key in ("a", "b")
    }
    assert hashes["a"] != hashes["b"]
    with pytest.raises(UsageError, match="--weights-key 'a' picks from a weights file"):
        load_teacher(ModelConfig(**options, weights_key="a"))


# --- code


def test_a_whole_network_and_a_script_are_refused_with_the_fix(tmp_path: Path) -> None:
    torch.save({"model": nn.Sequential(nn.Linear(2, 2))}, tmp_path / "whole.pth")
    with pytest.raises(InputError, match=r"a whole pickled network \(torch.nn.*run code.*save model.state_dict\(\)"):
        read_state(tmp_path / "whole.pth")
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), tmp_path / "script.pt")
    with pytest.raises(InputError, match=r"TorchScript program.*torch.jit.load\('script.pt'\).state_dict\(\)"):
        read_state(tmp_path / "script.pt")


class Own:
    """A class of a trainer's."""


def test_other_objects_are_named(tmp_path: Path) -> None:
    torch.save({"model": made().state_dict(), "options": Own()}, tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"pickled objects \(.*Own\), whose loading would run code"):
        read_state(tmp_path / "w.pth")
