"""The names of the leaves of what a network returns: their paths in the tree."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from torch.utils import _pytree as pytree

from genie_cli.models.graph.fresh_names import FreshNames

BARE = "output"
"""The name of the output of a network that returns a tensor and nothing around it."""
LEAF = pytree.tree_flatten(0)[1]
"""The tree that is one leaf."""


def leaf_names(spec: pytree.TreeSpec) -> list[str]:
    """The paths of a tree's leaves, joined by dots; `BARE` for a tree that is one leaf.

    Where two paths are joined to the same name, such as those of ``{"a.b": ..., "a": {"b": ...}}``, the later one gets
    a number.
    """
    if spec == LEAF:
        return [BARE]
    names = FreshNames()
    return [names.fresh(".".join(path)) for path in _paths(spec)]


def _paths(spec: pytree.TreeSpec) -> list[tuple[str, ...]]:
    if spec == LEAF:
        return [()]
    return [
        (key, *path) for key, child in zip(_child_names(spec), _children(spec), strict=True) for path in _paths(child)
    ]


def _children(spec: pytree.TreeSpec) -> Sequence[pytree.TreeSpec]:
    return [spec.child(i) for i in range(spec.num_children)]


def _child_names(spec: pytree.TreeSpec) -> list[str]:
    """Keys of a mapping, names of fields, else numbers."""
    context: Any = spec.context
    if spec.type is defaultdict:
        context = context[1]
    elif isinstance(context, type) and hasattr(context, "_fields"):  # a named tuple
        context = context._fields
    elif spec.type not in (dict, OrderedDict) and dataclasses.is_dataclass(spec.type):
        context = next((each for each in (context, *context) if _names_all(each, spec)), None)
    return [str(key) for key in context] if _names_all(context, spec) else [str(i) for i in range(spec.num_children)]


def _names_all(context: Any, spec: pytree.TreeSpec) -> bool:
    is_listed = isinstance(context, Sequence | Mapping) and not isinstance(context, str)
    return is_listed and len(context) == spec.num_children and all(isinstance(key, str | int) for key in context)
