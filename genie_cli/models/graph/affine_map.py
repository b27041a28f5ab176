"""Affine maps per channel: what a batch norm that no layer takes in becomes in a quantized network.

Its four statistics become a scale and a shift ``[C]``, in float. A captured network has no such nodes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from genie_cli.models.graph.batch_norm import BatchNormSite
from genie_cli.models.graph.tensors import delete_tensor, get_tensor, set_tensor

_PREFIX = "affine_maps"
"""Prefix of their tensors in a folded graph."""


def affine_map(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """``scale * x + shift`` along axis 1, in the type of `x`: ``[B, C, ...]``, ``[C]``, ``[C]`` -> ``[B, C, ...]``."""
    shape = (-1, *[1] * (x.dim() - 2))
    return torch.addcmul(shift.view(shape), x, scale.view(shape)).to(x.dtype)


@dataclass(frozen=True)
class AffineMap:
    """An affine map in a folded graph.

    Attributes:
        node: the node that computes it; its first argument is the tensor that it maps.
        keys: of its scale and its shift.
        num_channels: C.
    """

    node: fx.Node
    keys: tuple[str, str]
    num_channels: int


def replace_batch_norm(graph_module: fx.GraphModule, site: BatchNormSite) -> None:
    """Turn a batch norm into an affine map, in place. The node itself stays: sites go by its name."""
    values = dict(zip(("scale", "shift"), site.affine(), strict=True))
    source, keys = site.source, site.keys
    with graph_module.graph.inserting_before(site.node):
        arguments = []
        for leaf, value in values.items():
            key = f"{_PREFIX}.{site.name}.{leaf}"
            set_tensor(graph_module, key, value.to(site.mean.dtype))
            arguments.append(graph_module.graph.get_attr(key))
    site.node.target = affine_map
    site.node.args = (source, *arguments)
    graph_module.graph.eliminate_dead_code()
    for key in keys:
        delete_tensor(graph_module, key)


def affine_maps(graph_module: fx.GraphModule) -> list[AffineMap]:
    """The affine maps in data-flow order."""
    maps = []
    for node in graph_module.graph.nodes:
        if node.target is affine_map:
            scale, shift = (str(argument.target) for argument in node.args[1:])
            maps.append(AffineMap(node, (scale, shift), len(get_tensor(graph_module, scale))))
    return maps


def has_affine_maps(keys: Iterable[str]) -> bool:
    """True if tensors of these names are those of a network with affine maps."""
    return any(key.startswith(f"{_PREFIX}.") for key in keys)
