"""Move a captured graph to a device, constants that its nodes create included."""

from __future__ import annotations

import torch
from torch import fx


def move(graph_module: fx.GraphModule, device: torch.device) -> fx.GraphModule:
    """Move in place and return: tensors, and the ``device`` argument of nodes such as ``aten.full``."""
    for node in graph_module.graph.nodes:
        if node.kwargs.get("device") is not None:
            node.kwargs = {**node.kwargs, "device": device}
    graph_module.recompile()
    return graph_module.to(device)
