"""The images that a network takes: of options, of an artifact made for it, of its own declaration, or assumed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, is_dataclass
from typing import Any, get_args

from torch import nn

from genie_cli.config import InputSpec, ModelConfig
from genie_cli.config.image_size import height_and_width, parse_image_size, size_text
from genie_cli.errors import InputError, UsageError

_CROP_SHARE = 0.875
"""The field's usual share of the resized shorter side that the centre crop keeps."""
_OPTIONS = {"num_channels": "--num-channels", "size": "--input-size", "mean": "--mean", "std": "--std"}
"""Field of `InputSpec` -> the option that sets it."""
_INTERPOLATIONS = get_args(InputSpec.model_fields["interpolation"].annotation)


@dataclass(frozen=True)
class RecordedInput:
    """The input of a network as an artifact records it.

    Attributes:
        where: names the artifact in messages.
        teacher_sha256: hash of the network that the artifact was made for, before any reparameterization, see
            `state_sha256`.
        input: its input.
        logits: the output that held the class scores; None: none, or nothing says so.
    """

    where: str
    teacher_sha256: str | None
    input: InputSpec
    logits: str | None = None


def describe_input(
    config: ModelConfig, default: InputSpec, network: nn.Module, recorded: RecordedInput | None = None
) -> InputSpec:
    """The input of a network: from `config`, else as recorded, else as the network declares it, else `default`.

    A network declares its input in timm's convention: an attribute ``pretrained_cfg`` or ``default_cfg``, a mapping
    with ``input_size`` (channels, height, width), ``mean``, ``std``, ``crop_pct`` and ``interpolation``, each of which
    may be absent. Image files are resized until they cover size / ``crop_pct``, rounded down as timm does it.

    Args:
        config: options.
        default: of the network's kind.
        network: the network.
        recorded: of an artifact that was made for this network.

    Raises:
        UsageError: channels without a mean and std of their number.
        InputError: a declaration that cannot be used.
    """
    known = _known(config, network, recorded)
    crop_share = known.pop("crop_share", _CROP_SHARE)
    values: dict[str, Any] = {**default.model_dump(), **known}
    if _declaration(network):
        values["resize_size"] = tuple(math.floor(side / crop_share) for side in height_and_width(values["size"]))
    elif values["size"] != default.size or values["resize_size"] is None:
        values["resize_size"] = tuple(round(side / crop_share) for side in height_and_width(values["size"]))
    for key in ("mean", "std"):
        if len(values[key]) != values["num_channels"]:
            raise UsageError(
                f"--{key} has {len(values[key])} value(s) for a network of {values['num_channels']} channel(s): "
                f"give --{key} with {values['num_channels']}."
            )
    if any(s <= 0 for s in values["std"]):
        raise UsageError(f"--std must be positive, got {values['std']}.")
    return InputSpec(**values)


def assumptions(
    name: str, config: ModelConfig, network: nn.Module, spec: InputSpec, recorded: RecordedInput | None
) -> list[str]:
    """A note on what nothing says of the images that a network takes.

    Args:
        name: the user's name for the network.
        config: options.
        network: the network.
        spec: its input, see `describe_input`.
        recorded: of an artifact that was made for this network.
    """
    known = _known(config, network, recorded)
    assumed = [field for field in _OPTIONS if field not in known]
    if not assumed:
        return []
    told = ", ".join(f"{_OPTIONS[field]} {_shown(field, getattr(spec, field))}" for field in assumed)
    return [f"'{name}' does not say what images it takes, and these are assumed: {told}."]


def input_warnings(config: ModelConfig, network: nn.Module, recorded: RecordedInput | None) -> list[str]:
    """Warnings of options that are not as recorded, and of declarations that cannot be followed."""
    warnings = []
    if recorded is not None:
        warnings += [
            f"{_OPTIONS[field]} {_shown(field, value)} is not the {_shown(field, getattr(recorded.input, field))} that "
            f"{recorded.where} was made with: {_shown(field, value)} is used."
            for field, value in _given(config).items()
            if value != getattr(recorded.input, field)
        ]
    declared = _declaration(network)
    interpolation, crop_mode = declared.get("interpolation"), declared.get("crop_mode")
    if interpolation not in (None, *_INTERPOLATIONS):
        warnings.append(f"the network declares interpolation '{interpolation}': image files are resized by bicubic.")
    if crop_mode not in (None, "center"):
        warnings.append(f"the network declares crop_mode '{crop_mode}': image files are cropped at their centre.")
    return warnings


def _known(config: ModelConfig, network: nn.Module, recorded: RecordedInput | None) -> dict[str, Any]:
    """Fields of `InputSpec`, and ``crop_share``, that options, an artifact or the network say."""
    from_artifact = {} if recorded is None else {field: getattr(recorded.input, field) for field in _OPTIONS}
    given = _given(config)
    return {**_declared(network), **from_artifact, **given}


def _given(config: ModelConfig) -> dict[str, Any]:
    values = {"num_channels": config.num_channels, "size": config.input_size, "mean": config.mean, "std": config.std}
    return {field: value for field, value in values.items() if value is not None}


def _declaration(network: nn.Module) -> Mapping[str, Any]:
    """The network's own declaration, as it is; empty where there is none."""
    found = getattr(network, "pretrained_cfg", None) or getattr(network, "default_cfg", None)
    if is_dataclass(found):
        found = vars(found)
    return found if isinstance(found, Mapping) else {}


def _declared(network: nn.Module) -> dict[str, Any]:
    """Fields of `InputSpec`, and ``crop_share``, that the network declares."""
    found, values = _declaration(network), dict[str, Any]()
    if found.get("input_size") is not None:
        channels, *sides = _numbers("input_size", found["input_size"], "three whole numbers above 0", int, 3)
        values.update(num_channels=channels, size=parse_image_size(sides))
    for key in ("mean", "std"):
        if found.get(key) is not None:
            values[key] = _numbers(key, found[key], "numbers, one per channel", float)
    if found.get("crop_pct") is not None:
        (values["crop_share"],) = _numbers("crop_pct", (found["crop_pct"],), "a share above 0, up to 1", float)
        if not 0 < values["crop_share"] <= 1:
            raise _unusable("crop_pct", found["crop_pct"], "a share above 0, up to 1")
    if found.get("interpolation") is not None:
        values["interpolation"] = found["interpolation"] if found["interpolation"] in _INTERPOLATIONS else "bicubic"
    return values


def _numbers(key: str, value: Any, wanted: str, kind: type, count: int | None = None) -> tuple[Any, ...]:
    """A declared sequence of numbers.

    Raises:
        InputError: something else.
    """
    try:
        numbers = tuple(kind(each) for each in value)
    except (TypeError, ValueError):
        raise _unusable(key, value, wanted) from None
    if count is not None and (len(numbers) != count or min(numbers) < 1):
        raise _unusable(key, value, wanted)
    return numbers


def _unusable(key: str, value: Any, wanted: str) -> InputError:
    return InputError(f"The network declares {key} = {value!r} in its pretrained_cfg, which must be {wanted}.")


def _shown(field: str, value: Any) -> str:
    if field == "size":
        return size_text(value)
    return ",".join(f"{each:g}" for each in value) if isinstance(value, tuple) else str(value)
