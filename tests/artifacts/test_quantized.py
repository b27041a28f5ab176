"""The quantized folder: what is stored, what comes back bit for bit, what is refused."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import genie_cli
from genie_cli.artifacts.metadata import OWN_FILES, encode, read, sniff, tensors_sha256, write_bytes
from genie_cli.artifacts.metrics import read_metrics
from genie_cli.artifacts.quantized import (
    ActivationEntry,
    QuantizedActivation,
    QuantizedArtifact,
    QuantizedMetadata,
    QuantizedWeight,
)
from genie_cli.artifacts.quantized_folder import load_quantized, save_quantized
from genie_cli.config import InputSpec
from genie_cli.errors import InputError
from genie_cli.runtime.atomic import check_writable
from tests.support.damaged import damaged_copies

SHAPES = {"conv": (6, 3, 3, 3), "block.0.conv": (4, 6, 1, 1), "fc": (3, 4)}


def quantized_weight(shape: tuple[int, ...], bits: int, seed: int = 0) -> QuantizedWeight:
    generator = torch.Generator().manual_seed(seed)
    return QuantizedWeight(
        codes=torch.randint(0, 2**bits, shape, generator=generator).to(torch.uint8),
        scale=torch.rand(shape[0], 1, generator=generator) + 0.01,
        zero_point=torch.randint(0, 2**bits, (shape[0], 1), generator=generator, dtype=torch.int32),
        bits=bits,
    )


def signed(weight: QuantizedWeight) -> QuantizedWeight:
    """The same weight on a symmetric grid, its codes less half their number."""
    codes = (weight.codes.to(torch.int16) - 2 ** (weight.bits - 1)).to(torch.int8)
    return QuantizedWeight(codes, weight.scale, torch.zeros_like(weight.zero_point), weight.bits, "symmetric")


def make(bits: int = 4, shapes: dict[str, tuple[int, ...]] = SHAPES) -> QuantizedArtifact:
    weights = {
        layer: quantized_weight(shape, 8 if layer == "fc" else bits, seed)
        for seed, (layer, shape) in enumerate(shapes.items())
    }
    if "fc" in weights:
        weights["fc"] = signed(weights["fc"])
    activations = {
        "conv.input": QuantizedActivation(0.1, 8, True),
        "block.0.add0.lhs": QuantizedActivation(0.05, bits, False),
    }
    shared = torch.tensor([0.5, -0.25, 0.0])
    metadata = QuantizedMetadata(
        teacher="resnet18",
        teacher_sha256="1" * 64,
        config={"weight_bits": bits, "drop_prob": 0.5, "reconstruct": True},
        protocol="genie",
        preset="genie-m",
        seed=0,
        input=InputSpec(size=8),
        weights={layer: w.entry for layer, w in weights.items()},
        activations={site: ActivationEntry(bits=a.bits, signed=a.signed) for site, a in activations.items()},
        images_sha256="2" * 64,
        images_teacher_sha256=None,
        tool_version="1.0",
        torch_version="2",
        device_kind="cpu",
    )
    parameters = {
        "fc.bias": shared,
        "bn.weight": shared,
        "bn.num_batches_tracked": torch.tensor(7),
        "mask": torch.tensor([True, False]),
    }
    return QuantizedArtifact(weights, activations, parameters, metadata, {"loss": {"fc": 0.1}, "agreement": 0.9})


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def folder_bytes(folder: Path) -> dict[str, bytes]:
    return {entry.name: entry.read_bytes() for entry in folder.iterdir()}


@pytest.mark.parametrize("bits", range(2, 9))
def test_round_trip(tmp_path: Path, bits: int) -> None:
    artifact = make(bits)
    save_quantized(tmp_path / "q", artifact)
    back = load_quantized(tmp_path / "q")
    stored, _ = read(tmp_path / "q" / "weights.safetensors", "quantized_weights")
    assert back.metadata == artifact.metadata.model_copy(update={"content_sha256": tensors_sha256(stored)})
    assert back.metrics == artifact.metrics
    assert back.activations == artifact.activations
    assert set(back.weights) == set(artifact.weights)
    for layer, weight in artifact.weights.items():
        for field in ("codes", "scale", "zero_point"):
            one, other = getattr(back.weights[layer], field), getattr(weight, field)
            assert one.dtype == other.dtype
            assert torch.equal(one, other)
    assert set(back.parameters) == set(artifact.parameters)
    for name, tensor in artifact.parameters.items():
        assert back.parameters[name].dtype == tensor.dtype
        assert torch.equal(back.parameters[name], tensor)


def test_load_then_save_gives_the_same_bytes(tmp_path: Path) -> None:
    save_quantized(tmp_path / "a", make())
    save_quantized(tmp_path / "b", load_quantized(tmp_path / "a"))
    assert folder_bytes(tmp_path / "a") == folder_bytes(tmp_path / "b")


@pytest.mark.slow
def test_two_processes_write_the_same_bytes(tmp_path: Path) -> None:
    # Python's hash seed and safetensors' hash maps change from process to process.
    script = "import sys, pathlib, test_quantized as t; t.save_quantized(pathlib.Path(sys.argv[1]), t.make())"
    source = os.pathsep.join([str(Path(__file__).parent), str(Path(genie_cli.__file__).parents[1])])
    for seed in ("1", "2"):
        subprocess.run(
            [sys.executable, "-c", script, str(tmp_path / seed)],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": source},
            check=True,
        )
    assert folder_bytes(tmp_path / "1") == folder_bytes(tmp_path / "2")


def test_tensor_names_and_types(tmp_path: Path) -> None:
    save_quantized(tmp_path / "q", make())
    tensors, fields = read(tmp_path / "q" / "weights.safetensors", "quantized_weights")
    assert tensors["conv.weight_packed"].shape == (81,)
    assert tensors["conv.weight_packed"].dtype == torch.uint8
    assert tensors["conv.weight_shape"].tolist() == [6, 3, 3, 3]
    assert tensors["conv.weight_scale"].shape == (6, 1)
    assert tensors["conv.weight_zero_point"].dtype == torch.int32
    assert "conv.weight" not in tensors
    assert fields["weights"]["fc"] == {"axis": 0, "bits": 8, "grid": "symmetric", "shape": [3, 4]}
    steps, fields = read(tmp_path / "q" / "step_sizes.safetensors", "step_sizes")
    assert {name: list(step.shape) for name, step in steps.items()} == {
        "conv.input.step_size": [1],
        "block.0.add0.lhs.step_size": [1],
    }
    assert fields["activations"]["conv.input"] == {"bits": 8, "signed": True}
    assert sniff(tmp_path / "q")["kind"] == "quantized_weights"
    check_writable(tmp_path / "q", OWN_FILES)


def test_a_network_of_one_layer_has_plain_names(tmp_path: Path) -> None:
    artifact = make(shapes={"": (2, 5)})
    save_quantized(tmp_path / "q", artifact)
    assert torch.equal(load_quantized(tmp_path / "q").weights[""].codes, artifact.weights[""].codes)


def test_size_on_disk_falls_with_the_bits(tmp_path: Path) -> None:
    sizes = {}
    for bits in (2, 4, 8):
        save_quantized(tmp_path / str(bits), make(bits, {"conv": (64, 64, 3, 3)}))
        sizes[bits] = (tmp_path / str(bits) / "weights.safetensors").stat().st_size
    assert sizes[2] <= 0.7 * sizes[4]
    assert sizes[4] <= 0.7 * sizes[8]
    assert sizes[8] <= 0.3 * 4 * 64 * 64 * 9


def test_step_size_in_memory_is_the_one_on_disk() -> None:
    assert QuantizedActivation(0.1, 4, True).step_size == torch.tensor(0.1).item() != 0.1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bits": 1}, r"bits must be in 2\.\.8, got 1"),
        ({"bits": 3, "codes": torch.full((2, 3), 8, dtype=torch.uint8)}, r"codes must be in 0\.\.7, got 8"),
        ({"codes": torch.zeros(2, 3)}, "codes must be uint8"),
        ({"codes": torch.zeros(0, 3, dtype=torch.uint8)}, "codes must be uint8"),
        ({"scale": torch.ones(2)}, r"scale must be torch.float32 \[2, 1\]"),
        ({"scale": torch.ones(2, 1, dtype=torch.float64)}, "scale must be torch.float32"),
        ({"scale": torch.tensor([[1.0], [0.0]])}, "scale must be positive and finite"),
        ({"scale": torch.tensor([[1.0], [float("nan")]])}, "scale must be positive and finite"),
        ({"zero_point": torch.zeros(2, 1)}, "zero_point must be torch.int32"),
        ({"zero_point": torch.tensor([[0], [16]], dtype=torch.int32)}, r"zero_point must be in 0\.\.15, got 0\.\.16"),
        ({"zero_point": torch.tensor([[-1], [0]], dtype=torch.int32)}, r"got -1\.\.0"),
    ],
)
def test_weights_are_checked_on_creation(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(quantized_weight((2, 3), 4), **{"codes": torch.ones(2, 3, dtype=torch.uint8), **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codes": torch.ones(2, 3, dtype=torch.uint8)}, "codes must be int8"),
        ({"codes": torch.full((2, 3), 8, dtype=torch.int8)}, r"codes must be in -8\.\.7, got 8\.\.8"),
        ({"codes": torch.full((2, 3), -9, dtype=torch.int8)}, r"codes must be in -8\.\.7, got -9\.\.-9"),
        ({"zero_point": torch.ones(2, 1, dtype=torch.int32)}, r"zero_point must be in 0\.\.0, got 1\.\.1"),
    ],
)
def test_symmetric_weights_are_checked_on_creation(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(signed(quantized_weight((2, 3), 4)), **changes)


def test_a_folder_without_activations_comes_back(tmp_path: Path) -> None:
    artifact = make()
    metadata = artifact.metadata.model_copy(update={"activations": {}})
    save_quantized(tmp_path / "q", dataclasses.replace(artifact, activations={}, metadata=metadata))
    assert load_quantized(tmp_path / "q").activations == {}


@pytest.mark.parametrize("step_size", [0.0, -1.0, float("nan"), float("inf"), 1e-50, 1e39])
def test_steps_are_checked_on_creation(step_size: float) -> None:
    with pytest.raises(ValueError, match="positive and finite"):
        QuantizedActivation(step_size, 4, False)


@pytest.mark.parametrize("bits", [1, 17])
def test_bits_of_a_step_are_checked_on_creation(bits: int) -> None:
    with pytest.raises(ValueError, match=rf"bits must be in 2\.\.16, got {bits}"):
        QuantizedActivation(0.1, bits, False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": {}}, "weights do not describe"),
        ({"activations": {}}, "activations do not describe"),
        ({"parameters": {"x": torch.tensor([float("inf")])}}, "'x' holds NaN or infinity"),
        ({"parameters": {"x": torch.zeros(1, dtype=torch.float16)}}, "'x' must be float32"),
        ({"parameters": {"conv.weight": torch.zeros(1)}}, "'conv.weight' belongs to a quantized weight"),
        ({"parameters": {"conv.weight_scale": torch.zeros(1)}}, "'conv.weight_scale' belongs to a quantized weight"),
        ({"parameters": {"other.weight_packed": torch.zeros(1)}}, "belongs to no weight of the metadata"),
    ],
)
def test_save_refuses(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        save_quantized(tmp_path / "q", dataclasses.replace(make(), **changes))
    assert names(tmp_path) == []


def test_broken_metrics_do_not_lose_the_network(tmp_path: Path) -> None:
    metrics = {"b": float("nan"), "a": [1.5, float("-inf")], "c": {"d": (1, "x", None, True)}}
    save_quantized(tmp_path / "q", dataclasses.replace(make(), metrics=metrics))
    expected = {"b": None, "a": [1.5, None], "c": {"d": [1, "x", None, True]}}
    assert load_quantized(tmp_path / "q").metrics == expected
    text = (tmp_path / "q" / "metrics.json").read_text()
    assert text == json.dumps(expected, sort_keys=True, indent=2) + "\n"


def rewrite(folder: Path, name: str, edit: Callable[[dict[str, torch.Tensor], dict[str, Any]], object]) -> None:
    """Change the tensors and the metadata of a file of the folder, under their right hash."""
    kind = "quantized_weights" if name == "weights.safetensors" else "step_sizes"
    tensors, fields = read(folder / name, kind)
    edit(tensors, fields)
    fields["content_sha256"] = tensors_sha256(tensors)
    (folder / name).write_bytes(write_bytes(tensors, encode(fields)))


def put(name: str, value: torch.Tensor) -> Callable[[dict[str, torch.Tensor], dict[str, Any]], object]:
    return lambda tensors, fields: tensors.update({name: value})


W, S = "weights.safetensors", "step_sizes.safetensors"


@pytest.mark.parametrize(
    ("name", "edit", "message"),
    [
        (W, lambda t, f: t.pop("conv.weight_scale"), "lacks the tensor 'conv.weight_scale'"),
        (W, lambda t, f: t.pop("fc.weight_packed"), "lacks the tensor 'fc.weight_packed'"),
        (W, put("conv.weight_packed", torch.zeros(80, dtype=torch.uint8)), "'conv.weight_packed' is damaged"),
        (W, put("conv.weight_packed", torch.zeros(81)), "'conv.weight_packed' is damaged"),
        (W, put("conv.weight_shape", torch.tensor([6, 3, 9])), "'conv.weight_shape' must hold the shape"),
        (W, put("conv.weight_shape", torch.tensor(6)), "'conv.weight_shape' must hold the shape"),
        (W, put("conv.weight_shape", torch.tensor([6.0, 3, 3, 3])), "'conv.weight_shape' must hold the shape"),
        (W, put("conv.weight_scale", torch.ones(6)), "'conv.weight_*' cannot be used: scale must be"),
        (W, put("conv.weight_scale", -torch.ones(6, 1)), "scale must be positive"),
        (W, put("conv.weight_scale", torch.full((6, 1), float("nan"))), "scale must be positive and finite"),
        (W, put("conv.weight_zero_point", torch.full((6, 1), 16, dtype=torch.int32)), "zero_point must be in 0..15"),
        (W, put("fc.bias", torch.tensor([float("nan")])), "tensor 'fc.bias' holds NaN"),
        (W, put("fc.bias", torch.zeros(3, dtype=torch.float64)), "tensor 'fc.bias' must be float32"),
        (W, put("conv.weight", torch.zeros(6, 3, 3, 3)), "tensor 'conv.weight' belongs to a quantized weight"),
        (W, put("x.weight_packed", torch.zeros(3, dtype=torch.uint8)), "'x.weight_packed' belongs to no weight"),
        (W, lambda t, f: f["weights"]["conv"].update(bits=9), "at 'weights.conv.bits'"),
        (W, lambda t, f: f["weights"]["conv"].update(shape=[6, 0, 3, 3]), "at 'weights.conv.shape.1'"),
        (W, lambda t, f: f["weights"]["conv"].update(shape=[1] * 99), "at 'weights.conv.shape'"),
        (W, lambda t, f: f.pop("protocol"), "at 'protocol'"),
        (W, lambda t, f: f.update(time="now"), "at 'time'"),
        (W, lambda t, f: f.update(teacher_sha256="3" * 64), "mixes two runs"),
        (W, lambda t, f: f.update(kind="step_sizes"), "is the step sizes of a quantized network, not the weights"),
        (W, lambda t, f: f.update(format_version=3), "has format version 3"),
        (S, lambda t, f: f.update(seed=1), "differ in 'seed'"),
        (S, lambda t, f: f.update(kind="quantized_weights"), "is the weights of a quantized network"),
        (S, lambda t, f: t.pop("conv.input.step_size"), "lacks the tensor 'conv.input.step_size'"),
        (S, put("conv.input.step_size", torch.zeros(1)), "'conv.input.step_size' cannot be used"),
        (S, put("conv.input.step_size", torch.full((1,), float("inf"))), "'conv.input.step_size' cannot be used"),
        (S, put("conv.input.step_size", torch.tensor(1.0)), "'conv.input.step_size' must be float32 [1]"),
        (S, put("conv.input.step_size", torch.ones(1, dtype=torch.float64)), "must be float32 [1]"),
        (S, put("other.step_size", torch.ones(1)), "tensor 'other.step_size' belongs to no activation site"),
    ],
)
def test_load_refuses(tmp_path: Path, name: str, edit: Any, message: str) -> None:
    save_quantized(tmp_path / "q", make())
    rewrite(tmp_path / "q", name, edit)
    with pytest.raises(InputError) as caught:
        load_quantized(tmp_path / "q")
    assert message in str(caught.value)
    assert str(tmp_path / "q") in str(caught.value)


@pytest.mark.parametrize("name", [W, S])
def test_content_is_compared_with_its_hash(tmp_path: Path, name: str) -> None:
    save_quantized(tmp_path / "q", make())
    path = tmp_path / "q" / name
    content = bytearray(path.read_bytes())
    content[-2] ^= 1  # the last tensor: values that could all be
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"{name} is damaged: .*hash differs.* Write it again with 'genie quantize'"):
        load_quantized(tmp_path / "q")


def test_shapes_are_checked_before_memory_is_taken(tmp_path: Path) -> None:
    save_quantized(tmp_path / "q", make())
    huge = [6, 2**40, 2**40]

    def edit(tensors: dict[str, torch.Tensor], fields: dict[str, Any]) -> None:
        fields["weights"]["conv"]["shape"] = huge
        tensors["conv.weight_shape"] = torch.tensor(huge)

    rewrite(tmp_path / "q", W, edit)
    rewrite(tmp_path / "q", S, lambda t, f: f["weights"]["conv"].update(shape=huge))
    with pytest.raises(InputError, match=r"'conv\.weight_packed' is damaged: .* take"):
        load_quantized(tmp_path / "q")


@pytest.mark.parametrize("name", [W, S, "metrics.json"])
def test_an_incomplete_folder_is_refused(tmp_path: Path, name: str) -> None:
    save_quantized(tmp_path / "q", make())
    (tmp_path / "q" / name).unlink()
    with pytest.raises(InputError, match=f"no complete quantized network, it lacks {name}"):
        load_quantized(tmp_path / "q")


@pytest.mark.parametrize("name", [W, S, "metrics.json"])
def test_a_folder_in_the_place_of_a_file_is_refused(tmp_path: Path, name: str) -> None:
    save_quantized(tmp_path / "q", make())
    (tmp_path / "q" / name).unlink()
    (tmp_path / "q" / name).mkdir()
    with pytest.raises(InputError, match=rf"{name}"):
        load_quantized(tmp_path / "q")


def test_metrics_that_cannot_be_read_say_why(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.json cannot be read: No such file or directory\.$"):
        read_metrics(tmp_path / "absent.json")
    with pytest.raises(InputError, match=r"cannot be read: Is a directory\.$"):
        read_metrics(tmp_path)


def test_paths_that_are_no_folders(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        load_quantized(tmp_path / "absent")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file, not the folder"):
        load_quantized(tmp_path / "file")


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b"[" * 100_000])
def test_damaged_metrics_are_refused(tmp_path: Path, content: bytes) -> None:
    save_quantized(tmp_path / "q", make())
    (tmp_path / "q" / "metrics.json").write_bytes(content)
    with pytest.raises(InputError, match=r"metrics\.json"):
        load_quantized(tmp_path / "q")


def test_a_foreign_weights_file_is_refused(tmp_path: Path) -> None:
    save_quantized(tmp_path / "q", make())
    safetensors.torch.save_file({"x": torch.zeros(1)}, tmp_path / "q" / W)
    with pytest.raises(InputError, match="of other content, not the weights of a quantized network"):
        load_quantized(tmp_path / "q")


@pytest.mark.parametrize("name", [W, S, "metrics.json"])
def test_damaged_files_load_or_are_refused(tmp_path: Path, name: str) -> None:
    save_quantized(tmp_path / "q", make())
    path = tmp_path / "q" / name
    whole = path.read_bytes()
    refused = 0
    for damaged in damaged_copies(whole, 300, seed=name):
        path.write_bytes(damaged)
        try:
            load_quantized(tmp_path / "q")
        except InputError:
            refused += 1
    assert refused > 0
