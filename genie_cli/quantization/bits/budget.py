"""Budgets: the bytes that a quantized folder may take, and the bit operations that a network may cost."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from genie_cli.config import QuantizeConfig
from genie_cli.config.quantize import UNIFORM
from genie_cli.models.graph.tensors import named_tensors


@dataclass(frozen=True)
class Budget:
    """The most that a network may take.

    Attributes:
        num_bytes: of its folder on the disk; None: any.
        num_bitops: bit operations per image; None: any.
        size_option: the option that says `num_bytes`, for messages.
    """

    num_bytes: int | None
    num_bitops: int | None
    size_option: str = "--target-size"


def budget_of(config: QuantizeConfig, folded: fx.GraphModule, uniform_bytes: int) -> Budget:
    """The budget that a recipe gives.

    Args:
        config: the recipe.
        folded: the folded network; a ratio is of its tensors in float32.
        uniform_bytes: size of the network with the recipe's bits everywhere.
    """
    if config.target_ratio is not None:
        return Budget(int(config.target_ratio * float_bytes(folded)), config.target_bitops, "--target-ratio")
    num_bytes = uniform_bytes if config.target_size == UNIFORM else config.target_size
    assert not isinstance(num_bytes, str)
    return Budget(num_bytes, config.target_bitops)


def float_bytes(folded: fx.GraphModule) -> int:
    """Bytes of a folded network's floating-point tensors in float32."""
    floats = [value for value in named_tensors(folded).values() if value.is_floating_point()]
    return sum(value.numel() for value in floats) * torch.float32.itemsize
