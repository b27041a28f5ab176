"""Load weights from local files into a network; only plain tensors are ever unpickled."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from genie_cli.errors import InputError

_WRAPPERS = ("state_dict", "model", "model_state_dict", "model_state", "net")
_PREFIXES = ("module.", "_orig_mod.")
_COUNTER = "num_batches_tracked"
"""Batch norm's training counter: it has no part in inference, and many files leave it out."""


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a ``.safetensors`` or ``.pth`` file, wrappers and prefixes removed.

    Raises:
        InputError: the file is missing, truncated, or holds anything but tensors.
    """
    if not path.is_file():
        raise InputError(f"Weights file {path} does not exist: check --weights.")
    try:
        if path.suffix == ".safetensors":
            content = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise InputError(
            f"Weights file {path} is damaged or holds more than plain tensors, whose loading would run code: "
            "save model.state_dict() as .safetensors or .pth and use that."
        ) from None
    except Exception as error:  # a damaged file makes the unpickler raise anything
        reason = next(iter(str(error).splitlines()), "")
        raise InputError(f"Weights file {path} cannot be read: {type(error).__name__}: {reason}") from None
    return _unwrap(content, path)


def _unwrap(content: object, path: Path) -> dict[str, Tensor]:
    for _ in _WRAPPERS:  # each at most once: a crafted file may hold itself
        if isinstance(content, Mapping):
            content = next((content[k] for k in _WRAPPERS if isinstance(content.get(k), Mapping)), content)
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise InputError(f"Weights file {path} does not hold a state dict (parameter name -> tensor).")
    state = {str(key): value for key, value in content.items()}
    while prefix := next((p for p in _PREFIXES if all(key.startswith(p) for key in state)), None):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def load_into(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Copy `state` into `model`; every key and shape must match.

    Raises:
        InputError: weights of another architecture, or values that are not finite. The message names the
            first missing key, the first unexpected key and the first shape that differs.
    """
    wanted = model.state_dict()
    missing = [key for key in wanted if key not in state and not key.endswith(_COUNTER)]
    unexpected = [key for key in state if key not in wanted and not key.endswith(_COUNTER)]
    unlike = [key for key in wanted if key in state and state[key].shape != wanted[key].shape]
    problems = []
    if missing:
        problems.append(f"{len(missing)} keys are missing, first '{missing[0]}'")
    if unexpected:
        problems.append(f"{len(unexpected)} are unexpected, first '{unexpected[0]}'")
    if unlike:
        key = unlike[0]
        problems.append(f"'{key}' has shape {tuple(state[key].shape)} instead of {tuple(wanted[key].shape)}")
    if problems:
        raise InputError(f"{source} does not fit this network: {'; '.join(problems)}. Check --model and --weights.")
    check_numbers(state, source)
    model.load_state_dict({**wanted, **{k: v for k, v in state.items() if k in wanted}})


def check_numbers(state: Mapping[str, Tensor], source: str) -> None:
    """Refuse values that no network can compute with.

    Raises:
        InputError: a tensor holds NaN, infinity, or a negative variance; the message names it.
    """
    for key, value in state.items():
        if torch.is_floating_point(value) and not torch.isfinite(value).all():
            raise InputError(f"{source} holds NaN or infinity in '{key}'.")
        if key.endswith("running_var") and bool((value < 0).any()):
            raise InputError(f"{source} holds a negative variance in '{key}': {float(value.min()):.3g}.")


def state_sha256(model: nn.Module) -> str:
    """SHA-256 over the sorted (name, dtype, shape, bytes) of the state, training counters left out.

    The same network has the same hash, whatever file format it came from.
    """
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        if key.endswith(_COUNTER):
            continue
        tensor = value.detach().cpu().contiguous()
        digest.update(f"{key}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
