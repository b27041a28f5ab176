"""Operations whose weight does not have its output channels first, rewritten so that it has.

Everything that is done to a weight (folding, grids, packing) then knows one layout, ``[O, ...]``. The operation itself
brings its weight back to the layout that PyTorch's kernel wants.
"""

from __future__ import annotations

import math
import string
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.nn import functional as F

aten = torch.ops.aten


def conv_transpose1d(x: Tensor, rows: Tensor, *arguments: Any) -> Tensor:
    """``aten.conv_transpose1d`` with its weight as ``[O, I / groups, k]``."""
    return F.conv_transpose1d(x, _own_layout(rows, arguments), *arguments)


def conv_transpose2d(x: Tensor, rows: Tensor, *arguments: Any) -> Tensor:
    """``aten.conv_transpose2d`` with its weight as ``[O, I / groups, kH, kW]``."""
    return F.conv_transpose2d(x, _own_layout(rows, arguments), *arguments)


def conv_transpose3d(x: Tensor, rows: Tensor, *arguments: Any) -> Tensor:
    """``aten.conv_transpose3d`` with its weight as ``[O, I / groups, kD, kH, kW]``."""
    return F.conv_transpose3d(x, _own_layout(rows, arguments), *arguments)


def contract(x: Tensor, rows: Tensor, equation: str, shape: Sequence[int], order: Sequence[int]) -> Tensor:
    """``einsum(equation, x, weight)`` of a weight of `shape`, whose dimensions `rows` ``[O, I]`` has in `order`."""
    ordered = rows.reshape([shape[dim] for dim in order])
    weight = ordered.permute([list(order).index(dim) for dim in range(len(shape))])
    return torch.einsum(equation, x, weight)


class Rewritten(NamedTuple):
    """A node in the normal form: what it calls, with which tensor as its weight.

    Attributes:
        target: the function.
        source: the tensor from the network.
        rows: the weight, output channels first.
        rest: the arguments behind the weight.
        bias: what is added to the result; None: nothing.
    """

    target: Any
    source: fx.Node
    rows: Tensor
    rest: tuple[Any, ...]
    bias: Any = None


def rows_first(node: fx.Node, weights: dict[fx.Node, Tensor]) -> tuple[fx.Node, Rewritten] | None:
    """The constant that a node has as its weight, and the node in the normal form; None where it needs none.

    Args:
        node: any node.
        weights: the graph's constants.
    """
    if node.target in _TRANSPOSED:
        weight = node.args[1]
        if not isinstance(weight, fx.Node) or weight not in weights:
            return None
        arguments = (*node.args[2:], *_DEFAULTS[len(node.args) - 2 :])
        source = node.args[0]
        assert isinstance(source, fx.Node)
        groups = arguments[4]
        assert isinstance(groups, int)
        value = weights[weight]
        rows = value.view(groups, value.shape[0] // groups, *value.shape[1:]).transpose(1, 2)
        return weight, Rewritten(_TRANSPOSED[node.target], source, rows.flatten(0, 1).contiguous(), arguments)
    product = _as_product(node)
    if product is None:
        return None
    equation, operands, bias = product
    constants = [operand for operand in operands if operand in weights]
    if len(constants) != 1:
        return None
    weight = constants[0]
    (source,) = (operand for operand in operands if operand is not weight)
    letters, own, result = _letters(equation, operands.index(weight))
    contracted = [dim for dim, letter in enumerate(own) if letter not in result]
    if any(own.count(letter) > 1 for letter in own) or any(own[dim] not in letters for dim in contracted):
        return None  # a diagonal, or a sum over the weight alone
    outer = [dim for dim in range(len(own)) if dim not in contracted]
    value = weights[weight]
    order = (*outer, *contracted)
    num_rows = math.prod(value.shape[dim] for dim in outer)
    rows = value.permute(order).reshape(num_rows, -1).contiguous()
    is_linear = len(outer) == 1 and [own[dim] for dim in contracted] == [letters[-1]]
    if is_linear and result == letters[:-1] + own[outer[0]]:
        return weight, Rewritten(aten.linear.default, source, rows, (), bias)
    rest = (f"{letters},{own}->{result}", tuple(value.shape), order)
    return weight, Rewritten(contract, source, rows, rest, bias)


_TRANSPOSED = {
    aten.conv_transpose1d.default: conv_transpose1d,
    aten.conv_transpose2d.input: conv_transpose2d,
    aten.conv_transpose3d.input: conv_transpose3d,
}
_DEFAULTS: tuple[Any, ...] = (None, 1, 0, 0, 1, 1)
"""Bias, stride, padding, output padding, groups and dilation where a node does not say them."""


def _own_layout(rows: Tensor, arguments: Sequence[Any]) -> Tensor:
    groups = arguments[4]
    return rows.view(groups, -1, *rows.shape[1:]).transpose(1, 2).flatten(0, 1)


def _letters(equation: str, place: int) -> tuple[str, str, str]:
    """The letters of the other operand, of the one at `place`, and of the result."""
    operands, _, result = equation.partition("->")
    parts = operands.split(",")
    return parts[1 - place], parts[place], result


def _as_product(node: fx.Node) -> tuple[str, list[fx.Node], Any] | None:
    """A product of two tensors as an equation, its operands, and what is added; None for any other node."""
    bias: Any = None
    if node.op != "call_function" or node.kwargs:
        return None
    if node.target is aten.einsum.default:
        equation, operands = str(node.args[0]).replace(" ", ""), list(node.args[1])  # type: ignore[arg-type]
        if len(operands) != 2 or "->" not in equation or "." in equation:
            return None
        return equation, operands, None
    if node.target is aten.tensordot.default:
        a, b, dims_a, dims_b = node.args
        return _tensordot(a, b, dims_a, dims_b)
    if node.target in (aten.addmm.default, aten.baddbmm.default):
        bias, a, b = node.args[:3]
    elif node.target in (aten.matmul.default, aten.mm.default, aten.bmm.default, aten.mv.default):
        a, b = node.args
    elif node.target is aten.linear.default and _rank(node.args[1]) == 1:
        a, b = node.args[:2]
        bias = node.args[2] if len(node.args) > 2 else None
    else:
        return None
    multiplied = _matmul(_rank(a), _rank(b))
    return None if multiplied is None else (multiplied, [a, b], bias)  # type: ignore[list-item]


def _rank(value: Any) -> int:
    tensor = value.meta.get("val") if isinstance(value, fx.Node) else None
    return tensor.dim() if isinstance(tensor, Tensor) else 0


def _matmul(rank_a: int, rank_b: int) -> str | None:
    """The equation of ``matmul``, whose batch dimensions are aligned at the right."""
    if not rank_a or not rank_b or max(rank_a, rank_b) > 20:
        return None
    batch = string.ascii_lowercase[: max(rank_a, rank_b, 2) - 2]
    a = "K" if rank_a == 1 else batch[len(batch) - (rank_a - 2) :] + "MK"
    b = "K" if rank_b == 1 else batch[len(batch) - (rank_b - 2) :] + "KN"
    result = batch + ("M" if rank_a > 1 else "") + ("N" if rank_b > 1 else "")
    return f"{a},{b}->{result}"


def _tensordot(a: Any, b: Any, dims_a: Any, dims_b: Any) -> tuple[str, list[fx.Node], Any] | None:
    rank_a, rank_b = _rank(a), _rank(b)
    if not rank_a or not rank_b:
        return None
    first = list(string.ascii_lowercase[:rank_a])
    second = list(string.ascii_uppercase[:rank_b])
    for dim_a, dim_b in zip(dims_a, dims_b, strict=True):
        second[dim_b % rank_b] = first[dim_a % rank_a]
    summed = {second[dim % rank_b] for dim in dims_b}
    result = [letter for letter in (*first, *second) if letter not in summed]
    return f"{''.join(first)},{''.join(second)}->{''.join(result)}", [a, b], None
