"""Budgets: the bytes that a quantized folder may take, and the bit operations that a network may cost."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from genie_cli.config import QuantizeConfig
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


def budget_of(config: QuantizeConfig, folded: fx.GraphModule) -> Budget:
    """The budget that a recipe gives; a ratio is of the folded network's tensors in float32."""
    num_bytes, option = config.target_size, "--target-size"
    if config.target_ratio is not None:
        num_bytes, option = int(config.target_ratio * float_bytes(folded)), "--target-ratio"
    return Budget(num_bytes, config.target_bitops, option)


def float_bytes(folded: fx.GraphModule) -> int:
    """Bytes of a folded network's floating-point tensors in float32."""
    floats = [value for value in named_tensors(folded).values() if value.is_floating_point()]
    return sum(value.numel() for value in floats) * torch.float32.itemsize
