"""A hash of what a captured network computes: networks of equal weights may differ in everything else."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import fx

from genie_cli.models.graph.tensors import named_tensors


def graph_sha256(network: fx.GraphModule) -> str:
    """SHA-256 over the operations of a graph, their arguments and its tensors; the names of its nodes do not count."""
    digest = hashlib.sha256()
    places = {node: f"%{place}" for place, node in enumerate(network.graph.nodes)}
    for node in network.graph.nodes:
        arguments = fx.node.map_arg((node.args, node.kwargs), places.__getitem__)
        digest.update(f"{node.op}\0{_name(node.target)}\0{arguments!r}\0".encode())
    for key, value in sorted(named_tensors(network).items()):
        tensor = value.detach().cpu().contiguous()
        digest.update(f"{key}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _name(target: Any) -> str:
    """The text of a target, the same in every process."""
    if isinstance(target, str | torch._ops.OpOverload):
        return str(target)
    return f"{target.__module__}.{target.__qualname__}"
