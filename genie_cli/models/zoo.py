"""Turn a model SPEC into a teacher: torchvision, embedded and CIFAR names, and users' own factories."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from genie_cli.config import InputSpec, ModelConfig
from genie_cli.errors import GenieError, InputError, UsageError, unknown_name
from genie_cli.models import torchvision_zoo
from genie_cli.models.checkpoints import check_numbers, load_into, read_state
from genie_cli.models.factories import call_factory
from genie_cli.models.source import Source, looks_like_file, no_weights
from genie_cli.models.teacher import Teacher, make_teacher
from genie_cli.runtime.progress import Reporter, silent

_ASSETS = Path(__file__).parent / "assets"
_CIFAR_DEPTHS = (20, 32, 44, 56)
_CROP_SHARE = 0.875
"""The field's usual share of the resized shorter side that the centre crop keeps."""


@dataclass(frozen=True)
class ZooEntry:
    """A name the zoo knows: its origin, default input, and number of parameters where that is cheap to find."""

    name: str
    origin: str
    input: InputSpec
    num_parameters: int | None


def load_teacher(config: ModelConfig, report: Reporter = silent) -> Teacher:
    """The teacher that `config` describes, with its weights.

    Args:
        config: the network, its weights and its input.
        report: receives notes on what was assumed or left out.

    Raises:
        UsageError: unknown model or weights name.
        InputError: weights that are missing or do not fit, or a network that cannot be captured.
    """
    source = _find(config.name, config.weights)
    network = _build(source, config.name)
    is_file = config.weights is not None and (source.named_state is None or looks_like_file(config.weights))
    if config.weights_key is not None and not is_file:
        raise UsageError(f"--weights-key '{config.weights_key}' picks from a weights file: name one with --weights.")
    if config.weights is None:
        state = source.default_state() if source.default_state is not None else None
        what = f"The default weights of '{config.name}'"
    elif not is_file and source.named_state is not None:
        state, what = source.named_state(config.weights), f"Weights '{config.weights}'"
    else:
        state, what = read_state(Path(config.weights)), f"Weights file {config.weights}"
    if state is not None:
        load_into(network, state, what, config.weights_key, source.ignored, report)
    else:  # a factory may bring weights of its own
        check_numbers(network.state_dict(), f"Model '{config.name}'")
    return make_teacher(display_name(config.name), network, describe_input(config, source.input, network))


def load_architecture(config: ModelConfig) -> nn.Module:
    """The network of `config` without its weights."""
    return _build(_find(config.name, config.weights), config.name)


def load_untrained(config: ModelConfig) -> Teacher:
    """The captured network of `config`, with its weights only where a local file is named.

    It shows a structure; nothing is downloaded.
    """
    if config.weights is not None and looks_like_file(config.weights):
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
    return ["digits_resnet", *(f"cifar_resnet{d}" for d in _CIFAR_DEPTHS), *torchvision_zoo.names()]


def zoo_entries() -> Iterator[ZooEntry]:
    """The entries of the zoo, listed without building a torchvision network."""
    from torchvision.models import get_model_weights

    for name in known_names():
        if name in torchvision_zoo.names():
            weights = torchvision_zoo.default_weights(name)
            parameters = weights.meta.get("num_params") if weights is not None else None
            entry_input = torchvision_zoo.input_of(weights)
            yield ZooEntry(name, f"torchvision, {len(get_model_weights(name))} weights", entry_input, parameters)
        else:
            source = _find(name, None)
            count = sum(p.numel() for p in source.build().parameters())
            yield ZooEntry(name, "embedded" if name == "digits_resnet" else "needs --weights", source.input, count)


def describe_input(config: ModelConfig, default: InputSpec, network: nn.Module) -> InputSpec:
    """The input of a network: from `config`, else from the network itself, else from `default`.

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


def _build(source: Source, name: str) -> nn.Module:
    try:
        network = source.build()
    except GenieError:
        raise
    except Exception as error:  # the user's own code may raise anything
        raise InputError(f"Model '{name}' failed while it was built: {type(error).__name__}: {error}") from error
    if not isinstance(network, nn.Module):
        raise InputError(f"Model '{name}' must return a torch.nn.Module, it returned {type(network).__name__}.")
    return network


def _find(name: str, weights: str | None) -> Source:
    if ":" in name:
        return Source(lambda: call_factory(name), InputSpec(), None)
    if name == "digits_resnet":
        from genie_cli.models.digits import INPUT_SPEC, digits_resnet

        return Source(digits_resnet, INPUT_SPEC, lambda: read_state(_ASSETS / "digits_resnet.safetensors"))
    if name in [f"cifar_resnet{d}" for d in _CIFAR_DEPTHS]:
        from genie_cli.models.cifar import cifar_resnet

        depth = int(name.removeprefix("cifar_resnet"))
        return Source(lambda: cifar_resnet(depth), InputSpec(size=32, resize_size=32), lambda: no_weights(name))
    if name in torchvision_zoo.names():
        return torchvision_zoo.source_of(name, weights)
    told = ": `genie models` lists the names; own code is FILE.py:FACTORY"
    raise unknown_name("model", name, known_names(), told)
