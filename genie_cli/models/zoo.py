"""From a model SPEC to a teacher: torchvision, embedded and CIFAR names, and users' own factories."""

from __future__ import annotations

import importlib
import importlib.util
import socket
import sys
import urllib.error
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from genie_cli.config import InputSpec, ModelConfig
from genie_cli.errors import GenieError, InputError, UsageError, nearest
from genie_cli.models.checkpoints import load_into, read_state
from genie_cli.models.teacher import Teacher, make_teacher

_ASSETS = Path(__file__).parent / "assets"
_CIFAR_DEPTHS = (20, 32, 44, 56)
_CROP_SHARE = 0.875
"""The field's usual share of the resized shorter side that the centre crop keeps."""
_DOWNLOAD_TIMEOUT = 20.0
"""Seconds without an answer before a download of weights is given up."""
_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")
"""Training-only heads of GoogLeNet and Inception, left out of the network."""


@dataclass(frozen=True)
class ZooEntry:
    """A name the zoo knows: its origin, default input, and number of parameters where cheap to tell."""

    name: str
    origin: str
    input: InputSpec
    num_parameters: int | None


@dataclass(frozen=True)
class _Source:
    """How a SPEC becomes a network: a builder, its default input and its default weights."""

    build: Callable[[], nn.Module]
    input: InputSpec
    default_state: Callable[[], dict[str, Tensor]] | None
    """Weights when --weights is not given; None: the network as built."""
    named_state: Callable[[str], dict[str, Tensor]] | None = None
    """Weights by a torchvision name."""


def load_teacher(config: ModelConfig) -> Teacher:
    """The teacher that `config` describes, with its weights.

    Raises:
        UsageError: unknown model or weights name.
        InputError: weights that cannot be had or do not fit, a network that cannot be captured.
    """
    source = _find(config.name, config.weights)
    network = _build(source, config.name)
    if config.weights is None:
        if source.default_state is not None:
            load_into(network, source.default_state(), f"The default weights of '{config.name}'")
    elif source.named_state is not None and not _looks_like_file(config.weights):
        load_into(network, _without_auxiliary(source.named_state(config.weights)), f"Weights '{config.weights}'")
    else:
        state = _without_auxiliary(read_state(Path(config.weights)))
        load_into(network, state, f"Weights file {config.weights}")
    return make_teacher(display_name(config.name), network, describe_input(config, source.input, network))


def load_architecture(config: ModelConfig) -> nn.Module:
    """The network of `config` without its weights."""
    return _build(_find(config.name, config.weights), config.name)


def load_untrained(config: ModelConfig) -> Teacher:
    """The captured network of `config`, with its weights only where a local file is named.

    For looking at a structure: nothing is downloaded.
    """
    if config.weights is not None and _looks_like_file(config.weights):
        return load_teacher(config)
    source = _find(config.name, config.weights)
    network = _build(source, config.name)
    return make_teacher(display_name(config.name), network, describe_input(config, source.input, network))


def display_name(spec: str) -> str:
    """`spec` without folders: artifacts hold no path."""
    location, colon, factory = spec.rpartition(":")
    return f"{Path(location).name}:{factory}" if colon and location.endswith(".py") else spec


def known_names() -> list[str]:
    """Every plain name that `load_teacher` takes, embedded ones first."""
    return ["digits_resnet", *(f"cifar_resnet{d}" for d in _CIFAR_DEPTHS), *_torchvision_names()]


def zoo_entries() -> Iterator[ZooEntry]:
    """What the zoo knows, without building a torchvision network."""
    from torchvision.models import get_model_weights

    for name in known_names():
        if name in _torchvision_names():
            weights = _default_weights(name)
            parameters = weights.meta.get("num_params") if weights is not None else None
            entry_input = _torchvision_input(weights)
            yield ZooEntry(name, f"torchvision, {len(get_model_weights(name))} weights", entry_input, parameters)
        else:
            source = _find(name, None)
            count = sum(p.numel() for p in source.build().parameters())
            yield ZooEntry(name, "embedded" if name == "digits_resnet" else "needs --weights", source.input, count)


def describe_input(config: ModelConfig, default: InputSpec, network: nn.Module) -> InputSpec:
    """The input of a network: what `config` says, then what the network says, then `default`.

    Raises:
        UsageError: channels without a mean and std of their number.
    """
    values: dict[str, Any] = default.model_dump()
    declared = getattr(network, "pretrained_cfg", None) or getattr(network, "default_cfg", None)
    if isinstance(declared, dict):  # the convention of timm's models
        shape = list(declared.get("input_size", (default.num_channels, default.size)))
        values.update(num_channels=shape[0], size=shape[1])
        values.update({k: tuple(declared[k]) for k in ("mean", "std") if k in declared})
    given = {
        "num_channels": config.num_channels,
        "size": config.input_size,
        "mean": config.mean,
        "std": config.std,
    }
    values.update({key: value for key, value in given.items() if value is not None})
    if values["size"] != default.size or values["resize_size"] is None:
        values["resize_size"] = round(values["size"] / _CROP_SHARE)
    for key in ("mean", "std"):
        if len(values[key]) != values["num_channels"]:
            raise UsageError(
                f"--{key} has {len(values[key])} value(s) for a network of {values['num_channels']} channel(s): "
                f"give --{key} with {values['num_channels']}."
            )
    if any(s <= 0 for s in values["std"]):
        raise UsageError(f"--std must be positive, got {values['std']}.")
    return InputSpec(**values)


def _build(source: _Source, name: str) -> nn.Module:
    try:
        network = source.build()
    except GenieError:
        raise
    except Exception as error:  # the user's own code may raise anything
        raise InputError(f"Model '{name}' failed while it was built: {type(error).__name__}: {error}") from error
    if not isinstance(network, nn.Module):
        raise InputError(f"Model '{name}' must return a torch.nn.Module, it returned {type(network).__name__}.")
    return network


def _find(name: str, weights: str | None) -> _Source:
    if ":" in name:
        return _Source(lambda: _call_factory(name), InputSpec(), None)
    if name == "digits_resnet":
        from genie_cli.models.digits import INPUT_SPEC, digits_resnet

        return _Source(digits_resnet, INPUT_SPEC, lambda: read_state(_ASSETS / "digits_resnet.safetensors"))
    if name in [f"cifar_resnet{d}" for d in _CIFAR_DEPTHS]:
        from genie_cli.models.cifar import cifar_resnet

        depth = int(name.removeprefix("cifar_resnet"))
        return _Source(lambda: cifar_resnet(depth), InputSpec(size=32, resize_size=32), lambda: _no_weights(name))
    if name in _torchvision_names():
        return _torchvision_source(name, weights)
    hint = nearest(name, known_names())
    raise UsageError(f"Unknown model '{name}': `genie models` lists the names; own code is FILE.py:FACTORY.{hint}")


def _no_weights(name: str) -> dict[str, Tensor]:
    raise InputError(f"Model '{name}' comes without weights: name a file with --weights.")


def _looks_like_file(weights: str) -> bool:
    return "/" in weights or "." in weights or Path(weights).exists()


def _without_auxiliary(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if not key.startswith(_AUXILIARY)}


# --- users' own networks


def _call_factory(spec: str) -> nn.Module:
    location, _, factory = spec.rpartition(":")
    with _importable(location):
        if location.endswith(".py"):
            path = Path(location)
            if not path.is_file():
                raise InputError(f"Model file {path} does not exist.")
            module_spec = importlib.util.spec_from_file_location(f"genie_user_{path.stem}", path)
            assert module_spec is not None and module_spec.loader is not None
            module = importlib.util.module_from_spec(module_spec)
            sys.modules[module_spec.name] = module
            module_spec.loader.exec_module(module)
        else:
            try:
                module = importlib.import_module(location)
            except ModuleNotFoundError as error:
                raise InputError(f"Model module '{location}' cannot be imported: {error}.") from None
        function = getattr(module, factory, None)
        if not callable(function):
            public = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
            raise UsageError(f"'{location}' has no factory '{factory}'.{nearest(factory, public)}")
        network = function()
    return network  # type: ignore[no-any-return]


@contextmanager
def _importable(location: str) -> Iterator[None]:
    """Imports beside the named file (or in the working folder) work; no bytecode is left there."""
    folder = str(Path(location).resolve().parent if location.endswith(".py") else Path.cwd())
    bytecode = sys.dont_write_bytecode
    sys.dont_write_bytecode = True
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
        sys.dont_write_bytecode = bytecode


# --- torchvision


def _torchvision_names() -> list[str]:
    import torchvision.models

    return list(torchvision.models.list_models(module=torchvision.models))


def _default_weights(name: str) -> Any:
    """IMAGENET1K_V1, which published comparisons use, where the model has it."""
    from torchvision.models import get_model_weights

    names = get_model_weights(name)
    if len(names) == 0:
        return None
    return names.__members__.get("IMAGENET1K_V1", names.DEFAULT)


def _torchvision_input(weights: Any) -> InputSpec:
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


def _torchvision_source(name: str, weights: str | None) -> _Source:
    from torchvision.models import get_model, get_model_weights

    options: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):
        options = {"aux_logits": False, "init_weights": False, "transform_input": True}
    members = get_model_weights(name).__members__
    chosen = _default_weights(name)
    if weights is not None and not _looks_like_file(weights):
        if weights not in members:
            known = ", ".join(members) or "none"
            raise UsageError(f"Unknown weights '{weights}' of '{name}': {known}, or a file.{nearest(weights, members)}")
        chosen = members[weights]
    return _Source(
        build=lambda: get_model(name, weights=None, **options),
        input=_torchvision_input(chosen),
        default_state=lambda: _without_auxiliary(_download(name, chosen)),
        named_state=lambda _: _download(name, chosen),
    )


def _download(name: str, weights: Any) -> dict[str, Tensor]:
    import torch.hub

    if weights is None:
        return _no_weights(name)
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_DOWNLOAD_TIMEOUT)
    try:
        state: dict[str, Tensor] = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (urllib.error.URLError, OSError, RuntimeError) as error:
        raise InputError(
            f"No weights for '{name}': {file} does not exist or is damaged, and {weights.url} cannot be had "
            f"({error}). Put the file there, or name a local one with --weights."
        ) from None
    finally:
        socket.setdefaulttimeout(timeout)
    return state
