"""A layer as a matrix product: the values that its weight is multiplied with, position by position."""

from __future__ import annotations

import math

import torch
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


def spread_patches(layer: WeightLayer, x: Tensor, weight_shape: tuple[int, ...], per_image: int, first: int) -> Tensor:
    """At most `per_image` patches of each image, evenly spread over it: ``[N, G, K]``.

    The places of the next image are shifted, so that no border is always seen, or never.

    Args:
        layer: of a kind that `is_matrix_product`.
        x: its input, ``[B, ...]``.
        weight_shape: of its weight, ``[O, K]`` or ``[O, C / G, *kernel]``.
        per_image: the number of patches, at least 1.
        first: the number of the first of these images among all.
    """
    height, width = _positions(layer, x, weight_shape)
    down = min(height, max(math.ceil(math.sqrt(height * width / per_image)), math.ceil(height / per_image)))
    across = math.ceil(width / max(1, per_image // math.ceil(height / down)))
    if down == across == 1:
        return patches(layer, x, weight_shape).flatten(0, 1)
    each = []
    for number, image in enumerate(x.split(1), first):
        shift = (number % down, number // down % across)
        each.append(patches(layer, image, weight_shape, (down, across), shift).flatten(0, 1))
    return torch.cat(each)


def patches(
    layer: WeightLayer,
    x: Tensor,
    weight_shape: tuple[int, ...],
    every: tuple[int, int] = (1, 1),
    shift: tuple[int, int] = (0, 0),
) -> Tensor:
    """The values that output positions of a layer read: ``[B, P, G, K]`` for P positions of an image and G groups.

    The output of group g at a position is ``weight.view(G, O / G, K)[g] @ patch[g]``, plus the bias.

    Args:
        layer: of a kind that `is_matrix_product`.
        x: its input, ``[B, ...]``.
        weight_shape: of its weight.
        every: distances of the positions, down and across; a linear layer's are all across.
        shift: the first position.
    """
    if not _KINDS[layer.kind]:
        return x.reshape(len(x), -1, 1, x.shape[-1])[:, shift[1] :: every[1]]
    padded, kernel, dilation, stride = _padded(layer, x, weight_shape)
    begins = [place * step for place, step in zip(shift, stride, strict=True)]
    steps = tuple(distance * step for distance, step in zip(every, stride, strict=True))
    unfolded = F.unfold(padded[:, :, begins[0] :, begins[1] :], kernel, dilation, 0, steps)  # [B, C * kernel, P]
    return unfolded.view(len(x), layer.groups, -1, unfolded.shape[2]).permute(0, 3, 1, 2)


def _positions(layer: WeightLayer, x: Tensor, weight_shape: tuple[int, ...]) -> tuple[int, int]:
    """Positions of an image, down and across."""
    if not _KINDS[layer.kind]:
        return 1, math.prod(x.shape[1:-1])
    padded, kernel, dilation, stride = _padded(layer, x[:1], weight_shape)
    height, width = (
        (side - step * (own - 1) - 1) // over + 1
        for side, own, step, over in zip(padded.shape[2:], kernel, dilation, stride, strict=True)
    )
    return height, width


def _padded(
    layer: WeightLayer, x: Tensor, weight_shape: tuple[int, ...]
) -> tuple[Tensor, tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """A convolution over two dimensions without padding: its input, its kernel, its dilation and its strides."""
    num_dims = _KINDS[layer.kind]
    kernel, args = weight_shape[2:], layer.node.args
    dilation = _sides(args[_DILATION] if len(args) > _DILATION else 1, num_dims)
    stride = _sides(layer.stride or 1, num_dims)
    before = _padding_before(layer, kernel, dilation)
    if num_dims == 1:
        x = x.unsqueeze(2)
        kernel, dilation, stride = (1, *kernel), (1, *dilation), (1, *stride)
        before = [(0, 0), *before]
    (top, bottom), (left, right) = before
    return F.pad(x, (left, right, top, bottom)), kernel, dilation, stride


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
