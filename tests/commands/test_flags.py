"""Options that are made of the schemas' fields."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from genie_cli.commands.flags import Fields, Used, takes
from genie_cli.config import fields

SCHEMAS = '''
class ThingConfig:
    first: Annotated[int, Flag("Run")] = Field(3, ge=1)
    """The first one. It has more to say."""
    quiet: int = 4
    """It has no option."""
    on: Annotated[bool, Flag("Recipe")] = True
    """A switch."""
    only_on: Annotated[bool, Flag("Recipe", "--only-on")] = False
    """A switch of one form."""
    place: Annotated[Path | None, Flag("Output", metavar="PLACE", default="nowhere")] = None
    """A place."""
    several: Annotated[dict[str, int] | None, Flag("Recipe", "-s --several", repeated=True)] = None
    """Several."""
    share: Annotated[float, Flag("Run", before="first"), NOT_DETERMINING] = 0.5
    """A share."""


class MoreConfig(ThingConfig):
    share: float = 0.25
    last: Annotated[Literal["a", "b"], Flag("Recipe")] = "a"
    """The last one."""
    net: Annotated[str, Flag("Model", "--net", default="", several="one each")] = "x"
    """A network."""
'''


@pytest.fixture(autouse=True)
def schemas(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Schemas of this file in place of the real ones."""
    classes = {node.name: node for node in ast.parse(SCHEMAS).body if isinstance(node, ast.ClassDef)}
    monkeypatch.setattr(fields, "_classes", lambda: classes)
    fields._class_fields.cache_clear()
    yield
    fields._class_fields.cache_clear()


Mark = Annotated[str, typer.Option("--mark", help="Mark.", rich_help_panel="Run")]
Subject = Annotated[str, typer.Argument(metavar="SUBJECT")]
GIVEN: list[tuple[Used, str, str]] = []


def command_of(*sections: Fields) -> typer.Typer:
    """A command with an option and an argument of its own."""

    @takes(*sections)
    def command(used: Used, subject: Subject, mark: Mark = "m") -> None:
        """Note what is given."""
        GIVEN.append((used, subject, mark))

    app = typer.Typer(add_completion=False)
    app.command()(command)
    return app


def options(*sections: Fields) -> dict[str, Any]:
    """Name -> option or argument, in the order of the help."""
    return {one.name: one for one in typer.main.get_command(command_of(*sections)).params}  # type: ignore[attr-defined]


def run(sections: list[Fields], *args: str, code: int = 0) -> Any:
    """What the command is given by `args`."""
    GIVEN.clear()
    result = CliRunner().invoke(command_of(*sections), list(args))
    assert result.exit_code == code, result.output
    return GIVEN[0] if GIVEN else result.output


def test_each_field_with_a_flag_is_an_option_under_its_panel() -> None:
    found = options(Fields("thing"))
    assert list(found) == ["subject", "on", "only_on", "several", "share", "first", "mark", "place"]
    panels = [one.rich_help_panel for one in found.values()]
    assert panels == [None, "Recipe", "Recipe", "Recipe", "Run", "Run", "Run", "Output"]


def test_names_types_and_help_follow_from_the_field() -> None:
    found = options(Fields("thing"))
    told = {
        name: (one.opts, one.secondary_opts, one.help) for name, one in found.items() if name not in ("subject", "mark")
    }
    assert told == {
        "first": (["--first"], [], "The first one. \\[default: 3]"),
        "on": (["--on"], ["--no-on"], "A switch. \\[default: on]"),
        "only_on": (["--only-on"], [], "A switch of one form."),
        "place": (["--place"], [], "A place. \\[default: nowhere]"),
        "several": (["-s", "--several"], [], "Several."),
        "share": (["--share"], [], "A share. \\[default: 0.5]"),
    }
    assert found["place"].metavar == "PLACE"
    assert found["several"].multiple


def test_only_what_is_given_is_handed_on_under_its_section() -> None:
    assert run([Fields("thing")], "x") == ({"thing": {}}, "x", "m")
    args = ["x", "--first", "5", "--no-on", "-s", "a", "--several", "b", "--place", "p", "--mark", "n", "--share", ".5"]
    values = {"first": 5, "on": False, "several": ["a", "b"], "place": Path("p"), "share": 0.5}
    assert run([Fields("thing")], *args) == ({"thing": values}, "x", "n")


def test_values_of_a_wrong_type_are_refused_with_the_option() -> None:
    assert "'--first'" in run([Fields("thing")], "x", "--first", "many", code=2)


def test_a_subclass_has_the_fields_of_its_base_with_its_own_defaults() -> None:
    found = options(Fields("more"))
    assert found["share"].help == "A share. \\[default: 0.25]"
    assert found["last"].help == "The last one. \\[default: a]"
    assert found["net"].help == "A network."
    assert list(found)[1] == "net"
    assert not found["net"].multiple


def test_an_option_per_network() -> None:
    assert options(Fields("more", several_networks=True))["net"].help == "A network; one each."
    used, *_ = run([Fields("more", several_networks=True)], "x", "--net", "a", "--net", "b")
    assert used == {"more": {"net": ["a", "b"]}}


def test_some_fields_of_a_section() -> None:
    assert set(options(Fields("thing", only=("first", "on")))) == {"subject", "mark", "first", "on"}
    assert set(options(Fields("more", without=("net", "several", "place", "share", "only_on")))) == {
        "subject", "mark", "first", "on", "last",
    }  # fmt: skip
    assert list(options(Fields("thing", last=("share",))))[-4:] == ["first", "mark", "share", "place"]


def test_two_sections_with_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="duplicate parameter name"):
        options(Fields("thing"), Fields("more"))
