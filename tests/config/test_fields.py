"""Fields that are read from the schemas' source are those that pydantic makes of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest

from genie_cli.config import SECTIONS, Frozen
from genie_cli.config.fields import SchemaField, section_fields
from genie_cli.config.marks import PANELS, Flag

FIELDS = [(section, field) for section in SECTIONS for field in section_fields(section).values()]
EACH_FIELD = pytest.mark.parametrize(
    ("section", "field"), [pytest.param(*pair, id=f"{pair[0]}.{pair[1].name}") for pair in FIELDS]
)


@pytest.mark.parametrize("section", SECTIONS)
def test_names_and_order_are_pydantic_s(section: str) -> None:
    assert list(section_fields(section)) == list(SECTIONS[section].model_fields)


@EACH_FIELD
def test_defaults_are_pydantic_s(section: str, field: SchemaField) -> None:
    default = SECTIONS[section].model_fields[field.name].default
    assert field.default == (str(default) if isinstance(default, Path) else default)
    assert type(field.default) is not Path


def declared(cls: type[Frozen], name: str) -> type[Frozen]:
    """The class that documents a field."""
    return next(base for base in reversed(cls.__mro__) if name in getattr(base, "model_fields", {}))


@EACH_FIELD
def test_docstrings_are_pydantic_s(section: str, field: SchemaField) -> None:
    cls = declared(SECTIONS[section], field.name)
    assert " ".join(field.text.split()) == " ".join(str(cls.model_fields[field.name].description).split())


@EACH_FIELD
def test_flags_are_pydantic_s(section: str, field: SchemaField) -> None:
    cls = declared(SECTIONS[section], field.name)
    flags = [mark for mark in cls.model_fields[field.name].metadata if isinstance(mark, Flag)]
    assert flags == [flag for flag in [field.flag] if flag is not None]
    assert field.flag is None or field.flag.panel in PANELS


@EACH_FIELD
def test_kinds_are_those_of_the_default_and_the_annotation(section: str, field: SchemaField) -> None:
    annotation = SECTIONS[section].model_fields[field.name].annotation
    kinds = [kind for kind in get_args(annotation) if kind is not type(None)] or [annotation]
    plain = kinds[0] if len(kinds) == 1 and kinds[0] in (int, float, bool, Path) else str
    if field.name not in ("memory_limit", "target_size", "target_bitops"):  # their validators read text
        assert field.kind == plain.__name__
    else:
        assert field.kind == "str"


@EACH_FIELD
def test_every_field_is_told_in_a_sentence(section: str, field: SchemaField) -> None:
    assert field.sentence.endswith(".")
    assert len(field.sentence) < 125
    assert "[" not in field.sentence  # markup of the help
    assert "\n" not in field.sentence


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("One.", "One."),
        ("Of two\n    lines. Then more.", "Of two lines."),
        ("Sizes, e.g. 2GiB, after Eq. 5. `more` follows.", "Sizes, e.g. 2GiB, after Eq. 5."),
        ("First.\n\n    second paragraph.", "First."),
    ],
)
def test_sentence(text: str, sentence: str) -> None:
    assert SchemaField("key", "int", 1, text, None).sentence == sentence


@pytest.mark.parametrize(
    "code",
    [
        "import genie_cli.config",
        "from genie_cli.config.fields import section_fields; section_fields('quantize')",
        "from genie_cli.quantization.presets import PRESETS; from genie_cli.synthesis.presets import PRESETS",
    ],
)
def test_without_pydantic(code: str) -> None:
    heavy = "[name for name in ('pydantic', 'torch') if name in sys.modules]"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; {code}; print({heavy})"], capture_output=True, encoding="utf-8", check=True
    )
    assert done.stdout == "[]\n"


def test_names_of_the_package_are_those_of_its_modules() -> None:
    import genie_cli.config as package

    for module, names in package._NAMES.items():
        for name in names:
            home: Any = sys.modules[f"genie_cli.config.{module}"]
            assert getattr(package, name) is getattr(home, name)
    assert not hasattr(package, "Quantize")
