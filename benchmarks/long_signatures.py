"""Functions and hand-written constructors with many parameters.

    python benchmarks/long_signatures.py

Prints a line per signature with more than 7 parameters, and the count. The commands are left out: their parameters
are their options.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "genie_cli"
MOST = 7
"""Parameters that a signature may have."""
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Signature:
    """A function of the package.

    Attributes:
        place: ``file:line``, from the package's parent.
        name: with the names of the classes and functions around it.
        num_parameters: without ``self`` and ``cls``; ``*args`` and ``**kwargs`` are one each.
    """

    place: str
    name: str
    num_parameters: int


def signatures(package: Path = PACKAGE) -> Iterator[Signature]:
    """Every function and method that is written in `package`, its commands left out."""
    for file in sorted(package.rglob("*.py")):
        if package / "commands" in file.parents:
            continue
        place = str(file.relative_to(package.parent))
        for name, function, is_bound in _functions(ast.parse(file.read_text(encoding="utf-8"))):
            yield Signature(f"{place}:{function.lineno}", name, _num_parameters(function.args) - is_bound)


def long_signatures(package: Path = PACKAGE) -> list[Signature]:
    """The signatures with more than `MOST` parameters, the longest first."""
    found = [signature for signature in signatures(package) if signature.num_parameters > MOST]
    return sorted(found, key=lambda signature: -signature.num_parameters)


def _functions(node: ast.AST, within: str = "", in_class: bool = False) -> Iterator[tuple[str, Function, bool]]:
    """Full name, function, and whether its first parameter is ``self`` or ``cls``."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Function):
            is_static = any(isinstance(mark, ast.Name) and mark.id == "staticmethod" for mark in child.decorator_list)
            yield f"{within}{child.name}", child, in_class and not is_static
            yield from _functions(child, f"{within}{child.name}.")
        elif isinstance(child, ast.ClassDef):
            yield from _functions(child, f"{within}{child.name}.", in_class=True)
        else:
            yield from _functions(child, within, in_class)


def _num_parameters(arguments: ast.arguments) -> int:
    listed = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return len(listed) + (arguments.vararg is not None) + (arguments.kwarg is not None)


def main() -> None:
    """Print the long signatures."""
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    found = long_signatures()
    for signature in found:
        sys.stdout.write(f"{signature.num_parameters:3d}  {signature.place}  {signature.name}\n")
    number = sum(1 for _ in signatures())
    sys.stdout.write(f"{len(found)} of {number} signatures have more than {MOST} parameters\n")


if __name__ == "__main__":
    main()
