"""The shape of the sources, read from their syntax trees."""

from __future__ import annotations

import ast
import runpy
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "genie_cli"
LIBRARY_FACE = PACKAGE / "__init__.py"
ALONE = {"SOLO", "NO_WORK", "silent"}
"""Values for a run of one process that keeps nothing and reports to nobody."""

long_signatures = runpy.run_path(str(ROOT / "benchmarks" / "long_signatures.py"))["long_signatures"]


def _defaults(arguments: ast.arguments) -> Iterator[tuple[str, ast.expr]]:
    """Parameter -> its default."""
    positional = [*arguments.posonlyargs, *arguments.args]
    yield from zip((argument.arg for argument in reversed(positional)), reversed(arguments.defaults), strict=False)
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        if default is not None:
            yield argument.arg, default


def _alone_by_default(code: str) -> list[tuple[int, str]]:
    """Line and parameter of the defaults that are one of `ALONE`, whatever module they are taken from."""
    return [
        (default.lineno, name)
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for name, default in _defaults(node.args)
        if ast.unparse(default).rpartition(".")[2] in ALONE
    ]


def test_defaults_are_found_wherever_they_stand() -> None:
    code = """
def f(a, b=SOLO, *, c=None, d, e=progress.silent): ...
class C:
    async def g(self, a=NO_WORK, /, b=1): ...
h = lambda a, b=silent: a
"""
    assert sorted(_alone_by_default(code)) == [(2, "b"), (2, "e"), (4, "a"), (5, "b")]


def test_parameters_are_counted_without_the_object_they_are_called_on(tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text("""
def seven(a, b, /, c, *d, e, f=1, **g): ...
def eight(a, b, /, c, *d, e, f, g=1, **h): ...
class C:
    def __init__(self, a, b, c, d, e, f, g): ...
    @classmethod
    def made(cls, a, b, c, d, e, f, g, h): ...
    @staticmethod
    def forward(ctx, a, b, c, d, e, f, g): ...
""")
    assert [found.name for found in long_signatures(tmp_path)] == ["eight", "C.made", "C.forward"]


def test_a_signature_has_at_most_seven_parameters() -> None:
    assert [f"{found.place} {found.name}: {found.num_parameters}" for found in long_signatures(PACKAGE)] == []


def test_no_argument_of_a_run_is_left_out_in_silence() -> None:
    """A forgotten process group, work folder or reporter shall be an error, not a run without it."""
    files = [file for file in PACKAGE.rglob("*.py") if PACKAGE / "commands" not in file.parents]
    assert [
        f"{file.relative_to(ROOT)}:{line} {name}"
        for file in files
        if file != LIBRARY_FACE
        for line, name in _alone_by_default(file.read_text(encoding="utf-8"))
    ] == []
