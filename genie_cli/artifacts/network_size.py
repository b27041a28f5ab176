"""The size of a quantized network beside that of the same network in float."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open

from genie_cli.artifacts.metadata import sniff, validate
from genie_cli.artifacts.packing import packed_length
from genie_cli.artifacts.quantized import QuantizedMetadata, WeightEntry
from genie_cli.artifacts.quantized_folder import STEP_SIZES_FILE, WEIGHTS_FILE
from genie_cli.sizes import file_size

_FLOAT_BYTES = 4
_DTYPE_BYTES = {"F32": 4, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}


@dataclass(frozen=True)
class NetworkSize:
    """Bytes of a network on disk.

    Attributes:
        num_bytes: the two files that the quantized network is run from.
        num_float_bytes: the tensors of the same network, batch norms folded, with its weights in float32.
    """

    num_bytes: int
    num_float_bytes: int

    @property
    def compression(self) -> float:
        """The number of times that the quantized network is smaller."""
        return self.num_float_bytes / self.num_bytes

    def described(self) -> str:
        """``6.20 MB, 7.6 times smaller than 46.8 MB in float``."""
        return described_beside_float(self.num_bytes, self.num_float_bytes)


def described_beside_float(num_bytes: int, num_float_bytes: int) -> str:
    """A size, and its relation to the size in float: ``6.20 MB, 7.6 times smaller than 46.8 MB in float``."""
    small, large = file_size(num_bytes), file_size(num_float_bytes)
    if num_bytes < num_float_bytes:
        return f"{small}, {num_float_bytes / num_bytes:.1f} times smaller than {large} in float"
    return f"{small}, no smaller than {large} in float"


def network_size(folder: Path) -> NetworkSize:
    """The size of the network in a quantized folder, from the headers of its files.

    Raises:
        InputError: not a quantized folder.
    """
    path = folder / WEIGHTS_FILE
    metadata = validate(QuantizedMetadata, sniff(folder), path)
    num_bytes = sum((folder / name).stat().st_size for name in (WEIGHTS_FILE, STEP_SIZES_FILE))
    parts = {f"{layer}." if layer else "" for layer in metadata.weights}
    num_float_bytes = sum(math.prod(entry.shape) * _FLOAT_BYTES for entry in metadata.weights.values())
    with safe_open(path, framework="pt") as file:
        for name in sorted(file.keys()):
            layer, _, part = name.rpartition(".")
            if part.startswith("weight_") and (f"{layer}." if layer else "") in parts:
                continue
            own = file.get_slice(name)
            num_float_bytes += math.prod(own.get_shape()) * _DTYPE_BYTES.get(own.get_dtype(), _FLOAT_BYTES)
    return NetworkSize(num_bytes, num_float_bytes)


def packed_bytes(entry: WeightEntry) -> int:
    """Bytes of a weight's codes on disk."""
    return packed_length(math.prod(entry.shape), entry.bits)
