"""Weights that make up for quantized inputs, and integers that make up for one another.

A weight is moved to where its products with the quantized inputs are nearest to those of the network in float, by ridge
regression (ERQ, Zhong et al., ICML 2024). It is rounded input by input, and what an input is rounded by is made up for
by the inputs that are not rounded yet (GPTQ, Frantar et al., ICLR 2023, whose order of columns by their size is taken
too).
"""

from __future__ import annotations

import torch
from torch import Tensor

from genie_cli.student.formats import NumberFormat
from genie_cli.student.grid import quantize_weight

RIDGE = 0.01
"""Least weight of staying where one is, as a share of the inputs' mean square."""
_BLOCK = 128
"""Columns whose errors go to the columns behind them together."""
_TINY = 1e-12


def with_ridge(second: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """``second + ridge * I`` of ``[G, K, K]``, and the ridge, ``[G, 1, 1]``.

    Of fewer positions than inputs a weight can be made that is right for them alone, such as a classifier's for the
    images that it has seen. So the ridge is K / count of the inputs' mean square where that is more than `RIDGE`.
    """
    diagonal = second.diagonal(dim1=1, dim2=2)
    ridge = (max(RIDGE, second.shape[1] / count) * diagonal.mean(1) + _TINY).view(-1, 1, 1)
    return second + ridge * torch.eye(second.shape[1], dtype=second.dtype, device=second.device), ridge


def corrected_weight(weight: Tensor, second: Tensor, cross: Tensor, count: int) -> Tensor:
    """The weight ``W'`` of least ``E |W f - W' q|^2 + ridge |W' - W|^2``: ``W (E[f q^T] + r I) (E[q q^T] + r I)^-1``.

    Args:
        weight: W, ``[G, O / G, K]``, float64.
        second: ``E[q q^T]``, ``[G, K, K]``, of what the quantized layer reads.
        cross: ``E[q f^T]``, the same shape, with what the layer in float reads.
        count: positions that both are means of.
    """
    damped, ridge = with_ridge(second, count)
    wanted = weight @ cross.transpose(1, 2) + ridge * weight
    solved: Tensor = torch.linalg.solve(damped, wanted.transpose(1, 2)).transpose(1, 2)
    return solved


def compensated_codes(
    weight: Tensor, second: Tensor, count: int, scale: Tensor, zero_point: Tensor, format: NumberFormat
) -> Tensor:
    """Integers ``[G, O / G, K]`` of a weight, rounded input by input, each error passed on to the inputs that are left.

    Args:
        weight: ``[G, O / G, K]``, float64.
        second: ``E[q q^T]`` of what it is multiplied with, ``[G, K, K]``.
        count: positions that it is a mean of.
        scale: ``[G, O / G, 1]``.
        zero_point: the same shape.
        format: of the integers.
    """
    damped, _ = with_ridge(second, count)
    order = damped.diagonal(dim1=1, dim2=2).sort(dim=1, descending=True, stable=True).indices
    damped = torch.stack([own[place][:, place] for own, place in zip(damped, order, strict=True)])
    left = weight.gather(2, order.unsqueeze(1).expand_as(weight))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    factor = torch.linalg.cholesky(inverse, upper=True)
    codes = torch.empty_like(left)
    num_groups, rows, num_inputs = left.shape
    channels = num_groups * rows
    steps, zeros = scale.double().reshape(channels, 1), zero_point.double().reshape(channels, 1)
    for first in range(0, num_inputs, _BLOCK):
        last = min(first + _BLOCK, num_inputs)
        block, errors = left[:, :, first:last].clone(), torch.empty_like(left[:, :, first:last])
        for i in range(last - first):
            column = block[:, :, i]
            rounded = quantize_weight(column.reshape(channels, 1), steps, zeros, format)
            codes[:, :, first + i] = rounded.view(num_groups, rows)
            error = column - ((rounded - zeros) * steps).view(num_groups, rows)
            errors[:, :, i] = error / factor[:, first + i, first + i].unsqueeze(1)
            block[:, :, i:] -= errors[:, :, i : i + 1] * factor[:, first + i : first + i + 1, first + i : last]
        left[:, :, last:] -= errors @ factor[:, first:last, last:]
    return torch.empty_like(codes).scatter_(2, order.unsqueeze(1).expand_as(codes), codes)
