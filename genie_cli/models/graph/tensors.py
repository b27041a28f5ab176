"""Tensors of a module by dotted name: the parameters, buffers and constants a graph reads."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def get_tensor(root: nn.Module, key: str) -> Tensor:
    """The parameter, buffer or plain tensor attribute at `key`, e.g. ``layer1.0.conv1.weight``."""
    owner, _, leaf = key.rpartition(".")
    value = getattr(root.get_submodule(owner), leaf)
    assert isinstance(value, Tensor), f"{key} is {type(value).__name__}"
    return value


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


def is_float(value: Tensor) -> bool:
    """True if the tensor holds real numbers (not indices or masks)."""
    return torch.is_floating_point(value)
