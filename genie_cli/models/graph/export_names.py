"""Names of modules that the exporter, or the code that it generates, would misunderstand."""

from __future__ import annotations

import keyword
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import fx, nn

_MODULE_ATTRIBUTES = frozenset(dir(nn.Module()))
_GRAPH_ATTRIBUTES = frozenset(dir(fx.GraphModule(nn.Module(), fx.Graph())))
"""Names that a module, and a graph module, have of their own."""


@contextmanager
def dotted_names_resolved(model: nn.Module) -> Iterator[None]:
    """Let modules with a dot in their names be found by it, which the exporter takes for a path."""
    placed: list[tuple[nn.Module, str]] = []

    def place(owner: nn.Module, name: str, value: nn.Module) -> None:
        owner.__dict__[name] = value  # beside the registered modules
        placed.append((owner, name))

    for module in list(model.modules()):
        for name, child in module._modules.items():
            if "." not in name or child is None:
                continue
            owner = module
            *path, leaf = name.split(".")
            for part in path:
                if not isinstance(getattr(owner, part, None), nn.Module):
                    place(owner, part, nn.Module())
                owner = getattr(owner, part)
            place(owner, leaf, child)
    try:
        yield
    finally:
        for owner, name in placed:
            owner.__dict__.pop(name, None)


def rename_unsafe(exported: torch.export.ExportedProgram) -> None:
    """Give tensors and modules of an exported network names that generated code can hold; others stay as they are.

    ``branches.global.weight`` becomes ``branches.global_.weight``.
    """
    signature = exported.graph_signature
    specs = [spec for spec in (*signature.input_specs, *signature.output_specs) if spec.target is not None]
    names = _SafeNames({part for spec in specs for part in str(spec.target).split(".")})
    if all(names.path(str(spec.target)) == spec.target for spec in specs):
        return
    for spec in specs:
        spec.target = names.path(str(spec.target))
    for tensors in (exported.state_dict, exported.constants):
        for name in list(tensors):  # all are put in anew, in their order
            tensors[names.path(name)] = tensors.pop(name)
    for node in exported.graph.nodes:
        if stack := node.meta.get("nn_module_stack"):
            node.meta["nn_module_stack"] = {key: (names.path(path), kind) for key, (path, kind) in stack.items()}


class _SafeNames:
    """Safe names of parts of paths, each found once."""

    def __init__(self, used: set[str]) -> None:
        """`used`: parts that are taken."""
        self._used = used
        self._safe: dict[str, str] = {}

    def path(self, path: str) -> str:
        """The path of safe names."""
        return ".".join(self._part(part, place == 0) for place, part in enumerate(path.split(".")))

    def _part(self, part: str, is_first: bool) -> str:
        if not _is_unsafe(part, is_first):
            return part
        if part not in self._safe:
            plain = "".join(char if char.isascii() and (char.isalnum() or char == "_") else "_" for char in part)
            while (plain := f"{plain}_") in self._used:
                continue
            self._used.add(plain)
            self._safe[part] = plain
        return self._safe[part]


def _is_unsafe(name: str, is_first: bool) -> bool:
    """True for a name that means something else in an expression, or on the graph's own module (`is_first`)."""
    return (
        keyword.iskeyword(name)
        or name in (_GRAPH_ATTRIBUTES if is_first else _MODULE_ATTRIBUTES)
        or unicodedata.normalize("NFKC", name) != name
        or not name.isprintable()
        or '"' in name
        or "\\" in name
    )
