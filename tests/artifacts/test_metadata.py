"""One metadata key, the same bytes for the same content, and one clear message for every bad file."""

from __future__ import annotations

import errno
import hashlib
import json
import pickle
import struct
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch

from genie_cli.artifacts import metadata
from genie_cli.artifacts.metadata import FORMAT_VERSION, encode, file_sha256, read, sniff, write_bytes
from genie_cli.errors import InputError

FIELDS = {"kind": "images", "format_version": FORMAT_VERSION, "b": [1, 2], "a": {"z": 1, "y": None}}


def write(path: Path, fields: dict[str, Any] = FIELDS, tensors: dict[str, torch.Tensor] | None = None) -> Path:
    path.write_bytes(write_bytes(tensors or {}, encode(fields)))
    return path


def test_metadata_are_one_sorted_compact_key(tmp_path: Path) -> None:
    path = write(tmp_path / "a", tensors={"x": torch.zeros(2)})
    with safetensors.safe_open(path, framework="pt") as file:
        assert file.metadata() == {"genie": '{"a":{"y":null,"z":1},"b":[1,2],"format_version":2,"kind":"images"}'}


def test_metadata_refuse_numbers_that_json_lacks() -> None:
    with pytest.raises(ValueError, match="JSON"):
        encode({"loss": float("nan")})


def test_read_gives_back_tensors_and_fields(tmp_path: Path) -> None:
    tensors = {
        "f": torch.tensor([[1.5, -0.0], [3e-45, 1e38]]),
        "h": torch.tensor([65504.0], dtype=torch.float16),
        "i": torch.tensor(7),
        "b": torch.tensor([True, False]),
        "e": torch.zeros(0, 3),
    }
    back, fields = read(write(tmp_path / "a", tensors=tensors), "images")
    assert fields == FIELDS
    assert list(back) == sorted(tensors)
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype
        assert torch.equal(back[name], tensor)


def test_order_strides_and_shared_memory_do_not_matter() -> None:
    base = torch.arange(24.0).view(1, 2, 3, 4)
    one = write_bytes({"a": base, "b": base.clone(), "c": base[0, 1].clone()}, encode(FIELDS))
    strided = base.clone().to(memory_format=torch.channels_last)
    assert write_bytes({"c": base[0, 1], "b": base, "a": strided}, encode(dict(reversed(FIELDS.items())))) == one


def test_read_tensors_are_not_tied_to_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a", tensors={"x": torch.ones(1000)})
    tensors, _ = read(path, "images")
    path.write_bytes(b"\0" * path.stat().st_size)
    assert torch.equal(tensors["x"], torch.ones(1000))


def header(text: str, data: bytes = b"") -> bytes:
    """A safetensors file with a header of any text."""
    return struct.pack("<Q", len(text)) + text.encode() + data


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty, not an image set"),
        (b"short", "is no safetensors file, not an image set"),
        (b"\x89PNG\r\n\x1a\n" * 9, "is no safetensors file"),
        (pickle.dumps({"a": 1}), "is a PyTorch or pickle file, which genie does not open"),
        (b"PK\x03\x04" + b"\0" * 50, "is a PyTorch or pickle file"),
        (write_bytes({"x": torch.zeros(9)}, encode(FIELDS))[:-1], "is a truncated or damaged safetensors file"),
        (write_bytes({"x": torch.zeros(9)}, encode(FIELDS))[:40], "is a truncated or damaged safetensors file"),
        (write_bytes({"x": torch.zeros(9)}, encode(FIELDS)) + b"x", "is a truncated or damaged safetensors file"),
        (safetensors.torch.save({"x": torch.zeros(9)}), "is a safetensors file of other content, not an image set"),
        (safetensors.torch.save({"x": torch.zeros(9)}, {"format": "pt"}), "of other content"),
        (safetensors.torch.save({}, {"genie": "{"}), "damaged metadata: they are not valid JSON"),
        (safetensors.torch.save({}, {"genie": "[" * 100_000}), "damaged metadata: they are not valid JSON"),
        (safetensors.torch.save({}, {"genie": "[1]"}), "damaged metadata: no known kind"),
        (safetensors.torch.save({}, {"genie": "{}"}), "damaged metadata: no known kind"),
        (
            header(
                '{"__metadata__":{"genie":"{\\"kind\\":\\"images\\",\\"format_version\\":1}"},'
                '"x":{"dtype":"F32","shape":[0,9223372036854775807,2],"data_offsets":[0,0]}}'
            ),
            "is damaged: ",
        ),
    ],
)
def test_bad_files(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "images.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read(path, "images")
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(path))
    assert "genie synthesize" in str(caught.value)


def test_pickles_are_not_run(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "exploded",)

    path = tmp_path / "bomb.pth"
    torch.save(Bomb(), path)
    for reader in (sniff, lambda p: read(p, "images")):
        with pytest.raises(InputError, match="pickle"):
            reader(path)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (FORMAT_VERSION + 1, "has format version 3, and this genie reads up to 2"),
        (0, "no known kind and format version"),
        (-1, "no known kind and format version"),
        ("1", "no known kind and format version"),
        (True, "no known kind and format version"),
        (None, "no known kind and format version"),
    ],
)
def test_versions(tmp_path: Path, version: Any, message: str) -> None:
    path = write(tmp_path / "a", {**FIELDS, "format_version": version})
    with pytest.raises(InputError, match=message):
        read(path, "images")


def test_a_newer_kind_asks_for_a_later_version(tmp_path: Path) -> None:
    path = write(tmp_path / "a", {"kind": "video", "format_version": FORMAT_VERSION + 1, "tool_version": "9.1"})
    with pytest.raises(InputError, match=r"written by genie 9\.1, so install that version or a later one"):
        sniff(path)


@pytest.mark.parametrize(
    ("kind", "wanted", "message"),
    [
        ("images", "quantized_weights", "is an image set, not the weights of a quantized network"),
        ("quantized_weights", "images", "is the weights of a quantized network, not an image set"),
        ("step_sizes", "quantized_weights", "is the step sizes of a quantized network, not the weights"),
        ("video", "images", "no known kind"),
        (["images"], "images", "no known kind"),
    ],
)
def test_wrong_kind(tmp_path: Path, kind: Any, wanted: str, message: str) -> None:
    path = write(tmp_path / "a", {**FIELDS, "kind": kind})
    with pytest.raises(InputError, match=message):
        read(path, wanted)


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent does not exist\. Give one written by 'genie synthesize'"):
        read(tmp_path / "absent", "images")
    with pytest.raises(InputError, match="is a folder, not an image set"):
        read(tmp_path, "images")
    (tmp_path / "weights.safetensors").touch()
    with pytest.raises(InputError, match="is the folder of a quantized network, not an image set"):
        read(tmp_path, "images")
    with pytest.raises(InputError, match="not a regular file"):
        read(Path("/dev/null"), "images")
    with pytest.raises(InputError, match="cannot be read"):
        read(tmp_path / ("x" * 300), "images")


def test_a_disk_that_fails_is_not_taken_for_a_damaged_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path, framework: str) -> None:
        raise OSError(errno.EIO, "Input/output error")

    path = write(tmp_path / "a")
    monkeypatch.setattr(metadata, "safe_open", fail)
    with pytest.raises(InputError) as caught:
        read(path, "images")
    assert str(caught.value) == f"{path} cannot be read: Input/output error."


@pytest.mark.parametrize("kind", ["images", "quantized_weights", "step_sizes"])
def test_sniff_files(tmp_path: Path, kind: str) -> None:
    assert sniff(write(tmp_path / "a", {**FIELDS, "kind": kind}))["kind"] == kind


def test_sniff_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no weights\.safetensors"):
        sniff(tmp_path)
    write(tmp_path / "weights.safetensors", {**FIELDS, "kind": "quantized_weights"})
    assert sniff(tmp_path)["kind"] == "quantized_weights"


def test_sniff_foreign_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_text(json.dumps({}))
    with pytest.raises(InputError, match="is no safetensors file, not a genie artifact"):
        sniff(tmp_path / "a")


def test_file_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 3_000_000)
    assert file_sha256(tmp_path / "a") == hashlib.sha256(b"x" * 3_000_000).hexdigest()
    with pytest.raises(InputError, match="cannot be read"):
        file_sha256(tmp_path)
