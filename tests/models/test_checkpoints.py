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
from genie_cli.models.checkpoints import check_numbers, load_into, read_state, state_sha256


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


def test_a_half_network_takes_what_only_float32_holds(network: nn.Sequential) -> None:
    network[1].running_var.fill_(1e5)
    other = small_network().half()
    notes = load_into(other, network.state_dict(), "w")
    assert notes == ["the network has weights in float16: cast to float32."]
    assert state_sha256(other) == state_sha256(network)


def test_weights_of_8_bit_floats_are_widened(network: nn.Sequential) -> None:
    state = {k: v.to(torch.float8_e4m3fn) if v.is_floating_point() else v for k, v in network.state_dict().items()}
    other = small_network()
    load_into(other, {**state, **{f"ema/{k}": v.clone() for k, v in state.items()}}, "w")
    assert torch.equal(other[0].weight, network[0].weight.to(torch.float8_e4m3fn).float())


def test_what_is_no_tensor_in_a_state_is_left_alone() -> None:
    class WithState(nn.Linear):
        def get_extra_state(self) -> dict[str, int]:
            return {"version": 1}

        def set_extra_state(self, state: dict[str, int]) -> None:
            pass

    network = WithState(2, 3)
    check_numbers(network.state_dict(), "w")
    plain = nn.Linear(2, 3)
    plain.load_state_dict({name: value for name, value in network.state_dict().items() if isinstance(value, Tensor)})
    assert state_sha256(network) == state_sha256(plain)


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
        (
            lambda state: {**state, "1.running_var": torch.tensor([1, 3e39], dtype=torch.float64)},
            ["holds 3e+39 in '1.running_var'", "ends at 3.4e+38"],
        ),
    ],
    ids=["missing", "unexpected", "shape", "renamed", "nan", "infinity", "beyond float32"],
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


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's, on quantized tensors
@pytest.mark.parametrize(
    ("convert", "message"),
    [
        (lambda value: value.int(), "'0.weight' is int32 where the network has float32: dequantize"),
        (lambda value: value > 0, "'0.weight' is bool where the network has float32"),
        (lambda value: value.to(torch.complex64), "'0.weight' is complex64 where the network has float32"),
        (lambda value: torch.empty_like(value, device="meta"), "'0.weight' is on the device meta, without values"),
        (lambda value: value.to_sparse(), r"'0.weight' is not dense \(sparse_coo\): use its to_dense"),
        (
            lambda value: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8),
            r"'0.weight' is a quantized tensor \(qint8\): use its dequantize",
        ),
        (
            lambda value: torch.zeros(value.shape, dtype=torch.uint8).view(torch.float4_e2m1fn_x2),
            "'0.weight' is float4_e2m1fn_x2, which PyTorch does not convert",
        ),
    ],
    ids=["integers", "bool", "complex", "meta", "sparse", "quantized", "packed"],
)
def test_tensors_that_are_no_weights_are_refused(
    convert: Callable[[Tensor], Tensor], message: str, state: dict[str, Tensor]
) -> None:
    weight = convert(state["0.weight"].detach())
    two_sets = {f"{place}/{key}": value for place in ("a", "b") for key, value in {**state, "0.weight": weight}.items()}
    for given in ({**state, "0.weight": weight}, two_sets):
        with pytest.raises(InputError, match=message):
            load_into(small_network(), given, "Weights file w.pth")


def test_integers_beside_the_weights_are_left_out(network: nn.Sequential, state: dict[str, Tensor]) -> None:
    codes = {f"codes/{key}": value.to(torch.int8) for key, value in state.items()}
    other = small_network()
    load_into(other, {**codes, **{f"float/{key}": value for key, value in state.items()}}, "w")
    assert state_sha256(other) == state_sha256(network)


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


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors", "w"])
@pytest.mark.parametrize("content", [b"", b"text of someone", b"version https://git-lfs.github.com/spec/v1\n"])
def test_file_of_another_program(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=r"is no file that torch\.save or safetensors wrote"):
        read_state(tmp_path / name)


def test_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"Weights file {tmp_path} is a folder"):
        read_state(tmp_path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"Weights file {tmp_path / 'w.pth'} does not exist"):
        read_state(tmp_path / "w.pth")
