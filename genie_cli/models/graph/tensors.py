"""Tensors of a module by dotted name: the parameters, buffers and constants a graph reads."""

from __future__ import annotations

import math

from torch import Tensor, fx, nn


def get_tensor(root: nn.Module, key: str) -> Tensor:
    """The parameter, buffer or plain tensor attribute at `key`, e.g. ``layer1.0.conv1.weight``."""
    owner, _, leaf = key.rpartition(".")
    value = getattr(root.get_submodule(owner), leaf)
    assert isinstance(value, Tensor), f"{key} is {type(value).__name__}"
    return value


def stored_tensors(graph_module: fx.GraphModule) -> dict[str, list[fx.Node]]:
    """Key of each tensor that a graph reads -> the nodes that hand it out, in graph order."""
    found: dict[str, list[fx.Node]] = {}
    for node in graph_module.graph.nodes:
        if node.op == "get_attr":
            found.setdefault(str(node.target), []).append(node)
    return found


def key_owner(key: str) -> str:
    """The path of the module whose weight stands at `key`; the key itself where it is no module's weight."""
    owner, _, leaf = key.rpartition(".")
    return owner if leaf == "weight" and owner else key


def set_tensor(root: nn.Module, key: str, value: Tensor) -> None:
    """Register `value` as a buffer at `key`, creating the modules on the way.

    Captured tensors are constants: training marks what it learns in modules of its own.
    """
    *path, leaf = key.split(".")
    for name in path:
        child = root._modules.get(name)
        if child is None:
            child = nn.Module()
            root.add_module(name, child)
        root = child
    for registry in (root._parameters, root._buffers):
        registry.pop(leaf, None)
    root.__dict__.pop(leaf, None)
    root.register_buffer(leaf, value.detach())


def named_tensors(root: nn.Module) -> dict[str, Tensor]:
    """All buffers by name, in registration order."""
    return dict(root.named_buffers())


def delete_tensor(root: nn.Module, key: str) -> None:
    """Remove the buffer at `key`."""
    owner, _, leaf = key.rpartition(".")
    delattr(root.get_submodule(owner), leaf)


def numel_per_image(node: fx.Node) -> int:
    """Elements of the node's value for one image; 0 where it is no tensor with a batch."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor) or value.dim() < 2:
        return 0
    return math.prod(int(side) for side in value.shape[1:])
