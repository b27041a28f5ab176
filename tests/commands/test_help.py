"""Help: light, complete, and true."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import pytest
import typer

import genie_cli
from genie_cli.app import app
from genie_cli.config import SECTIONS
from genie_cli.quantization.presets import PRESETS as QUANTIZATION_PRESETS
from genie_cli.student.protocol import PROTOCOLS
from genie_cli.synthesis.presets import PRESETS as SYNTHESIS_PRESETS

COMMANDS = (
    "synthesize", "sensitivity", "quantize", "evaluate", "export", "benchmark", "inspect", "show", "models", "presets",
    "config", "report", "verify", "clean",
)  # fmt: skip
STAGES = ("synthesize", "quantize", "evaluate", "export")
HEAVY = ("torch", "torchvision", "numpy", "sklearn", "safetensors", "ruamel.yaml", "pydantic")
RUN_AND_LIST = """
import sys
from genie_cli.app import main
try:
    main()
finally:
    print("LOADED", *[name for name in {heavy!r} if name in sys.modules], file=sys.stderr)
"""


def options(command: str) -> list[Any]:
    return typer.main.get_command(app).commands[command].params  # type: ignore[attr-defined]


def stated_default(text: str) -> str | None:
    found = re.search(r"\\\[default: (.*)\]$", text)
    return found[1] if found else None


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help_loads_nothing_heavy(command: str | None) -> None:
    arguments = [sys.executable, "-c", RUN_AND_LIST.format(heavy=HEAVY), *filter(None, [command]), "--help"]
    done = subprocess.run(arguments, capture_output=True, encoding="utf-8", timeout=60, check=True)
    assert "Usage:" in done.stdout
    assert done.stderr.split() == ["LOADED"]


def test_importing_the_app_loads_nothing_heavy() -> None:
    code = f"import sys, genie_cli.app; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", timeout=60, check=True)
    assert done.stdout == "[]\n"


def test_all_commands_are_listed(genie: Any) -> None:
    listed = genie("--help").stdout
    assert tuple(typer.main.get_command(app).commands) == COMMANDS  # type: ignore[attr-defined]
    for command in COMMANDS:
        assert re.search(rf"│ {command} +[A-Z]", listed)
    for exit_code in ("0 done", "2 wrong use", "3 bad input", "4 no suitable device", "130 interrupted"):
        assert exit_code in " ".join(listed.split())


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("width", [80, 120])
def test_every_option_is_shown_and_told(genie: Any, command: str, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    result = genie(command, "--help")
    assert max(map(len, result.stdout.splitlines())) <= width
    assert "…" not in result.stdout
    for option in options(command):
        assert option.help and (option.help.endswith((".", "]"))), option.name
        for name in option.opts if option.param_type_name == "option" else [option.metavar]:
            assert re.search(rf"│[ *]+(\S+,)?(--\S+ +)?{re.escape(name)}(?!\w)", result.stdout), name


SWITCH = {"True": "on", "False": "off"}


@pytest.mark.parametrize("command", STAGES)
def test_stated_defaults_are_those_of_the_configuration(command: str) -> None:
    fields = {**SECTIONS["model"].model_fields, **SECTIONS[command].model_fields}
    stated = 0
    for option in options(command):
        default = stated_default(option.help or "")
        field = fields.get(option.name)
        if default is None or field is None:
            continue
        if field.default is None:
            words = {"the", "all", "evaluate", "from", "none", "learned",
                     "text", "export", "model.onnx", "noise"}  # fmt: skip
            assert default.split()[0] in words, option.name
        else:
            assert default == SWITCH.get(str(field.default), str(field.default)), option.name
        stated += 1
    assert stated >= 10


@pytest.mark.parametrize("command", STAGES)
def test_every_default_of_the_configuration_is_stated(command: str) -> None:
    for option in options(command):
        field = SECTIONS[command].model_fields.get(option.name)
        if field is not None and field.default not in (None, False):
            assert stated_default(option.help) == SWITCH.get(str(field.default), str(field.default)), option.name


@pytest.mark.parametrize(
    ("command", "option", "names"),
    [("synthesize", "preset", SYNTHESIS_PRESETS), ("quantize", "preset", QUANTIZATION_PRESETS),
     ("quantize", "protocol", PROTOCOLS), ("inspect", "protocol", PROTOCOLS)],
)  # fmt: skip
def test_all_names_are_told(command: str, option: str, names: dict[str, Any]) -> None:
    text = next(entry.help for entry in options(command) if entry.name == option)
    told = text.partition(":")[2].partition(".")[0]
    assert [name.strip() for name in told.split(",")] == list(names)


@pytest.mark.parametrize("command", STAGES)
def test_every_key_is_an_option_or_can_be_set(command: str) -> None:
    taken = {option.name for option in options(command)}
    assert set(SECTIONS[command].model_fields) <= taken or "settings" in taken


@pytest.mark.parametrize("command", ["synthesize", "quantize"])
def test_example_of_set_is_a_key_without_an_option(command: str) -> None:
    text = next(option.help for option in options(command) if option.name == "settings")
    key = re.search(r"--set (\w+)=", text)
    assert key is not None
    assert key[1] in SECTIONS[command].model_fields
    assert key[1] not in {option.name for option in options(command)}


def test_no_arguments_show_the_help(genie: Any) -> None:
    result = genie(code=2)
    assert "Usage: genie" in result.stdout + result.stderr
    assert "synthesize" in result.stdout + result.stderr


def test_short_help(genie: Any) -> None:
    assert genie("quantize", "-h").stdout == genie("quantize", "--help").stdout


def test_version(genie: Any) -> None:
    assert genie("--version").stdout == f"genie {genie_cli.__version__}\n"


def test_module_is_the_script(genie: Any, genie_process: Any) -> None:
    module = genie_process("--version", code=0)
    assert (module.stdout, module.stderr) == (genie("--version").stdout, "")
    assert "Usage: python -m genie_cli " in genie_process("--help").stdout
    assert genie_process("--no-such-option", code=2).stdout == ""
