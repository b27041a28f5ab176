"""Configurations from their layers: params files, presets and flags; YAML in and out."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from genie_cli.config.base import Frozen, ModelConfig
from genie_cli.config.budgets import budget_options
from genie_cli.config.evaluate import EvaluateConfig
from genie_cli.config.export import ExportConfig
from genie_cli.config.presets import Preset
from genie_cli.config.quantize import QuantizeConfig
from genie_cli.config.sensitivity import SensitivityConfig
from genie_cli.config.synthesize import SynthesizeConfig
from genie_cli.errors import ConfigError, InputError, UsageError, look_up, unknown_name

SECTIONS: dict[str, type[Frozen]] = {
    "model": ModelConfig,
    "synthesize": SynthesizeConfig,
    "quantize": QuantizeConfig,
    "sensitivity": SensitivityConfig,
    "evaluate": EvaluateConfig,
    "export": ExportConfig,
}
COMMON_KEYS = ("budget", "device", "precision", "deterministic", "seed")
"""Keys of the `common` section: each command takes those that it knows."""

_PLAINER = {
    "Input should be": "it should be",
    "greater than or equal to": "at least",
    "less than or equal to": "at most",
}
"""Words of pydantic's messages, and those that a person would say."""

ConfigT = TypeVar("ConfigT", bound=Frozen)


def build(cls: type[ConfigT], *layers: Mapping[str, Any], where: str = "") -> ConfigT:
    """A configuration from layers of keys, later ones first in rank.

    Raises:
        UsageError: an unknown key.
        ConfigError: a value out of range, named with its bound, or values that contradict each other.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        check_keys(layer, cls.model_fields, where)
        merged.update(layer)
    try:
        return cls(**merged)
    except ValidationError as error:
        raise ConfigError(_describe(error, where)) from None


def stage_config(
    cls: type[ConfigT],
    section: Mapping[str, Any],
    flags: Mapping[str, Any],
    find_preset: Callable[[str], Preset] | None = None,
    where: str = "",
) -> ConfigT:
    """The configuration of a stage: defaults < preset < budget < section < flags.

    Args:
        cls: its class.
        section: keys of a params file.
        flags: keys that rank above them.
        find_preset: finds its presets, where it has any.
        where: name of the section, for messages.

    Raises:
        UsageError: unknown keys or preset, a value out of range, or a preset without what it needs.
    """
    if find_preset is None:
        return build(cls, section, flags, where=where)
    name = str(flags.get("preset", section.get("preset", cls.model_fields["preset"].default)))
    preset = find_preset(name)
    preset.check_needs(name, {**preset.options, **section, **flags}, where)
    budget = budget_options(where, flags.get("budget", section.get("budget")))
    return build(cls, preset.options, budget, section, flags, where=where)


def check_keys(section: Mapping[str, Any], known: Any, where: str) -> None:
    """Refuse keys outside `known`, naming the nearest one."""
    for key in section:
        if key not in known:
            raise unknown_name("key", key, known, f" in section '{where}'" if where else "")


def _describe(error: ValidationError, where: str) -> str:
    first = error.errors()[0]
    message = first["msg"].removeprefix("Value error, ").partition(" for <class")[0]
    for words, plain in _PLAINER.items():
        message = message.replace(words, plain)
    message = message[:1].lower() + message[1:]
    what = f"{first['loc'][0]} = {_shown(first['input'])} cannot be used" if first["loc"] else where
    return f"{what}: {message}."


def _shown(value: Any) -> str:
    """A value in a message, on one line of bearable length."""
    text = str(value) if isinstance(value, Path) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


class Params:
    """A read params file: sections of known keys, schemes apart."""

    def __init__(self, content: Mapping[str, Any], path: Path | None = None) -> None:
        """Check the shape and the keys of `content`, values are checked by `build`."""
        self.path = path
        self._sections: dict[str, dict[str, Any]] = {}
        self.schemes: dict[str, dict[str, Any]] = {}
        known = [*SECTIONS, "common"]
        for name, section in content.items():
            if name not in known:
                raise unknown_name("section", name, known, f" in {path}: the sections are {', '.join(known)}")
            self._sections[name] = _mapping(section, f"Section '{name}' of {path}")
        check_keys(self._sections.get("common", {}), COMMON_KEYS, "common")
        schemes = self._sections.get("quantize", {}).pop("schemes", None)
        for name, scheme in _mapping(schemes, f"Section 'quantize.schemes' of {path}").items():
            self.schemes[str(name)] = _mapping(scheme, f"Scheme '{name}' of {path}")
            check_keys(self.schemes[str(name)], QuantizeConfig.model_fields, f"quantize.schemes.{name}")
        for name, cls in SECTIONS.items():
            check_keys(self._sections.get(name, {}), cls.model_fields, name)

    def section(self, name: str) -> dict[str, Any]:
        """The keys for one command: the common ones that it knows, then its own."""
        known = SECTIONS[name].model_fields
        common = {k: v for k, v in self._sections.get("common", {}).items() if k in known}
        return {**common, **self._sections.get(name, {})}

    def scheme(self, name: str) -> dict[str, Any]:
        """The keys of one scheme of `quantize.schemes`."""
        told = f"; the params file has: {', '.join(self.schemes) or 'none'}"
        return look_up(self.schemes, "scheme", name, told)


def _mapping(section: Any, what: str) -> dict[str, Any]:
    """A section's keys; an empty one has none."""
    if section is None:
        return {}
    if not isinstance(section, Mapping):
        raise UsageError(f"{what} must hold keys, it holds {_shown(section)}.")
    return dict(section)


def read_params(path: Path | None) -> Params:
    """Read a params file (YAML 1.2); without a path, an empty one.

    Raises:
        InputError: the file is missing or is not YAML.
        UsageError: unknown keys or sections of the wrong shape.
    """
    if path is None:
        return Params({})
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise InputError(f"Params file {path} cannot be read: {reason}.") from None
    try:
        content = parse_yaml(text)
    except ValueError as error:
        raise InputError(f"Params file {path} is not valid YAML: {error}.") from None
    if content is None:
        content = {}
    if not isinstance(content, Mapping):
        raise UsageError(f"Params file {path} must hold sections such as 'model:', it holds {_shown(content)}.")
    return Params(content, path)


def yaml_text(value: Any) -> str:
    """A plain value on one line of YAML 1.2, as `parse_yaml` reads it."""
    from ruamel.yaml import YAML

    writer: Any = YAML(typ="safe", pure=True)
    stream = io.StringIO()
    writer.default_flow_style, writer.width = True, sys.maxsize
    writer.sort_base_mapping_type_on_output = False
    writer.dump(value, stream)
    return stream.getvalue().removesuffix("...\n").strip()


def parse_yaml(text: str) -> Any:
    """Plain values from YAML 1.2.

    Raises:
        ValueError: not YAML, with the place and the problem on one line.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    try:
        return YAML(typ="safe", pure=True).load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
        raise ValueError(f"{place}{' '.join(str(error.problem).split())}") from None
    except YAMLError as error:
        raise ValueError(str(error).splitlines()[0]) from None
    except LookupError as error:  # ruamel of a value that its tag does not allow, such as `!!bool maybe`
        raise ValueError(f"a value does not fit its tag: {error}") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
