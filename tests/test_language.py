"""The language of the package: a docstring begins with what a thing is or does, and its words are the field's."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OPENING = re.compile(r"\s*(What|Whether|How|Where)\b")
WORDS = re.compile(r"\b(mend(s|ed|ing)?|by\s+chance)\b", re.IGNORECASE)


def _texts(source: str) -> Iterator[tuple[int, str, bool]]:
    """Line, text and kind (True: a docstring, of an attribute too) of every string in `source`."""
    tree = ast.parse(source)
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value, id(node) in docstrings


def _problems(source: str) -> list[str]:
    found = []
    for line, text, is_docstring in _texts(source):
        if is_docstring and (opening := OPENING.match(text)):
            found.append(f"line {line} begins with '{opening[1]}': begin with the noun or the verb")
        found += [f"line {line} has '{word[0]}': write fix or probability" for word in WORDS.finditer(text)]
    return found


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ('"""What a thing is."""', "begins with 'What'"),
        ('def f():\n    """Whether it is so."""', "begins with 'Whether'"),
        ('class C:\n    """\n    How it works.\n    """', "begins with 'How'"),
        ('A = 1\n"""Where it lies."""', "begins with 'Where'"),
        ('"""A mask, 1 by\nchance 0.5."""', "has 'by\nchance'"),
        ('raise ValueError(f"{name} is wrong. Mend it.")', "has 'Mend'"),
    ],
    ids=["module", "function", "class", "attribute", "docstring", "message"],
)
def test_a_problem_is_found(source: str, problem: str) -> None:
    (found,) = _problems(source)
    assert problem in found


def test_other_words_are_not() -> None:
    assert _problems('"""However: whatever is recommended."""\nprint("What is it?")') == []


def test_docstrings_and_messages_of_the_package() -> None:
    files = sorted((ROOT / "genie_cli").rglob("*.py"))
    assert files
    problems = {str(file.relative_to(ROOT)): _problems(file.read_text(encoding="utf-8")) for file in files}
    assert {name: found for name, found in problems.items() if found} == {}
