"""The slopes of leaky rectifiers (PReLU) in a captured graph: stored tensors that multiply values below zero.

A rectifier is ``x`` above zero and ``slope * x`` below, with one slope or one per channel. It stands in the graph as
``aten.prelu``, or as a network writes it itself: a choice between the two (`torch.where`, a maximum), or a product
with the negative part of x alone (a clip at 0, ``-relu(-x)``, ``x - |x|``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from genie_cli.models.graph.integer_operations import clip_bounds
from genie_cli.models.graph.tensors import get_tensor, key_owner, stored_tensors

aten = torch.ops.aten
_SLOPE = 1
"""Place of the slope in ``aten.prelu(x, slope)``."""
_COMPARISONS: tuple[Any, ...] = (aten.gt.Scalar, aten.ge.Scalar, aten.lt.Scalar, aten.le.Scalar)
_MAXIMA: tuple[Any, ...] = (aten.maximum.default, aten.max.other)
_SCALINGS: tuple[Any, ...] = (aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.neg.default)


@dataclass(frozen=True)
class Slope:
    """A tensor that leaky rectifiers alone read: one of them, or several that share it.

    Attributes:
        name: path of its module, or its key where it is no module's weight.
        key: of the tensor ``[C]`` or ``[1]``, or of a shape that broadcasts over the rectifier's input.
    """

    name: str
    key: str


def slopes(graph_module: fx.GraphModule) -> list[Slope]:
    """The slopes, in the order of the graph."""
    found = []
    for key, constants in stored_tensors(graph_module).items():
        pairs = [(reader, constant) for constant in constants for reader in constant.users]
        is_float = get_tensor(graph_module, key).is_floating_point()
        if is_float and pairs and all(_is_slope_of(*pair) for pair in pairs):
            found.append(Slope(key_owner(key), key))
    return found


def _is_slope_of(reader: fx.Node, constant: fx.Node) -> bool:
    """True if a node reads a stored tensor as the slope of a rectifier."""
    if reader.target is aten.prelu.default:
        return reader.args[_SLOPE] is constant and reader.args[0] is not constant
    if reader.target is not aten.mul.Tensor or reader.kwargs:
        return False
    factors = [factor for factor in reader.args if factor is not constant]
    x = factors[0] if len(factors) == 1 else None
    if not isinstance(x, fx.Node):
        return False
    return _is_negative_part(x) or (bool(reader.users) and all(_chooses(user, x, reader) for user in reader.users))


def _chooses(node: fx.Node, x: fx.Node, scaled: fx.Node) -> bool:
    """True if a node takes `x` where it is above zero and `scaled` below: by a comparison, or as a maximum."""
    if node.target in _MAXIMA:
        return set(node.args) == {x, scaled}
    if node.target is not aten.where.self:
        return False
    condition, taken, other = node.args
    if not isinstance(condition, fx.Node) or condition.target not in _COMPARISONS or condition.args != (x, 0):
        return False
    above = condition.target in (aten.gt.Scalar, aten.ge.Scalar)
    return (taken, other) == ((x, scaled) if above else (scaled, x))


def _is_negative_part(node: fx.Node) -> bool:
    """True if a node's values are the part of a tensor below zero, whatever its sign and its factor."""
    while node.target in _SCALINGS and len(node.all_input_nodes) == 1 and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    if node.target is aten.relu.default:
        source = node.args[0]
        return isinstance(source, fx.Node) and source.target is aten.neg.default
    if node.target is aten.sub.Tensor and not node.kwargs:
        x, magnitude = node.args
        return isinstance(magnitude, fx.Node) and magnitude.target is aten.abs.default and magnitude.args[0] is x
    bounds = clip_bounds(node)
    return bounds is not None and bounds[0] is None and bounds[1] == 0
