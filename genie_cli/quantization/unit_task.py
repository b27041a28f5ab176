"""The task of learning one unit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, fx, nn

from genie_cli.quantization.activation_store import ActivationStore
from genie_cli.quantization.learned_weight import LearnedWeight
from genie_cli.quantization.lsq import LearnedActivationQuantizer


class SoftWeightSlot(nn.Module):
    """The place where the unit's graph reads a weight: filled once per step, read by the layer."""

    def __init__(self) -> None:
        """Start empty."""
        super().__init__()
        self.value: Tensor | None = None

    def forward(self) -> Tensor:
        """The weight of this step."""
        assert self.value is not None
        return self.value


@dataclass(frozen=True)
class UnitTask:
    """The task of learning one unit: its graph, its learned tensors and its data.

    Attributes:
        name: the unit's name.
        student: graph of the unit; its weights come from `slots`.
        slots: layer name -> where the graph reads its weight.
        weights: layer name -> the weight that learns.
        activations: site name -> the quantizer that learns.
        full_inputs: the teacher's input of the unit, ``[n, ...]``.
        quantized_inputs: the same from the already quantized units before, ``[n, ...]``.
        targets: the teacher's output of the unit, ``[n, C, ...]``.
        held_out: rows that are never trained on; what early stopping watches.
    """

    name: str
    student: fx.GraphModule
    slots: Mapping[str, SoftWeightSlot]
    weights: Mapping[str, LearnedWeight]
    activations: Mapping[str, LearnedActivationQuantizer]
    full_inputs: ActivationStore
    quantized_inputs: ActivationStore
    targets: ActivationStore
    held_out: Tensor
