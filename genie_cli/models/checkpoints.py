"""Load weights from local files into a network; only plain tensors are ever unpickled."""

from __future__ import annotations

import argparse
import hashlib
import pathlib
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from genie_cli.errors import InputError
from genie_cli.models.preparation import cast_notes
from genie_cli.models.weights_match import COUNTER, TOP, find_weights, same_values, tensor_names

_DEEPEST = 8
"""Mappings inside mappings that are looked into: a crafted file may hold itself."""
_OPTIMIZER = "optim"
"""Beginning of the keys of an optimizer's state, whose moments have the names and shapes of weights."""
_GLOBAL = re.compile(r"GLOBAL (\S+)")


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a ``.safetensors`` file, or of a file of ``torch.save``; optimizers' states are left out.

    Returns:
        Place in the file -> tensor: ``state_dict/conv1.weight`` is ``conv1.weight`` of the mapping ``state_dict``.

    Raises:
        InputError: the file is missing, truncated, or holds anything but tensors and plain values.
    """
    if path.is_dir():
        raise InputError(f"Weights file {path} is a folder: name a file in it with --weights.")
    if not path.is_file():
        raise InputError(f"Weights file {path} does not exist: check --weights.")
    try:
        content: Any
        if _is_safetensors(path):
            content = load_file(path)
        else:
            with torch.serialization.safe_globals(_plain_types()), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what torch warns of ends in an error below
                content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes the unpickler raise anything
        if not (isinstance(error, OSError) or _is_known(path)):
            raise InputError(
                f"Weights file {path} is no file that torch.save or safetensors wrote: check --weights."
            ) from None
        if isinstance(error, pickle.UnpicklingError):
            raise InputError(_refusal(path, str(error))) from None
        if "TorchScript" in str(error):
            raise InputError(
                f"Weights file {path} is a TorchScript program, which is code: save its tensors and use them, "
                f"torch.save(torch.jit.load('{path.name}').state_dict(), 'weights.pth')."
            ) from None
        reason = next(iter(str(error).splitlines()), "")
        raise InputError(f"Weights file {path} cannot be read: {type(error).__name__}: {reason}") from None
    tensors: dict[str, Tensor] = {}
    _collect(content, "", 0, tensors)
    if not tensors:
        raise InputError(f"Weights file {path} does not hold a state dict (parameter name -> tensor).")
    return tensors


def _is_safetensors(path: Path) -> bool:
    """True by the name, or by the beginning of the file: eight bytes of length, then a JSON header."""
    with path.open("rb") as file:
        return path.suffix == ".safetensors" or file.read(9)[8:] == b"{"


def _is_known(path: Path) -> bool:
    """True if the file begins as one of safetensors, or of torch.save: a zip, a pickle, or once a tar."""
    with path.open("rb") as file:
        beginning = file.read(262)
    is_zip_or_pickle = beginning.startswith((b"PK", b"\x80"))
    return is_zip_or_pickle or beginning[8:9] == b"{" or beginning[257:] == b"ustar"


def _plain_types() -> list[Any]:
    """Types without code that trainers store beside weights: options, paths, NumPy's numbers and arrays."""
    scalar, array = np.float64(0).__reduce__()[0], np.zeros(1).__reduce__()[0]
    dtypes = {type(np.dtype(name)) for name in ("float16", "float32", "float64", "int32", "int64", "bool")}
    named = [
        (function, f"numpy.{package}.multiarray.{name}")
        for function, name in ((scalar, "scalar"), (array, "_reconstruct"))
        for package in ("core", "_core")
    ]
    paths = [
        (kind, f"{module}.{name}")
        for kind, name in ((pathlib.PurePosixPath, "PosixPath"), (pathlib.PureWindowsPath, "WindowsPath"))
        for module in ("pathlib", "pathlib._local")
    ]
    return [argparse.Namespace, np.ndarray, np.dtype, *dtypes, *named, *paths]


def _refusal(path: Path, error: str) -> str:
    """The message for a pickle that is damaged or would run code."""
    found = _GLOBAL.search(error)
    if found is None:
        return (
            f"Weights file {path} is damaged or holds more than plain tensors: "
            "save model.state_dict() as .safetensors or .pth and use that."
        )
    what = "a whole pickled network" if found[1].startswith("torch.nn.") else "pickled objects"
    return (
        f"Weights file {path} holds more than plain tensors: {what} ({found[1]}), whose loading would run code. "
        "Where you trust it, load it in a script that can import its classes, by "
        f"torch.load('{path.name}', weights_only=False), save model.state_dict() as .safetensors or .pth and use that."
    )


def _collect(content: object, place: str, depth: int, tensors: dict[str, Tensor]) -> None:
    if not isinstance(content, Mapping) or depth > _DEEPEST:
        return
    for key, value in content.items():
        if isinstance(value, Tensor):
            tensors[f"{place}{key}"] = value
        elif not str(key).startswith(_OPTIMIZER):
            _collect(value, f"{place}{key}/", depth + 1, tensors)


def load_into(
    model: nn.Module,
    state: Mapping[str, Tensor],
    source: str,
    key: str | None = None,
    ignored: tuple[str, ...] = (),
) -> list[str]:
    """Copy the tensors of `state` that are those of `model` into it; every name and shape must match.

    A network of other floats is cast to float32 first, in which genie computes: its own type may hold less than a file.

    Args:
        model: the network.
        state: tensors by name, or by their place in a file, see `read_state`.
        source: names them in messages.
        key: the place of the network's tensors, where the file leaves a choice.
        ignored: beginnings of names that the network leaves out.

    Returns:
        Notes for the user, on such a cast and on tensors of the file that are left out.

    Raises:
        InputError: see `find_weights`; or values that are not finite, or that differ for one tensor. The message names
            the first missing key, the first unexpected key and the first shape that differs.
    """
    match = find_weights(model, state, source, key, ignored)
    check_numbers(match.tensors, source)
    values = dict(model.state_dict())
    for names in tensor_names(model):
        held = [name for name in names if name in match.tensors]
        for name in held[1:]:
            if not same_values(match.tensors[held[0]], match.tensors[name]):
                raise InputError(
                    f"{source} has different values for '{held[0]}' and '{name}', which are one tensor of this "
                    "network: check --model and --weights."
                )
        values.update({name: match.tensors[held[0]] for name in names if held})
    notes = cast_notes(model)
    if notes:
        model.float()
    model.load_state_dict(values)
    if match.others:
        where = "" if match.place == TOP else f" under '{match.place}'"
        notes.append(
            f"{source}: the network's tensors are those{where}; {len(match.others)} beside them are left out, "
            f"first '{match.others[0]}'."
        )
    return notes


def check_numbers(state: Mapping[str, Any], source: str) -> None:
    """Refuse values that no network can compute with, in float32 as genie does.

    Raises:
        InputError: a tensor holds NaN, infinity, more than float32 can hold, or a negative variance; the message names
            it.
    """
    for key, own in state.items():
        if not isinstance(own, Tensor):  # a module may keep anything in its state
            continue
        value = own.float() if own.is_floating_point() else own
        if not torch.isfinite(value).all():
            if own.dtype == torch.float64 and torch.isfinite(own).all():
                raise InputError(
                    f"{source} holds {float(own.abs().max()):.3g} in '{key}', and genie computes in float32, which "
                    f"ends at {torch.finfo(torch.float32).max:.3g}: use weights within it."
                )
            raise InputError(f"{source} holds NaN or infinity in '{key}'.")
        if key.endswith("running_var") and bool((value < 0).any()):
            raise InputError(f"{source} holds a negative variance in '{key}': {float(value.min()):.3g}.")


def state_sha256(model: nn.Module) -> str:
    """SHA-256 over the sorted (name, dtype, shape, bytes) of the state, training counters left out.

    The same network has the same hash, whatever file format it came from.
    """
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        if key.endswith(COUNTER) or not isinstance(value, Tensor):
            continue
        tensor = value.detach().cpu().contiguous()
        digest.update(f"{key}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
