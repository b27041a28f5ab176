"""torchvision's classification networks and their weights."""

from __future__ import annotations

import http.client
import pickle
import socket
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from torch import Tensor

from genie_cli.config import InputSpec
from genie_cli.errors import InputError, look_up
from genie_cli.models.source import Source, looks_like_file, no_weights

_DOWNLOAD_TIMEOUT = 20.0
"""Seconds without an answer before a download of weights is given up."""
_DOWNLOAD_ERRORS = (OSError, RuntimeError, EOFError, http.client.HTTPException, pickle.UnpicklingError)
"""Errors of a failed download (urllib's errors are OSErrors) or of a damaged file in the cache."""
_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")
"""Training-only heads of GoogLeNet and Inception, left out of the network."""


def names() -> list[str]:
    """The names of torchvision's classification networks."""
    import torchvision.models

    return list(torchvision.models.list_models(module=torchvision.models))


def default_weights(name: str) -> Any:
    """The weights IMAGENET1K_V1, which published comparisons use; where a model lacks them, its default ones."""
    from torchvision.models import get_model_weights

    members = get_model_weights(name)
    if len(members) == 0:
        return None
    return members.__members__.get("IMAGENET1K_V1", members.DEFAULT)


def input_of(weights: Any) -> InputSpec:
    """The input that `weights` were trained for; without weights, ImageNet's."""
    if weights is None:
        return InputSpec(resize_size=256)
    preset = weights.transforms()
    return InputSpec(
        size=preset.crop_size[0],
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        resize_size=preset.resize_size[0],
        interpolation=preset.interpolation.value,
    )


def source_of(name: str, weights: str | None) -> Source:
    """The source of the network `name`, with the weights called `weights` or the default ones.

    Raises:
        UsageError: unknown weights.
    """
    from torchvision.models import get_model, get_model_weights

    options: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):
        options = {"aux_logits": False, "init_weights": False, "transform_input": True}
    members = get_model_weights(name).__members__
    chosen = default_weights(name)
    if weights is not None and not looks_like_file(weights):
        chosen = look_up(members, "weights", weights, f" of '{name}': {', '.join(members) or 'none'}, or a file")
    return Source(
        build=lambda: get_model(name, weights=None, **options),
        input=input_of(chosen),
        default_state=lambda: _download(name, chosen),
        named_state=lambda _: _download(name, chosen),
        ignored=_AUXILIARY if options else (),
    )


def _download(name: str, weights: Any) -> dict[str, Tensor]:
    import torch.hub

    if weights is None:
        return no_weights(name)
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_DOWNLOAD_TIMEOUT)
    try:
        with redirect_stdout(sys.stderr):  # torch.hub prints that it downloads; stdout is for results
            state: dict[str, Tensor] = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except _DOWNLOAD_ERRORS as error:
        raise InputError(
            f"No weights for '{name}': {file} does not exist or is damaged, and {weights.url} cannot be downloaded "
            f"({error}). Put the file there, or name a local one with --weights."
        ) from None
    finally:
        socket.setdefaulttimeout(timeout)
    return state
