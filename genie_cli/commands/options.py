"""Options that commands share, and how flags, params file and presets become a configuration."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from genie_cli.errors import InputError, UsageError

if TYPE_CHECKING:  # pydantic and torch are imported when a command runs, so that --help stays fast
    from genie_cli.config import Frozen, ModelConfig, Params

    ConfigT = TypeVar("ConfigT", bound=Frozen)

_MODEL, _RUN, _RECIPE, _OUTPUT = "Model", "Run", "Recipe", "Output"

ModelName = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="Torchvision, embedded or CIFAR name (`genie models`), or FILE.py:FACTORY, code that is run.",
        rich_help_panel=_MODEL,
        show_default=False,
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        "--weights",
        help="A torchvision weights name, or a local .safetensors or .pth file.",
        rich_help_panel=_MODEL,
        show_default=False,
    ),
]
InputSize = Annotated[
    int | None,
    typer.Option(
        "--input-size",
        help="Side of the square input, pixels. \\[default: the model's own]",
        rich_help_panel=_MODEL,
        show_default=False,
    ),
]
NumChannels = Annotated[
    int | None,
    typer.Option(
        "--num-channels",
        help="Input channels. \\[default: the model's own]",
        rich_help_panel=_MODEL,
        show_default=False,
    ),
]
Mean = Annotated[
    str | None,
    typer.Option(
        "--mean",
        help="Normalisation mean a channel, e.g. 0.5,0.5,0.5. \\[default: the model's own]",
        rich_help_panel=_MODEL,
        show_default=False,
    ),
]
Std = Annotated[
    str | None,
    typer.Option(
        "--std",
        help="Normalisation std a channel. \\[default: the model's own]",
        rich_help_panel=_MODEL,
        show_default=False,
    ),
]
ParamsFile = Annotated[
    Path | None,
    typer.Option(
        "--params",
        help="YAML file with sections named after the commands, and `model` and `common`; flags win.",
        rich_help_panel=_RUN,
        show_default=False,
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        "--device", help="auto, cpu, cuda or cuda:INDEX. \\[default: auto]", rich_help_panel=_RUN, show_default=False
    ),
]
Precision = Annotated[
    str | None,
    typer.Option(
        "--precision",
        help="auto, fp32 or bf16. \\[default: auto; evaluate: fp32]",
        rich_help_panel=_RUN,
        show_default=False,
    ),
]
Seed = Annotated[
    int | None,
    typer.Option("--seed", help="Seed of all random numbers. \\[default: 0]", rich_help_panel=_RUN, show_default=False),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Any other key of the command's params section, e.g. --set latent_lr=0.05; may be repeated.",
        rich_help_panel=_RECIPE,
        show_default=False,
    ),
]


def read(path: Path | None) -> Params:
    """The params file, or an empty one."""
    from genie_cli.config import read_params

    return read_params(path)


def given(flags: Mapping[str, Any], settings: list[str] | None = None) -> dict[str, Any]:
    """The flags that were used, and the `--set` ones, under their configuration keys.

    Raises:
        UsageError: a `--set` without a key and a value, or with a value that is not YAML.
    """
    values = {key: value for key, value in flags.items() if value is not None}
    for setting in settings or []:
        key, equals, text = setting.partition("=")
        if not key or not equals:
            raise UsageError(f"--set {setting!r} must be KEY=VALUE.")
        values[key.replace("-", "_")] = _parse(text, setting)
    return values


def _parse(text: str, setting: str) -> Any:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        return YAML(typ="safe", pure=True).load(text)
    except YAMLError:
        raise UsageError(f"--set {setting!r}: the value is not valid YAML.") from None


def model_config(params: Params, flags: Mapping[str, Any]) -> ModelConfig:
    """The `model` section under the flags.

    Raises:
        UsageError: no network is named, or a value cannot be used.
    """
    from genie_cli.config import ModelConfig, build

    values = {**params.section("model"), **given(flags)}
    if "name" not in values:
        raise UsageError("No network is named: give --model SPEC, or a `model` section in --params.")
    for key in ("mean", "std"):
        if isinstance(values.get(key), str):
            values[key] = _numbers(key, values[key])
    return build(ModelConfig, values, where="model")


def _numbers(key: str, text: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--{key} {text!r} must be numbers with commas between, one a channel.") from None
    if not all(math.isfinite(number) for number in numbers):
        raise UsageError(f"--{key} {text!r} must be finite numbers.")
    return numbers


def stage_config(
    cls: type[ConfigT],
    section: Mapping[str, Any],
    flags: Mapping[str, Any],
    preset_options: Callable[[str], dict[str, Any]] | None = None,
    where: str = "",
) -> ConfigT:
    """Defaults < preset < file < flags.

    Raises:
        UsageError: unknown keys or preset, or a value out of range.
    """
    from genie_cli.config import build

    layers: list[Mapping[str, Any]] = [section, flags]
    if preset_options is not None:
        name = flags.get("preset", section.get("preset", cls.model_fields["preset"].default))
        layers.insert(0, preset_options(str(name)))
    return build(cls, *layers, where=where)


def check_log(path: Path | None) -> None:
    """Refuse a log file that cannot be written, before the work."""
    if path is not None:
        from genie_cli.artifacts.atomic import check_writable

        check_writable(path)


def existing(path: Path, option: str) -> Path:
    """`path`, which must exist.

    Raises:
        InputError: it does not.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist: check {option}.")
    return path
