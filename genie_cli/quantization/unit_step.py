"""One optimizer step of a unit on one batch: the part that runs on the device, and is recorded to be repeated."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from genie_cli.config import QuantizeConfig
from genie_cli.quantization.micro_batches import MicroBatches
from genie_cli.quantization.reconstruction_loss import kl_divergence, squared_error
from genie_cli.quantization.unit_parameters import UnitParameters
from genie_cli.quantization.unit_task import UnitTask
from genie_cli.runtime.determinism import Masks, RandomMasks
from genie_cli.runtime.distribution import Workers
from genie_cli.runtime.progress import Note, Reporter
from genie_cli.runtime.recording import Recording
from genie_cli.runtime.replay import ReplayedStep

RECORD_FROM = 100
"""Number of steps, with the regularizer or without, from which a CPU records them: a recording takes as long as some
60 replays save."""


class UnitStep:
    """Mixes the inputs, makes loss and gradients, and changes what the unit learns.

    On CUDA steps are replayed as a graph. A CPU replays the flat list of their operations; the first step
    with the regularizer (and the first one without it) shows which masks it draws, and the second, given these,
    is recorded. All give the same bits.

    Attributes:
        groups: the optimizer's, with their rates as tensors; see `UnitParameters.groups`.
        optimizer: of the parameters that learn; None: there are none.
        micro_batches: in how many pieces a batch is worked through.
        loss: reconstruction loss of the last step.
        num_finite: steps whose loss was finite, counted on the device: reading makes a GPU wait.
    """

    def __init__(
        self,
        task: UnitTask,
        parameters: UnitParameters,
        masks: RandomMasks,
        config: QuantizeConfig,
        device: torch.device,
        dtype: torch.dtype,
        workers: Workers,
        rows: tuple[int, int],
        report: Reporter,
    ) -> None:
        """Prepare steps.

        Args:
            task: the unit.
            parameters: what it learns.
            masks: of the mixed inputs and of the activation quantizers.
            config: loss, regularizer, rates, number of steps.
            device: where batches are.
            dtype: arithmetic of the student.
            workers: processes that share the batch.
            rows: of a batch, in this process and in all.
            report: receives what is to be said of memory and recordings.
        """
        self._task, self._parameters, self._masks, self._config = task, parameters, masks, config
        self._device, self._dtype, self._workers, self._report = device, dtype, workers, report
        self._share = rows[0] / rows[1]
        self._activations = list(task.activations.values())
        self._draw_from(masks)
        self.groups = parameters.groups()
        on_cuda = device.type == "cuda"
        adam = partial(torch.optim.Adam, fused=True, capturable=on_cuda)
        self.optimizer = adam(self.groups) if self.groups else None  # all rates may be 0
        self.micro_batches = MicroBatches(max(rows[0], 1), task.name, report)
        self.loss = torch.zeros((), device=device)
        self.num_finite = torch.zeros(1, dtype=torch.int64, device=device)
        self.beta = torch.zeros((), device=device)
        """The regularizer's exponent."""
        self._static = on_cuda
        self._inputs: tuple[Tensor, ...] = ()
        num_plain = math.ceil(config.warmup * config.num_steps) if parameters.has_softbits else config.num_steps
        counts = {False: num_plain, True: config.num_steps - num_plain}
        alone_on_cpu = device.type == "cpu" and workers.size == 1
        self._to_record = {key for key, count in counts.items() if alone_on_cpu and count >= RECORD_FROM}
        """Of steps with the regularizer (True) and without it, those that are to be recorded."""
        self._drawn: dict[bool, list[Tensor]] = {}
        self._recorded: dict[bool, Callable[..., None]] = {}
        self._start_over()

    def __call__(self, full: Tensor, quantized: Tensor, targets: Tensor, regularized: bool) -> None:
        """Take a step.

        Args:
            full: the teacher's input of the unit, ``[b, ...]``.
            quantized: the same from the quantized units before.
            targets: the teacher's output.
            regularized: whether the regularizer, with `beta`, is a part of it.
        """
        self._place(full, quantized, targets)
        self.micro_batches.run(lambda: self._take(regularized), self._start_over)

    def output(self, inputs: Tensor) -> Tensor:
        """The student's, of the weights and step sizes that it was given last."""
        with torch.autocast(self._device.type, self._dtype, enabled=self._dtype != torch.float32):
            output: Tensor = self._task.student(inputs)
        return output

    def reconstruction_loss(self, output: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The loss, and its gradient at the output."""
        return (kl_divergence if self._config.loss == "kl" else squared_error)(output, targets)

    def _start_over(self) -> None:
        alone = self._device if self._workers.size == 1 else torch.device("cpu")  # the collectives are not recorded
        self._replayed = {
            regularized: ReplayedStep(partial(self._learn_placed, regularized), alone, (self._masks.generator,))
            for regularized in (False, True)
        }

    def _place(self, *inputs: Tensor) -> None:
        if not self._static or not self._inputs:
            self._inputs = inputs
            return
        for place, value in zip(self._inputs, inputs, strict=True):
            place.copy_(value)

    def _take(self, regularized: bool) -> None:
        if regularized not in self._to_record or self.micro_batches.count > 1:
            self._replayed[regularized]()
        elif regularized not in self._drawn:
            self._watch(regularized)
        else:
            tensors = [*self._parameters.tensors(), *self._inputs]
            masks = [self._masks.draw(like) for like in self._drawn[regularized]]
            if regularized in self._recorded:
                self._recorded[regularized](*tensors, *masks)
            else:
                self._record(regularized, tensors, masks)

    def _watch(self, regularized: bool) -> None:
        """Take a step, and see which masks it draws; large ones, made anew each time, are not to be held so long."""
        watched = _Watched(self._masks)
        self._draw_from(watched)
        try:
            self._learn_placed(regularized)
        finally:
            self._draw_from(self._masks)
        if all(self._masks.has_room_for(like) for like in watched.drawn):
            self._drawn[regularized] = watched.drawn
        else:
            self._to_record.discard(regularized)

    def _record(self, regularized: bool, tensors: list[Tensor], masks: list[Tensor]) -> None:
        """Take a step with given masks, and keep its operations."""
        recording = Recording([*tensors, *masks])
        self._draw_from(_Given(masks))
        try:
            with recording:
                self._learn_placed(regularized)
        finally:
            self._draw_from(self._masks)
        try:
            self._recorded[regularized] = recording.replay()
        except Exception as error:  # whatever a network holds, its steps can be computed
            self._to_record.discard(regularized)
            self._report(Note(f"unit '{self._task.name}': its steps are not recorded, and take longer: {error}"))

    def _draw_from(self, masks: Masks) -> None:
        self._source = masks
        for activation in self._activations:
            activation.masks = masks

    def _learn_placed(self, regularized: bool) -> None:
        self._learn(regularized, *self._inputs)

    def _learn(self, regularized: bool, full: Tensor, quantized: Tensor, targets: Tensor) -> None:
        if self._config.drop_prob > 0:
            quantized = torch.lerp(full, quantized, self._source.draw(quantized))
        self.loss.zero_()
        summed: list[Tensor] = []
        for share, (inputs, wanted) in self.micro_batches.split(quantized, targets):
            loss, *gradients = self._gradients(inputs, wanted, regularized, share)
            self.loss.add_(loss, alpha=share)
            summed = [a.add_(b) for a, b in zip(summed, gradients, strict=True)] if summed else gradients
        for tensor, gradient in zip(self._parameters.learned(), summed, strict=True):
            tensor.grad = gradient
        self.micro_batches.gradients_are_made()
        if self.optimizer is not None:
            self._sum_gradients()
            self.optimizer.step()
        self._parameters.keep_steps_positive()
        self.num_finite += self.loss.isfinite()

    def _gradients(self, inputs: Tensor, targets: Tensor, regularized: bool, share: float) -> tuple[Tensor, ...]:
        """The loss of some rows, and the gradients of what learns, times the rows' share of the batch."""
        made = self._parameters.make(self._dtype, self.beta if regularized else None)
        for slot, weight in zip(self._task.slots.values(), made.weights, strict=True):
            slot.value = weight
        for activation, step_size in zip(self._activations, made.step_sizes, strict=True):
            activation.step_size = step_size
        output = self.output(inputs)
        loss, gradient = self.reconstruction_loss(output.detach(), targets)
        if self._share * share != 1:
            gradient.mul_(self._share * share)
        roots, gradients = [output], [gradient]
        if made.penalty is not None:  # by shares too: once in all
            roots.append(made.penalty)
            own_share = self._config.round_weight / self._workers.size * share
            gradients.append(torch.full_like(made.penalty, own_share))
        learned = self._parameters.learned()
        return (loss, *(torch.autograd.grad(roots, learned, gradients) if learned else ()))

    def _sum_gradients(self) -> None:
        if self._workers.size == 1:
            return
        tensors = self._parameters.learned()
        gradients = [tensor.grad if tensor.grad is not None else torch.zeros_like(tensor) for tensor in tensors]
        summed = self._workers.sum_(torch.cat(gradients))
        for tensor, piece in zip(tensors, summed.split([len(tensor) for tensor in tensors]), strict=True):
            tensor.grad = piece


class _Watched:
    """Masks from a source, and what they were asked for."""

    def __init__(self, source: Masks) -> None:
        self._source = source
        self.drawn: list[Tensor] = []

    def draw(self, like: Tensor) -> Tensor:
        self.drawn.append(torch.empty_like(like, device="meta"))
        return self._source.draw(like)


class _Given:
    """Masks that were drawn before, in their order."""

    def __init__(self, masks: Sequence[Tensor]) -> None:
        self._masks = iter(masks)

    def draw(self, like: Tensor) -> Tensor:
        return next(self._masks)
