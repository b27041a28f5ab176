"""Options that are no fields of a configuration, and how flags, params file become keys of a configuration."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from genie_cli.errors import UsageError

if TYPE_CHECKING:  # pydantic and torch are imported when a command runs, so that --help stays fast
    from genie_cli.config import ModelConfig, Params


def _option(panel: str, name: str, help: str, metavar: str | None = None) -> Any:
    return typer.Option(name, help=help, rich_help_panel=panel, show_default=False, metavar=metavar)


def _settings(example: str) -> Any:
    help = f"Any other key of the command's params section, e.g. --set {example}; may be repeated."
    return _option("Recipe", "--set", help, metavar="KEY=VALUE")


SynthesizeSettings = Annotated[list[str] | None, _settings("latent_lr=0.05")]
QuantizeSettings = Annotated[list[str] | None, _settings("beta_end=4")]
Scheme = Annotated[
    str | None, _option("Recipe", "--scheme", "Use this subsection of `quantize.schemes` in the params file.")
]
ParamsFile = Annotated[
    Path | None,
    _option("Run", "--params", "YAML file with sections named model, common and as the commands; flags win."),
]
DryRun = Annotated[
    bool, _option("Output", "--dry-run", "Check all input, print the plan and its cost, time too, and write nothing.")
]
AsJson = Annotated[bool, _option("Output", "--json", "Print JSON instead of tables.")]


def read(path: Path | None) -> Params:
    """The params file, or an empty one."""
    from genie_cli.config import read_params

    return read_params(path)


def given(flags: Mapping[str, Any], settings: list[str] | None = None) -> dict[str, Any]:
    """The flags that were used, and the `--set` ones, under their configuration keys.

    Raises:
        UsageError: a `--set` without a key and a value, with a value that is not YAML, or of a key whose flag is given.
    """
    used = {key: value for key, value in flags.items() if value is not None}
    values = dict(used)
    for setting in settings or []:
        key, equals, text = setting.partition("=")
        if not key or not equals:
            raise UsageError(f"--set {setting!r} must be KEY=VALUE.")
        key = key.replace("-", "_")
        if key in used:
            raise UsageError(f"--set {setting!r} and the flag of '{key}', {used[key]}, are both given: leave one out.")
        values[key] = _parse(text, setting)
    return values


def _parse(text: str, setting: str) -> Any:
    from genie_cli.config import parse_yaml

    try:
        return parse_yaml(text)
    except ValueError as error:
        raise UsageError(f"--set {setting!r}: the value is not valid YAML: {error}.") from None


def model_config(params: Params, flags: Mapping[str, Any]) -> ModelConfig:
    """The `model` section under the flags.

    Raises:
        UsageError: no network is named, or a value cannot be used.
    """
    from genie_cli.config import ModelConfig, build

    values = {**params.section("model"), **given(flags)}
    if "name" not in values:
        raise UsageError("No network is named: give --model SPEC, or a `model` section in --params.")
    return build(ModelConfig, values, where="model")


def split_networks(flags: Mapping[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]] | None]:
    """Flags of the first network, and those of the others where `--model` is given more than once.

    Args:
        flags: key -> value, of which `name` and `weights` are lists; the rest holds for each network.

    Raises:
        UsageError: some networks have weights and some do not.
    """
    shared = {key: value for key, value in flags.items() if key not in ("name", "weights")}
    names, weights = flags.get("name", []), flags.get("weights", [])
    if len(names) <= 1 < len(weights):
        raise UsageError(f"{len(weights)} --weights for one network: give one.")
    if len(names) <= 1:
        return {**shared, "name": next(iter(names), None), "weights": next(iter(weights), None)}, None
    if weights and len(weights) != len(names):
        raise UsageError(
            f"{len(names)} --model and {len(weights)} --weights: give one --weights for each network, in their "
            "order, 'default' for a network's own, or none at all."
        )
    files = [None if file == "default" else file for file in weights] or [None] * len(names)
    if None in files:  # a network's own weights are no file to pick from
        shared.pop("weights_key", None)
    logits = {"logits": shared.pop("logits")} if "logits" in shared else {}  # those of the first network are read
    first, *others = [{**shared, "name": name, "weights": file} for name, file in zip(names, files, strict=True)]
    return {**first, **logits}, others


def check_files(
    outputs: Mapping[str, Path | None],
    inputs: Collection[tuple[str, Path | str]],
    folders: Collection[str] = (),
) -> None:
    """Refuse, before the work, outputs that cannot be written, or that would replace one another or what is read.

    Args:
        outputs: option -> what will be written, the stage's own output first.
        inputs: (option, what is read).
        folders: options that name the folder of a quantized network, which holds its own files alone.

    Raises:
        InputError: an output cannot be written.
        UsageError: an output is another one or an input, or lies in one of `folders`.
    """
    from genie_cli.artifacts.metadata import OWN_FILES
    from genie_cli.runtime.atomic import check_writable

    written = {option: path for option, path in outputs.items() if path is not None}
    for option, path in written.items():
        check_writable(path, OWN_FILES if option in folders else (), option.rpartition(" ")[2])
    for option, path in written.items():
        place = os.path.realpath(path)
        for other, taken in (*written.items(), *inputs):
            if other == option or "\0" in str(taken):
                continue
            if place == os.path.realpath(taken):
                raise UsageError(f"{option} and {other} are the same file {path}: choose another {option}.")
            if other in folders and Path(place).parent == Path(os.path.realpath(taken)):
                raise UsageError(
                    f"{option} {path} is in the folder of {other}, which holds a quantized network and nothing else: "
                    f"choose another {option}."
                )
