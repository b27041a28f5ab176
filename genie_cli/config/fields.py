"""Fields of the schemas, read from their source: options and help are made of them without importing pydantic."""

from __future__ import annotations

import ast
import functools
import pkgutil
import re
from dataclasses import dataclass, replace
from typing import Any

from genie_cli.config.marks import Flag

_MODULES = ("base", "synthesize", "quantize", "sensitivity", "evaluate", "export")
_KINDS = ("int", "float", "bool", "Path")
_SENTENCE_END = re.compile(r"(?<=\.)\s+(?=[A-Z`])")


@dataclass(frozen=True)
class SchemaField:
    """A field as its class declares it.

    Attributes:
        name: key of the configuration.
        kind: ``int``, ``float``, ``bool`` or ``Path`` where the value is one of these or None, else ``str``.
        default: plain value; a path's text.
        text: docstring.
        flag: its command-line option, where it has one.
        choices: the words that it takes, where its type names them.
    """

    name: str
    kind: str
    default: Any
    text: str
    flag: Flag | None
    choices: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """The docstring's first sentence, on one line: up to an empty line, or a full stop before a capital letter."""
        paragraph = self.text.partition("\n\n")[0]
        return _SENTENCE_END.split(" ".join(paragraph.split()), maxsplit=1)[0]


def section_fields(section: str) -> dict[str, SchemaField]:
    """Key -> field of a params section: ``quantize`` is the class ``QuantizeConfig``.

    The order is pydantic's: fields of base classes first. A field that is declared again keeps its place, and the
    docstring and the option of the base class where it has none of its own.
    """
    return dict(_class_fields(f"{section.capitalize()}Config"))


@functools.cache
def _class_fields(name: str) -> dict[str, SchemaField]:
    fields: dict[str, SchemaField] = {}
    for base in _classes()[name].bases:
        if isinstance(base, ast.Name) and base.id in _classes():
            fields.update(_class_fields(base.id))
    body = _classes()[name].body
    for statement, following in zip(body, [*body[1:], None], strict=True):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            field = _read_field(statement.target.id, statement, following)
            earlier = fields.get(field.name, field)
            fields[field.name] = replace(field, text=field.text or earlier.text, flag=field.flag or earlier.flag)
    return fields


@functools.cache
def _classes() -> dict[str, ast.ClassDef]:
    """Name -> syntax tree of every class of the schemas."""
    return {node.name: node for node in _statements() if isinstance(node, ast.ClassDef)}


@functools.cache
def _aliases() -> dict[str, ast.expr]:
    """Name -> type of every name that a module of the schemas gives to one."""
    return {
        node.targets[0].id: node.value
        for node in _statements()
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }


@functools.cache
def _statements() -> tuple[ast.stmt, ...]:
    """The statements of all modules of the schemas."""
    statements: list[ast.stmt] = []
    for module in _MODULES:
        source = pkgutil.get_data("genie_cli.config", f"{module}.py")
        assert source is not None
        statements += ast.parse(source).body
    return tuple(statements)


def _read_field(name: str, statement: ast.AnnAssign, following: ast.stmt | None) -> SchemaField:
    annotation, flag = _split_annotated(statement.annotation)
    text = ""
    if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
        text = str(following.value.value)
    return SchemaField(name, _kind(annotation), _default(statement.value), text, flag, _choices(annotation))


def _split_annotated(annotation: ast.expr) -> tuple[ast.expr, Flag | None]:
    """``Annotated[T, ..., Flag(...)]`` as ``T`` and its flag."""
    if not (isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) == "Annotated"):
        return annotation, None
    assert isinstance(annotation.slice, ast.Tuple)
    plain, *marks = annotation.slice.elts
    for mark in marks:
        if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "Flag":
            keywords = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in mark.keywords}
            return plain, Flag(*map(ast.literal_eval, mark.args), **keywords)
    return plain, None


def _kind(annotation: ast.expr) -> str:
    names = ast.unparse(annotation).removesuffix(" | None")
    return names if names in _KINDS else "str"


def _choices(annotation: ast.expr) -> tuple[str, ...]:
    """The words of a ``Literal``, also of one that has a name."""
    if isinstance(annotation, ast.Name) and annotation.id in _aliases():
        annotation = _aliases()[annotation.id]
    for part in ast.walk(annotation):
        if isinstance(part, ast.Subscript) and ast.unparse(part.value) == "Literal":
            words = [each.value for each in ast.walk(part.slice) if isinstance(each, ast.Constant)]
            return tuple(word for word in words if isinstance(word, str))
    return ()


def _default(value: ast.expr | None) -> Any:
    """The value after ``=``: a literal, or the first argument of ``Field(...)`` or ``Path(...)``."""
    assert value is not None, "a configuration has a default for each key"
    return ast.literal_eval(value.args[0] if isinstance(value, ast.Call) else value)
