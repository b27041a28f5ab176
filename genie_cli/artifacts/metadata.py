"""The metadata of an artifact, and the one reader of safetensors files.

The metadata are one key, ``genie``, with sorted compact JSON: safetensors writes several keys in an
order that changes from run to run, and one key keeps the same content the same bytes. Neither time,
host nor path belongs in them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import BaseModel, Field, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from genie_cli.config import Frozen, InputSpec
from genie_cli.errors import InputError
from genie_cli.runtime.tensor_bytes import tensors_sha256, write_bytes
from genie_cli.version import __version__

FORMAT_VERSION = 2
"""The format that is written; older ones are read."""
KEY = "genie"
FOLDER_FILES = ("weights.safetensors", "step_sizes.safetensors", "metrics.json")
"""The files of a quantized folder that it needs."""
DETAILS_FILE = "details.json"
OWN_FILES = (*FOLDER_FILES, DETAILS_FILE)
"""The files that genie writes into it; a folder that holds anything else is not ours to replace."""

_NAMES = {
    "images": "an image set",
    "quantized_weights": "the weights of a quantized network",
    "step_sizes": "the step sizes of a quantized network",
}
_WRITERS = {"images": "genie synthesize", "quantized_weights": "genie quantize", "step_sizes": "genie quantize"}

ModelT = TypeVar("ModelT", bound=BaseModel)


class Arithmetic(Frozen):
    """Everything about a machine that decides about the last bits of a result."""

    dtype: str
    """float32 or bfloat16."""
    kernels: str
    """The processor's instruction set, or the GPU with its libraries."""
    deterministic: bool


class ArtifactMetadata(Frozen):
    """The record in every artifact of how it was made."""

    format_version: int = FORMAT_VERSION
    teacher: str | None
    """Name of the network."""
    teacher_sha256: str | None
    """Hash of its weights; the file format does not change it."""
    config: dict[str, Any]
    """The whole configuration of the command, without the keys that do not determine the result (paths, device)."""
    seed: int | None
    input: InputSpec
    tool_version: str
    torch_version: str
    device_kind: str
    """cpu, or the name of the accelerator."""
    arithmetic: Arithmetic | None = None
    """The arithmetic and kernels that computed it; None in files of format 1."""
    plugins: dict[str, str | None] = Field(default_factory=dict)
    """Things that the user registered and the recipe took, such as ``rounding sine`` -> hash of their file.

    None: it had no file. They are told; nothing is ever loaded by them."""
    content_sha256: str | None = None
    """Hash of the file's tensors, filled in when it is written and compared when it is read."""


def provenance(
    config: Mapping[str, Any], seed: int | None, input: InputSpec, teacher: str | None, arithmetic: Arithmetic | None
) -> dict[str, Any]:
    """The fields of `ArtifactMetadata` that every writer fills in alike, but for the teacher's hash.

    Args:
        config: what determines the result of the command's configuration.
        seed: of its random numbers.
        input: of the network.
        teacher: its name.
        arithmetic: that of the work; None where nothing was computed.
    """
    return {
        "config": config,
        "seed": seed,
        "input": input,
        "teacher": teacher,
        "device_kind": "cpu" if arithmetic is None else arithmetic.kernels.partition(":")[0],
        "arithmetic": arithmetic,
        "tool_version": __version__,
        "torch_version": str(torch.__version__),
    }


def encode(model: BaseModel | Mapping[str, Any]) -> dict[str, str]:
    """Metadata of a safetensors file: one key with sorted, compact JSON.

    Raises:
        ValueError: a number that JSON does not have (NaN, infinity).
    """
    fields = model.model_dump(mode="json") if isinstance(model, BaseModel) else dict(model)
    return {KEY: json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False)}


def serialize(tensors: Mapping[str, Tensor], metadata: ArtifactMetadata) -> bytes:
    """The bytes of an artifact: tensors, and the metadata with the tensors' hash."""
    return write_bytes(tensors, encode(metadata.model_copy(update={"content_sha256": tensors_sha256(tensors)})))


def read(path: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read an artifact of one kind; nothing is ever unpickled.

    Args:
        path: a safetensors file.
        kind: "images", "quantized_weights" or "step_sizes".

    Returns:
        The tensors on the CPU, with memory of their own, and the fields of the metadata, of which
        kind and version have been checked.

    Raises:
        InputError: the file is missing, damaged, not an artifact, of another kind or another version.
    """
    fields = _read_header(path, wanted=kind)
    tensors: dict[str, Tensor] = {}
    try:
        with safe_open(path, framework="pt") as file:
            for name in sorted(file.keys()):
                # A copy, because the file is mapped: writing to it during the long work would change the tensors.
                tensors[name] = file.get_tensor(name).clone()
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise InputError(f"{path} is damaged: {_one_line(error)}. Write it again with '{_WRITERS[kind]}'.") from error
    if fields.get("content_sha256") not in (None, tensors_sha256(tensors)):
        raise InputError(
            f"{path} is damaged: its tensors are not those that were written (their hash differs). "
            f"Write it again with '{_WRITERS[kind]}'."
        )
    return tensors, fields


def sniff(path: Path) -> dict[str, Any]:
    """The metadata of any artifact, without reading its tensors.

    Args:
        path: a file of any kind, or a quantized folder, whose weights file is then read.

    Raises:
        InputError: as `read`, except that every kind is accepted.
    """
    if not path.is_dir():
        return _read_header(path)
    weights = path / FOLDER_FILES[0]
    if not weights.is_file():
        raise InputError(f"Folder {path} is no quantized network: it holds no {weights.name}.")
    return _read_header(weights, wanted="quantized_weights")


def validate(model: type[ModelT], fields: Mapping[str, Any], path: Path) -> ModelT:
    """Typed metadata from the fields of a file.

    Raises:
        InputError: a field is missing, unknown or out of range; the first one is named.
    """
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "the metadata"
        message = first["msg"].removeprefix("Value error, ")
        raise InputError(f"{path} has metadata that cannot be used, at '{field}': {message}.") from error


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal digits.

    Raises:
        InputError: the file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error
    return digest.hexdigest()


def all_finite(tensor: Tensor) -> bool:
    """True if a tensor holds neither NaN nor infinity; it is checked in pieces, to take little memory."""
    return all(bool(torch.isfinite(piece).all()) for piece in torch.split(tensor.reshape(-1), 1 << 22))


def _read_header(path: Path, wanted: str | None = None) -> dict[str, Any]:
    """The metadata of a file, of the `wanted` kind if one is given."""
    expected = _NAMES[wanted] if wanted else "a genie artifact"
    mend = f"Give one written by '{_WRITERS[wanted]}'." if wanted else "Artifacts are written by genie's commands."
    _refuse_missing(path, expected, mend)
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(KEY)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {_one_line(error)}.") from error
    except (SafetensorError, RuntimeError, ValueError) as error:
        raise InputError(f"{path} is {_guess(path)}, not {expected}. {mend}") from error
    if text is None:
        raise InputError(f"{path} is a safetensors file of other content, not {expected}. {mend}")
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} has damaged metadata: they are not valid JSON. {mend}") from error
    kind = fields.get("kind") if isinstance(fields, dict) else None
    version = fields.get("format_version") if isinstance(fields, dict) else None
    # The version is checked first: a newer format may have kinds that this one does not know.
    if type(version) is int and version > FORMAT_VERSION:
        writer = fields.get("tool_version", "of a later version")
        raise InputError(
            f"{path} has format version {version}, and this genie reads up to {FORMAT_VERSION}: it was written by "
            f"genie {writer}, so install that version or a later one."
        )
    if type(version) is not int or version < 1 or not isinstance(kind, str) or kind not in _NAMES:
        raise InputError(f"{path} has damaged metadata: no known kind and format version. {mend}")
    if wanted and kind != wanted:
        raise InputError(f"{path} is {_NAMES[kind]}, not {expected}. {mend}")
    return dict(fields)


def _refuse_missing(path: Path, expected: str, mend: str) -> None:
    try:
        if path.is_dir():
            quantized = (path / FOLDER_FILES[0]).is_file()
            found = "the folder of a quantized network" if quantized else "a folder"
            raise InputError(f"{path} is {found}, not {expected}. {mend}")
        if not path.exists():
            raise InputError(f"{path} does not exist. {mend}")
        if not path.is_file():
            raise InputError(f"{path} is not a regular file. {mend}")
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the name
        raise InputError(f"{path} cannot be read: {_one_line(error)}.") from error


def _guess(path: Path) -> str:
    """A guess at the kind of a file that safetensors cannot open."""
    with path.open("rb") as file:
        head = file.read(9)
    if not head:
        return "empty"
    if head[8:] == b"{":  # eight bytes of length, then a JSON header
        return "a truncated or damaged safetensors file"
    if head.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x04", b"\x80\x05")):
        return "a PyTorch or pickle file, which genie does not open as an artifact"
    return "no safetensors file"


def _one_line(error: Exception) -> str:
    return " ".join((getattr(error, "strerror", None) or str(error)).split())
