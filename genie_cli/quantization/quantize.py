"""GENIE-M over a whole network: unit by unit, front to back, activations carried on."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from genie_cli.artifacts.work_folder import NO_WORK, Work
from genie_cli.config import QuantizeConfig
from genie_cli.errors import NumbersError
from genie_cli.models.graph.folding import FoldedGraph, fold_batch_norms
from genie_cli.models.graph.placement import move
from genie_cli.models.teacher import Teacher
from genie_cli.quantization.activation_store import ActivationPool, ActivationStore
from genie_cli.quantization.calibration import calibrate_sites
from genie_cli.quantization.memory_budget import activation_budget
from genie_cli.quantization.pieces import cut_out
from genie_cli.quantization.unit_learning import LearnedUnit, UnitData, forward, learn, num_stages, round_to_nearest
from genie_cli.quantization.units import Unit, reconstruction_units
from genie_cli.runtime.determinism import make_generator
from genie_cli.runtime.distribution import SOLO, Workers
from genie_cli.runtime.progress import Advanced, Reporter, StageFinished, StageStarted, silent
from genie_cli.runtime.settings import release_freed_memory, settled_objects
from genie_cli.runtime.shortage import Pieces
from genie_cli.student.build import insert_quantizers
from genie_cli.student.modules import ActivationQuantizer, IntegerWeight
from genie_cli.student.protocol import BitPlan, assign_bits, find_protocol

STAGE = "quantize"
_ROWS = 16
"""Images copied or compared at once."""
DEFAULT_HOLDOUT = 0.125
"""Share of the images that early stopping watches where the configuration names none."""


class ImageRows(Protocol):
    """Calibration images, a slice at a time: a tensor, or something that makes them when asked."""

    def __len__(self) -> int:
        """Number of images."""
        ...

    def __getitem__(self, rows: slice, /) -> Tensor:
        """Images ``[k, C, H, W]``, float32, normalised for the teacher."""
        ...


@dataclass(frozen=True)
class UnitReport:
    """The result of one unit.

    Attributes:
        name: the unit's name.
        layers: its weight layers.
        num_steps: steps taken; 0 where nothing was learned.
        relative_error: squared error at its output against the teacher's, over the teacher's own
            squared norm, with the finished integers, over all images that were trained on.
        held_out_error: the same over the held-out images; None where there are none.
    """

    name: str
    layers: tuple[str, ...]
    num_steps: int
    relative_error: float
    held_out_error: float | None


@dataclass(frozen=True)
class QuantizedNetwork:
    """A learned network, not yet written.

    Attributes:
        folded: the teacher with its batch norms folded.
        plan: who got which bits.
        weights: layer name -> integer weight.
        activations: site name -> quantizer.
        units: the result of each unit, front to back.
        memory: the most bytes of calibration activations at once, by place.
    """

    folded: FoldedGraph
    plan: BitPlan
    weights: dict[str, IntegerWeight]
    activations: dict[str, ActivationQuantizer]
    units: tuple[UnitReport, ...]
    memory: dict[str, int]


def quantize_network(
    teacher: Teacher,
    images: ImageRows,
    config: QuantizeConfig,
    device: torch.device,
    dtype: torch.dtype,
    report: Reporter = silent,
    workers: Workers = SOLO,
    work: Work = NO_WORK,
) -> QuantizedNetwork:
    """Quantize `teacher` on calibration images.

    Args:
        teacher: the pre-trained network.
        images: calibration images ``[n, C, H, W]``, normalised for the teacher; with several processes,
            this one's share of them.
        config: bits, protocol, recipe, budget, seed.
        device: where to compute.
        dtype: arithmetic of the convolutions while a unit learns, and of the activations that are kept for it.
        report: receives progress.
        workers: processes that learn together; all end with the same network.
        work: where finished units and the state of the one at work are kept, and found again.

    Raises:
        UsageError: unknown protocol, an override that matches no layer, or a memory limit below what one batch needs.
        NumbersError: a value that is not finite, in float32 too.
    """
    folded = fold_batch_norms(teacher.graph)
    protocol = find_protocol(config.protocol)
    plan = assign_bits(folded.graph, protocol, config.weight_bits, config.activation_bits, config.bits_override or {})
    units = reconstruction_units(folded.graph, whole=config.unit == "network")
    with workers.agreeing():
        budget = activation_budget(folded.graph, units, config, device)
    move(folded.graph, device)
    stages = [num_stages(len(unit.layers), config) for unit in units]
    steps = config.num_steps if config.reconstruct else 1
    report(StageStarted(STAGE, steps * sum(stages)))
    done = 0
    weights: dict[str, IntegerWeight] = {}
    activations: dict[str, ActivationQuantizer] = {}
    reports = []
    with settled_objects(), ActivationPool(device, budget.device, budget.host, report=report) as pool:
        held_out = _held_out_rows(len(images), config)
        run = _Run(folded, plan, config, device, dtype, held_out, pool, Pieces(report), workers, work, report)
        full = quantized = _store_images(images, pool)
        for position, unit in enumerate(units):
            where = f"unit {position + 1}/{len(units)} {unit.name}"

            def on_step(step: int, loss: float, before: int = done, where: str = where) -> None:
                report(Advanced(STAGE, before + step, where, {"loss": loss}))

            learned, outcome, full, quantized = _quantize_unit(run, unit, f"unit{position}", full, quantized, on_step)
            done += steps * stages[position]
            report(Advanced(STAGE, done, where, {"error": outcome.relative_error}))
            reports.append(outcome)
            release_freed_memory()
            weights.update((name, weight.cpu()) for name, weight in learned.weights.items())
            activations.update((name, activation.cpu()) for name, activation in learned.activations.items())
        memory = pool.peak
    move(folded.graph, torch.device("cpu"))
    report(StageFinished(STAGE))
    return QuantizedNetwork(folded, plan, weights, activations, tuple(reports), memory)


@dataclass(frozen=True)
class _Run:
    """The values that all units of a network share; see `quantize_network`, `UnitData`."""

    folded: FoldedGraph
    plan: BitPlan
    config: QuantizeConfig
    device: torch.device
    dtype: torch.dtype
    held_out: Tensor
    pool: ActivationPool
    in_pieces: Pieces
    workers: Workers
    work: Work
    report: Reporter


def _quantize_unit(
    run: _Run,
    unit: Unit,
    place: str,
    full: ActivationStore,
    quantized: ActivationStore,
    on_step: Callable[[int, float], None],
) -> tuple[LearnedUnit, UnitReport, ActivationStore, ActivationStore]:
    """One unit, from the teacher's input and the quantized one, which are released, to its outputs of both kinds."""
    piece = cut_out(run.folded.graph, unit, run.plan, run.device)
    targets = forward(piece.teacher, full, run.pool, piece.rows, run.in_pieces, run.dtype)
    initial = calibrate_sites(
        run.folded.graph, piece.nodes, piece.source, piece.plan.activations, quantized, run.config, piece.rows,
        run.workers, run.in_pieces,
    )  # fmt: skip
    if run.config.reconstruct:
        data = UnitData(full, quantized, targets, run.held_out, run.pool, run.in_pieces)
        learned = learn(
            piece, run.folded, initial, data, run.config, run.device, run.dtype, on_step, run.workers, run.work, place,
            run.report,
        )  # fmt: skip
    else:
        learned = LearnedUnit(round_to_nearest(piece, run.config), initial, 0)
    if full is not quantized:
        full.release()  # before the next set is made: two sets and the new one are the most
    student = insert_quantizers(piece.teacher, piece.plan, learned.weights, learned.activations).to(run.device)
    outputs = forward(student, quantized, run.pool, piece.rows, run.in_pieces, run.dtype)
    quantized.release()
    error, held_out_error = _relative_errors(outputs, targets, run.held_out, run.workers)
    if not all(math.isfinite(share) for share in (error, held_out_error or 0.0)):
        raise NumbersError(
            f"Unit '{unit.name}': its outputs hold NaN or infinity on these images. Check the network's "
            "weights, and that the images are normalised for it."
        )
    return learned, UnitReport(unit.name, unit.layers, learned.num_steps, error, held_out_error), targets, outputs


def held_out_share(config: QuantizeConfig) -> float:
    """Share of the images that are never trained on."""
    return DEFAULT_HOLDOUT if config.patience is not None and not config.holdout else config.holdout


def _held_out_rows(num_images: int, config: QuantizeConfig) -> Tensor:
    """Rows drawn by the seed; at least one image is trained on."""
    count = min(round(num_images * held_out_share(config)), num_images - 1)
    generator = make_generator(torch.device("cpu"), config.seed, "held out")
    return torch.randperm(num_images, generator=generator)[:count].sort().values


def _store_images(images: ImageRows, pool: ActivationPool) -> ActivationStore:
    store = pool.allocate((len(images), *images[0:1].shape[1:]))
    for first in range(0, len(images), _ROWS):
        store.write(first, images[first : first + _ROWS])
    return store


def _squared_norms(rows: Tensor) -> Tensor:
    """Of each row ``[n, ...]``, summed in float64."""
    return rows.square().sum(tuple(range(1, rows.dim())), dtype=torch.float64)


def _relative_errors(
    values: ActivationStore, targets: ActivationStore, held_out: Tensor, workers: Workers
) -> tuple[float, float | None]:
    """Squared error over the targets' squared norm: trained rows, held-out rows."""
    is_held_out = torch.zeros(len(values), dtype=torch.bool)
    is_held_out[held_out] = True
    sums = torch.zeros(2, 2, dtype=torch.float64)  # [trained, held out] x [error, norm]
    for first in range(0, len(values), _ROWS):
        last = min(first + _ROWS, len(values))
        value, target = (store.read(first, last).float() for store in (values, targets))
        error, norm = (_squared_norms(rows).cpu() for rows in (value.sub_(target), target))
        for row, chosen in enumerate((~is_held_out[first:last], is_held_out[first:last])):
            sums[row] += torch.stack([error[chosen].sum(), norm[chosen].sum()])
    errors = [error / norm if norm else 0.0 for error, norm in workers.sum_(sums).tolist()]
    return errors[0], errors[1] if len(held_out) else None
