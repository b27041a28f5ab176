"""The quantized network: a folder of integer weights, step sizes and metrics.

- ``weights.safetensors``: per layer ``weight_packed``, ``weight_shape``, ``weight_scale`` and
  ``weight_zero_point``, and the same of the slopes of leaky rectifiers; every other parameter and buffer under its own
  name;
- ``step_sizes.safetensors``: per activation site ``step_size``;
- ``metrics.json``: figures measured during quantization;
- ``details.json``: distributions and curves for a report; not needed, and absent in folders of an earlier genie.

Codes are stored, not weights: rounding was learned, so a code is not round(weight / scale). The folder
and the network's source code are enough to run the network; the teacher's weights are not needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from genie_cli.artifacts.details import read_details
from genie_cli.artifacts.metadata import DETAILS_FILE, FOLDER_FILES, all_finite, read, serialize, validate
from genie_cli.artifacts.metrics import encode_metrics, read_metrics
from genie_cli.artifacts.packing import pack, unpack
from genie_cli.artifacts.quantized import (
    ActivationEntry,
    QuantizedActivation,
    QuantizedArtifact,
    QuantizedMetadata,
    QuantizedWeight,
    WeightEntry,
)
from genie_cli.errors import InputError
from genie_cli.runtime.atomic import atomic_write_folder

WEIGHTS_FILE, STEP_SIZES_FILE, METRICS_FILE = FOLDER_FILES

_PARTS = ("weight_packed", "weight_shape", "weight_scale", "weight_zero_point")
_PARAMETER_DTYPES = (torch.float32, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)


def save_quantized(folder: Path, artifact: QuantizedArtifact) -> None:
    """Write a quantized folder wholly or not at all; the same artifact gives the same bytes.

    Raises:
        InputError: the folder cannot be written.
        ValueError: parts of the artifact do not fit each other, or a parameter is not finite.
    """
    atomic_write_folder(folder, folder_files(artifact), (DETAILS_FILE,))


def folder_files(artifact: QuantizedArtifact) -> dict[str, bytes]:
    """The files of a quantized folder: name -> content.

    Raises:
        ValueError: parts of the artifact do not fit each other, or a parameter is not finite.
    """
    metadata = artifact.metadata.model_copy(update={"kind": "quantized_weights"})
    listed = {
        "weights": {k: w.entry for k, w in artifact.weights.items()},
        "activations": {k: ActivationEntry(bits=a.bits, signed=a.signed) for k, a in artifact.activations.items()},
    }
    for field, entries in listed.items():
        if getattr(metadata, field) != entries:
            raise ValueError(f"The metadata's {field} do not describe those of the artifact")
    _check_parameters(artifact.parameters, metadata)
    tensors = dict(artifact.parameters)
    for layer, weight in artifact.weights.items():
        parts = (
            pack(weight.codes, weight.bits, weight.is_signed),
            torch.tensor(weight.codes.shape, dtype=torch.int64),
            weight.scale,
            weight.zero_point,
        )
        tensors.update({_join(layer, part): tensor for part, tensor in zip(_PARTS, parts, strict=True)})
    step_sizes = {
        _join(site, "step_size"): torch.tensor([step.step_size], dtype=torch.float32)
        for site, step in artifact.activations.items()
    }
    files = {
        WEIGHTS_FILE: serialize(tensors, metadata),
        STEP_SIZES_FILE: serialize(step_sizes, metadata.model_copy(update={"kind": "step_sizes"})),
        METRICS_FILE: encode_metrics(artifact.metrics),
    }
    if artifact.details is not None:
        files[DETAILS_FILE] = encode_metrics(artifact.details.model_dump(mode="json"))
    return files


def load_quantized(folder: Path) -> QuantizedArtifact:
    """Read and validate a quantized folder.

    Raises:
        InputError: the folder is missing or incomplete, its files are damaged or of two different runs,
            or a tensor is missing, unlisted, or of the wrong type, shape or range.
    """
    _refuse_incomplete(folder)
    weights_path, steps_path = folder / WEIGHTS_FILE, folder / STEP_SIZES_FILE
    tensors, fields = read(weights_path, "quantized_weights")
    metadata = validate(QuantizedMetadata, fields, weights_path)
    step_sizes, fields = read(steps_path, "step_sizes")
    _refuse_two_runs(metadata, validate(QuantizedMetadata, fields, steps_path), folder)
    weights = {layer: _take_weight(tensors, layer, entry, weights_path) for layer, entry in metadata.weights.items()}
    try:
        _check_parameters(tensors, metadata)
    except ValueError as error:
        raise InputError(f"{weights_path}: {error}.") from error
    activations = {
        site: _take_step(step_sizes, site, entry, steps_path) for site, entry in metadata.activations.items()
    }
    if step_sizes:
        raise InputError(f"{steps_path}: tensor '{min(step_sizes)}' belongs to no activation site of its metadata.")
    metrics = read_metrics(folder / METRICS_FILE)
    return QuantizedArtifact(weights, activations, tensors, metadata, metrics, read_details(folder))


def _join(layer: str, part: str) -> str:
    """Name of a part; the layer's own name is empty where the network is one layer."""
    return f"{layer}.{part}" if layer else part


def _refuse_incomplete(folder: Path) -> None:
    if not folder.is_dir():
        what = "is a file, not the folder of a quantized network" if folder.exists() else "does not exist"
        raise InputError(f"{folder} {what}: give a folder written by 'genie quantize'.")
    missing = [name for name in FOLDER_FILES if not (folder / name).is_file()]
    if missing:
        raise InputError(
            f"Folder {folder} is no complete quantized network, it lacks {', '.join(missing)}: "
            "give a folder written by 'genie quantize'."
        )


def _refuse_two_runs(weights: QuantizedMetadata, step_sizes: QuantizedMetadata, folder: Path) -> None:
    for field in QuantizedMetadata.model_fields:
        if field not in ("kind", "content_sha256") and getattr(weights, field) != getattr(step_sizes, field):
            raise InputError(
                f"Folder {folder} mixes two runs: {WEIGHTS_FILE} and {STEP_SIZES_FILE} differ in '{field}'. "
                "Write it again with 'genie quantize'."
            )


def _check_parameters(parameters: Mapping[str, Tensor], metadata: QuantizedMetadata) -> None:
    """Check the tensors that are stored under their own names; a ValueError names the tensor."""
    taken = {_join(layer, part) for layer in metadata.weights for part in ("weight", *_PARTS)}
    for name, tensor in sorted(parameters.items()):
        if name in taken:
            raise ValueError(f"tensor '{name}' belongs to a quantized weight and cannot be a parameter")
        if name.rpartition(".")[2] == _PARTS[0]:
            raise ValueError(f"tensor '{name}' belongs to no weight of the metadata")
        if tensor.dtype not in _PARAMETER_DTYPES:
            raise ValueError(f"tensor '{name}' must be float32, an integer or bool, got {tensor.dtype}")
        if not all_finite(tensor):
            raise ValueError(f"tensor '{name}' holds NaN or infinity")


def _take_weight(tensors: dict[str, Tensor], layer: str, entry: WeightEntry, path: Path) -> QuantizedWeight:
    """Move the four tensors of a layer out of `tensors`, checked."""
    packed, shape, scale, zero_point = (_take(tensors, _join(layer, part), path) for part in _PARTS)
    if shape.dtype != torch.int64 or shape.tolist() != list(entry.shape):
        raise InputError(
            f"{path}: tensor '{_join(layer, _PARTS[1])}' must hold the shape of the metadata, {list(entry.shape)}."
        )
    try:
        codes = unpack(packed, entry.bits, entry.shape, signed=entry.grid == "symmetric")
    except ValueError as error:
        raise InputError(f"{path}: tensor '{_join(layer, _PARTS[0])}' is damaged: {error}.") from error
    try:
        return QuantizedWeight(codes, scale, zero_point, entry.bits, entry.grid, entry.axis)
    except ValueError as error:
        raise InputError(f"{path}: tensors '{_join(layer, 'weight_*')}' cannot be used: {error}.") from error


def _take_step(step_sizes: dict[str, Tensor], site: str, entry: ActivationEntry, path: Path) -> QuantizedActivation:
    name = _join(site, "step_size")
    step_size = _take(step_sizes, name, path)
    if step_size.dtype != torch.float32 or step_size.shape != (1,):
        raise InputError(f"{path}: tensor '{name}' must be float32 [1], got {step_size.dtype} {list(step_size.shape)}.")
    try:
        return QuantizedActivation(step_size.item(), entry.bits, entry.signed)
    except ValueError as error:
        raise InputError(f"{path}: tensor '{name}' cannot be used: {error}.") from error


def _take(tensors: dict[str, Tensor], name: str, path: Path) -> Tensor:
    if name not in tensors:
        raise InputError(f"{path} lacks the tensor '{name}' that its metadata list: write it again.")
    return tensors.pop(name)
