"""A layer as a matrix product: the values that its weight is multiplied with, position by position."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from genie_cli.models.graph.layers import WeightLayer

_KINDS = {"conv1d": 1, "conv2d": 2, "linear": 0}
"""Kind of layer -> dimensions that its kernel moves over."""
_DILATION = 5
"""Place of a convolution's dilation among its arguments."""


def is_matrix_product(layer: WeightLayer) -> bool:
    """True for a layer that `patches` can write as one."""
    return layer.kind in _KINDS


def patches(layer: WeightLayer, x: Tensor, weight_shape: tuple[int, ...]) -> Tensor:
    """The values that each output position of a layer reads: ``[B, P, G, K]`` for P positions of an image and G groups.

    The output of group g at a position is ``weight.view(G, O / G, K)[g] @ patch[g]``, plus the bias.

    Args:
        layer: of a kind that `is_matrix_product`.
        x: its input.
        weight_shape: of its weight, ``[O, K]`` or ``[O, C / G, *kernel]``.
    """
    num_dims = _KINDS[layer.kind]
    if num_dims == 0:
        return x.reshape(len(x), -1, 1, x.shape[-1])
    kernel, args = weight_shape[2:], layer.node.args
    dilation = _sides(args[_DILATION] if len(args) > _DILATION else 1, num_dims)
    stride = _sides(layer.stride or 1, num_dims)
    before = _padding_before(layer, kernel, dilation)
    if num_dims == 1:
        x = x.unsqueeze(2)
        kernel, dilation, stride = (1, *kernel), (1, *dilation), (1, *stride)
        before = [(0, 0), *before]
    (top, bottom), (left, right) = before
    padded = F.pad(x, (left, right, top, bottom))
    unfolded = F.unfold(padded, kernel, dilation, 0, stride)  # [B, C * kernel, P]
    return unfolded.view(len(x), layer.groups, -1, unfolded.shape[2]).permute(0, 3, 1, 2)


def _padding_before(layer: WeightLayer, kernel: tuple[int, ...], dilation: tuple[int, ...]) -> list[tuple[int, int]]:
    """Zeros in front of and behind each dimension."""
    place = layer.operation.padding
    assert place is not None
    padding = layer.node.args[place] if len(layer.node.args) > place else 0
    if padding == "valid":
        return [(0, 0)] * len(kernel)
    if padding == "same":
        reach = [step * (side - 1) for side, step in zip(kernel, dilation, strict=True)]
        return [(total // 2, total - total // 2) for total in reach]
    return [(side, side) for side in _sides(padding, len(kernel))]


def _sides(value: object, num_dims: int) -> tuple[int, ...]:
    """One number per dimension, where one alone stands for all."""
    given = tuple(value) if isinstance(value, list | tuple) else (value,)
    assert all(isinstance(side, int) for side in given)
    return given * num_dims if len(given) == 1 else given
