"""Weights files: the same network from either format, and every kind of file that is refused."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from genie_cli.errors import InputError
from genie_cli.models.checkpoints import load_into, read_state, state_sha256


def small_network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 3))


@pytest.fixture
def network() -> nn.Sequential:
    torch.manual_seed(3)
    network = small_network()
    network[1].running_mean.normal_()
    network[1].num_batches_tracked.fill_(7)
    return network


@pytest.fixture
def state(network: nn.Sequential) -> dict[str, Tensor]:
    return network.state_dict()


def loaded_sha256(path: Path) -> str:
    other = small_network()
    load_into(other, read_state(path), str(path))
    return state_sha256(other)


# --- formats


@pytest.mark.parametrize(
    "save",
    [
        lambda state, path: save_file(state, path.with_suffix(".safetensors")),
        torch.save,
        lambda state, path: torch.save(state, path, _use_new_zipfile_serialization=False),
        lambda state, path: torch.save({"epoch": 3, "state_dict": state}, path),
        lambda state, path: torch.save({"model": {"state_dict": state}, "optimizer": {"lr": 0.1}}, path),
        lambda state, path: torch.save({f"module.{k}": v for k, v in state.items()}, path),
        lambda state, path: torch.save({f"_orig_mod.module.{k}": v for k, v in state.items()}, path),
        lambda state, path: torch.save({k: v for k, v in state.items() if "num_batches" not in k}, path),
        lambda state, path: torch.save({k: v.to_dense().clone() for k, v in reversed(state.items())}, path),
    ],
    ids=[
        "safetensors",
        "pth",
        "legacy pth",
        "state_dict",
        "model.state_dict",
        "module.",
        "_orig_mod.module.",
        "no counters",
        "other order",
    ],
)
def test_every_way_to_store_a_network_gives_the_same_hash(
    save: Callable[[dict[str, Tensor], Path], None], network: nn.Sequential, tmp_path: Path
) -> None:
    save(network.state_dict(), tmp_path / "weights.pth")
    (path,) = tmp_path.iterdir()
    assert loaded_sha256(path) == state_sha256(network)


@pytest.mark.parametrize("key", ["0.weight", "1.running_var", "3.bias"])
def test_hash_sees_one_changed_number(key: str, network: nn.Sequential) -> None:
    before = state_sha256(network)
    with torch.no_grad():
        network.state_dict()[key].view(-1)[-1] += 1e-6
    assert state_sha256(network) != before


def test_hash_tells_shapes_and_names_apart() -> None:
    weight = torch.arange(6.0)
    modules = []
    for name, shape in (("a", (2, 3)), ("a", (3, 2)), ("b", (2, 3))):
        module = nn.Module()
        module.register_buffer(name, weight.view(shape))
        modules.append(module)
    assert len({state_sha256(module) for module in modules}) == 3


def test_half_precision_weights_are_widened(network: nn.Sequential, tmp_path: Path) -> None:
    save_file({k: v.half() if v.is_floating_point() else v for k, v in network.state_dict().items()}, tmp_path / "w")
    (tmp_path / "w").rename(tmp_path / "w.safetensors")
    other = small_network()
    load_into(other, read_state(tmp_path / "w.safetensors"), "w")
    assert torch.equal(other[0].weight, network[0].weight.half().float())


# --- weights of another network


def without(key: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda state: {k: v for k, v in state.items() if k != key}


@pytest.mark.parametrize(
    ("change", "messages"),
    [
        (without("3.bias"), ["1 keys are missing, first '3.bias'"]),
        (lambda state: {**state, "4.weight": torch.ones(1)}, ["1 are unexpected, first '4.weight'"]),
        (
            lambda state: {**state, "3.weight": torch.ones(4, 2)},
            ["'3.weight' has shape (4, 2) instead of (3, 2)"],
        ),
        (
            lambda state: {k.replace("0.", "a.").replace("1.", "b.").replace("3.", "c."): v for k, v in state.items()},
            ["8 keys are missing, first '0.weight'"],
        ),
        (lambda state: {**state, "1.running_var": torch.tensor([1, float("nan")])}, ["NaN or infinity in '1.running"]),
        (lambda state: {**state, "0.bias": torch.tensor([1, -float("inf")])}, ["NaN or infinity in '0.bias'"]),
    ],
    ids=["missing", "unexpected", "shape", "renamed", "nan", "infinity"],
)
def test_weights_that_do_not_fit_are_described(
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]], messages: list[str], state: dict[str, Tensor]
) -> None:
    other = small_network()
    before = state_sha256(other)
    with pytest.raises(InputError) as raised:
        load_into(other, change(state), "Weights file w.pth")
    assert str(raised.value).startswith("Weights file w.pth ")
    assert all(message in str(raised.value) for message in messages)
    assert state_sha256(other) == before


# --- files that are no weights


class Payload:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "bare pickle"])
def test_code_in_a_pickle_is_refused_and_not_run(legacy: bool, state: dict[str, Tensor], tmp_path: Path) -> None:
    trap, path = tmp_path / "executed", tmp_path / "weights.pth"
    content = {**state, "extra": Payload(trap)}
    if legacy:
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path)
    with pytest.raises(InputError, match="more than plain tensors"):
        read_state(path)
    assert not trap.exists()
    torch.load(path, weights_only=False) if not legacy else pickle.loads(path.read_bytes())  # noqa: S301
    assert trap.exists()  # the trap works


def test_pickled_module_is_refused(network: nn.Sequential, tmp_path: Path) -> None:
    torch.save(network, tmp_path / "network.pth")
    with pytest.raises(InputError, match=r"save model.state_dict\(\)"):
        read_state(tmp_path / "network.pth")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".legacy"])
@pytest.mark.parametrize("share", [0, 0.02, 0.5, 0.98])
def test_truncated_file(suffix: str, share: float, state: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=suffix == ".pth")
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(InputError, match=f"Weights file {path}"):
        read_state(path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_no_damage_is_a_crash(state: dict[str, Tensor], tmp_path: Path) -> None:
    """torch.load raises IndexError, TypeError, struct.error, ... at damaged pickles."""
    torch.save(state, tmp_path / "good.pth", _use_new_zipfile_serialization=False)
    good, path = (tmp_path / "good.pth").read_bytes(), tmp_path / "bad.pth"
    refused = 0
    for position in range(0, 400):
        path.write_bytes(good[:position] + bytes([good[position] ^ 0x55]) + good[position + 1 :])
        try:
            read_state(path)
        except InputError:
            refused += 1
    assert refused > 100


@pytest.mark.parametrize(
    "content",
    [torch.ones(2), [torch.ones(2)], {}, {"epoch": 3}, {"state_dict": {}}, {"weight": [1.0]}],
    ids=["tensor", "list", "empty", "number", "empty state", "list of numbers"],
)
def test_content_that_is_no_state_dict(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(InputError, match="does not hold a state dict"):
        read_state(tmp_path / "w.pth")


def test_file_that_holds_itself(tmp_path: Path) -> None:
    content: dict[str, Any] = {}
    content["model"] = content
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(InputError, match="does not hold a state dict"):
        read_state(tmp_path / "w.pth")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"Weights file {tmp_path / 'w.pth'} does not exist"):
        read_state(tmp_path / "w.pth")
