"""The result of a quantization, before it is written."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import astuple, dataclass

from torch import fx

from genie_cli.artifacts.details import Histograms
from genie_cli.quantization.plan import QuantizationPlan
from genie_cli.quantization.reconstruction.loss_log import LossRow
from genie_cli.student.build import insert_quantizers
from genie_cli.student.modules import ActivationQuantizer, IntegerWeight

STAGE = "quantize"
"""The name of the work in progress events."""


@dataclass(frozen=True)
class UnitReport:
    """The outcome of one unit; where the network is fine-tuned behind its units, the outcome before that.

    Attributes:
        name: the unit's name.
        layers: its weight layers.
        num_steps: steps taken; 0 where nothing was learned.
        relative_error: squared error at its output against the teacher's, over the teacher's own
            squared norm, with the finished integers, over all images that were trained on; summed over its outputs,
            each relative to its own norm.
        held_out_error: the same over the held-out images; None where there are none.
        num_outputs: tensors that it was compared at.
    """

    name: str
    layers: tuple[str, ...]
    num_steps: int
    relative_error: float
    held_out_error: float | None
    num_outputs: int


@dataclass(frozen=True)
class UnitRecord:
    """The course of one unit, for a person to look at.

    Attributes:
        log: its loss, step by step.
        output: values of its first output, of the teacher and of the quantized network, on some images; None: it is the
            fine-tuning of the whole network.
    """

    log: tuple[LossRow, ...]
    output: Histograms | None


@dataclass(frozen=True)
class FinetuningReport:
    """The outcome of the fine-tuning behind all units.

    Attributes:
        num_steps: steps taken.
        loss_before: the loss on the calibration images mixed in pairs, in front of it: the KL divergence of the class
            probabilities in nats, or without classes the squared error of the outputs.
        loss_after: the same behind it.
        kept: the network is the fine-tuned one; else it made the loss larger, and was left out.
    """

    num_steps: int
    loss_before: float
    loss_after: float
    kept: bool


@dataclass(frozen=True)
class QuantizedNetwork:
    """A learned network, not yet written.

    Attributes:
        plan: what was done.
        weights: layer name -> integer weight.
        activations: site name -> quantizer.
        units: how each unit came out, front to back; empty without images.
        memory: the most bytes of calibration activations at once, by place.
        output_errors: output of the network -> squared error against the unfolded teacher's on the calibration images,
            over the teacher's own squared norm; empty without images.
        records: unit's name -> its course; empty without images.
        finetuning: how the fine-tuning at the end came out; None: there was none.
    """

    plan: QuantizationPlan
    weights: dict[str, IntegerWeight]
    activations: dict[str, ActivationQuantizer]
    units: tuple[UnitReport, ...]
    memory: dict[str, int]
    output_errors: dict[str, float]
    records: dict[str, UnitRecord]
    finetuning: FinetuningReport | None = None

    @property
    def stored(self) -> dict[str, IntegerWeight]:
        """Name -> all that is stored as codes: the weights of layers, and slopes."""
        return {**self.weights, **self.plan.slopes}

    def student(self) -> fx.GraphModule:
        """The network that computes with these integers and step sizes."""
        return insert_quantizers(self.plan.folded.graph, self.plan.bits, self.stored, self.activations)


def loss_csv(records: Mapping[str, UnitRecord]) -> str:
    """The course of all units' losses as CSV; a network of which nothing was learned has the heading alone."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["unit", "step", "loss", "held_out_loss"])
    for name, record in records.items():
        for step, *losses in map(astuple, record.log):
            writer.writerow([name, step, *("" if loss is None else f"{loss:.6g}" for loss in losses)])
    return buffer.getvalue()
