"""The traced graph of a network, whatever its modules are called and however its forward pass takes the images."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import TreeSpec

from genie_cli.models.graph.data_access import data_access
from genie_cli.models.graph.export_names import dotted_names_resolved, rename_unsafe


def exported_graph(model: nn.Module, example: Tensor) -> tuple[fx.GraphModule, TreeSpec]:
    """The traced graph of `model` for any number of images, and the structure of what it returns.

    Modules whose names Python or `torch.fx` give another meaning are called otherwise in the graph: ``global_``.

    Args:
        model: in evaluation mode.
        example: images ``[B, C, H, W]``.

    Raises:
        Exception: of any kind, where the network cannot be exported.
    """
    try:
        exported = _export(model, example)
    except Exception:
        access = data_access(model, example)
        if not access.has_read or access.has_changed:
            raise
        with access:
            exported = _export(model, example)
    rename_unsafe(exported)
    traced = exported.run_decompositions({}).module(check_guards=False)
    assert isinstance(traced, fx.GraphModule)
    return traced, exported.call_spec.out_spec


def _export(model: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    first = next(iter(inspect.signature(model.forward).parameters.values()), None)
    shapes: Any = {0: torch.export.Dim.DYNAMIC}
    if first is not None and first.kind is inspect.Parameter.VAR_POSITIONAL:  # forward(*args), as wrappers have it
        shapes = (shapes,)
    with dotted_names_resolved(model):
        return torch.export.export(model, (example,), dynamic_shapes=(shapes,))
