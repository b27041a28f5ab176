"""Learn one unit: all its weights, softbits and step sizes together, against the teacher's output."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from genie_cli.artifacts.work_folder import NO_WORK, Work
from genie_cli.config import QuantizeConfig
from genie_cli.errors import NumbersError
from genie_cli.quantization.activation_store import ActivationStore
from genie_cli.quantization.batches import Batches, complement
from genie_cli.quantization.early_stopping import EarlyStopping
from genie_cli.quantization.rounding import rounding_beta
from genie_cli.quantization.unit_parameters import UnitParameters
from genie_cli.quantization.unit_step import UnitStep
from genie_cli.quantization.unit_task import UnitTask
from genie_cli.runtime.determinism import RandomMasks, make_generator
from genie_cli.runtime.distribution import SOLO, Workers
from genie_cli.runtime.progress import Reporter, silent
from genie_cli.runtime.shortage import Pieces
from genie_cli.runtime.state import optimizer_state, prefixed, restore_optimizer, without_prefix

LOG_EVERY = 50
"""Steps between progress reports: reading the loss makes a GPU wait."""


def learn_unit(
    task: UnitTask,
    config: QuantizeConfig,
    device: torch.device,
    dtype: torch.dtype,
    on_step: Callable[[int, float], None],
    workers: Workers = SOLO,
    work: Work = NO_WORK,
    place: str = "",
    report: Reporter = silent,
) -> int:
    """Minimise the reconstruction error of one unit in place (Eq. 10-11 with LSQ and QDrop).

    The loss is the squared error at the unit's output, summed over channels and averaged over the
    rest, plus the rounding regularizer. The input mixes, element by element, the teacher's input
    (with probability `drop_prob`) and the quantized one.

    With `config.patience`, a unit ends before its steps are done once the loss of the held-out rows
    (finished integers, nothing dropped) has not improved for so many steps, and goes back to its best.

    Args:
        task: the unit.
        config: rates, steps, regularizer, patience.
        device: where the step runs; batches are brought there.
        dtype: arithmetic of the convolutions.
        on_step: called with (steps done, reconstruction loss) every so many steps.
        workers: processes that share the batch; the gradients are summed over them.
        work: where each process keeps its state from time to time, and finds it again.
        place: what it is called there.
        report: receives a warning where memory runs out and the batch is taken in pieces.

    Returns:
        The steps taken.

    Raises:
        NumbersError: the loss is not finite.
    """
    learner = _Learner(task, config, device, dtype, workers, report)
    watched = int(workers.sum_(torch.tensor(len(task.held_out)))) if config.patience is not None else 0
    stopping = EarlyStopping(config, LOG_EVERY) if watched else None
    taken, start = config.num_steps, 0
    if (left := work.checkpoint(place, workers)) is not None:
        start = left.facts["step"]
        learner.resume(left.tensors, start)
        if stopping is not None:
            stopping.resume(left)
    for step in range(start + 1, config.num_steps + 1):
        learner.step()
        if step % LOG_EVERY == 0 or step == config.num_steps:
            learner.check_numbers()
            on_step(step, float(learner.loss))
        if stopping is not None and stopping.is_due(step):
            learner.check_numbers()
            held_out_loss = learner.held_out_loss()
            if not math.isfinite(held_out_loss):
                raise NumbersError(f"Unit '{task.name}': the held-out loss is {held_out_loss} at step {step}.")
            if stopping.is_over(step, held_out_loss, learner.snapshot):
                taken = step
                break
        if step % LOG_EVERY == 0 and step < config.num_steps and work.is_due(place, workers):
            watch = stopping.facts() if stopping is not None else {}
            best = stopping.tensors() if stopping is not None else {}
            work.save_checkpoint(place, {**learner.state(), **best}, {"step": step, **watch}, workers)
    if stopping is not None and stopping.best is not None:
        learner.restore(stopping.best)
    learner.finish()
    return taken


class _Learner:
    """The optimisation of one unit: batches, schedules, what is kept between steps."""

    def __init__(
        self,
        task: UnitTask,
        config: QuantizeConfig,
        device: torch.device,
        dtype: torch.dtype,
        workers: Workers,
        report: Reporter,
    ) -> None:
        self._task, self._config, self._device, self._dtype, self._workers = task, config, device, dtype, workers
        self._generator = make_generator(device, config.seed, "drop", task.name, *_own_place(workers))
        self._masks = RandomMasks(1 - config.drop_prob, self._generator)
        self._parameters = UnitParameters(task.weights, task.activations, config, device)
        total = min(config.batch_size, int(workers.sum_(torch.tensor(float(len(task.targets) - len(task.held_out))))))
        own = total // workers.size + (workers.rank < total % workers.size)
        trained = complement(task.held_out, len(task.targets))
        draws = make_generator(torch.device("cpu"), config.seed, "batches", task.name, *_own_place(workers))
        self._batches = Batches(trained, max(own, 1), draws)
        self._step = UnitStep(task, self._parameters, self._masks, config, device, dtype, workers, (own, total), report)
        self._in_pieces = Pieces(report)
        self._done = 0
        task.student.train()

    @property
    def loss(self) -> Tensor:
        """Reconstruction loss of the last step."""
        return self._step.loss

    def step(self) -> None:
        """One optimizer step on the next batch."""
        config, task, rows = self._config, self._task, self._batches.draw()
        quantized, targets = self._gather(task.quantized_inputs, rows), self._gather(task.targets, rows)
        full = self._gather(task.full_inputs, rows) if config.drop_prob > 0 else quantized
        beta = rounding_beta(self._done, config.num_steps, config.warmup, config.beta_start, config.beta_end)
        if beta is not None:
            self._step.beta.fill_(beta)
        decay = 0.5 * (1 + math.cos(math.pi * self._done / config.num_steps))
        for group in self._step.groups:
            if group["decays"]:
                group["lr"].fill_(group["start"] * decay)
        self._step(full, quantized, targets, beta is not None and self._parameters.has_softbits)
        self._done += 1

    def _gather(self, store: ActivationStore, rows: Tensor) -> Tensor:
        values = store.gather(rows)
        return values.float() if self._dtype == torch.float32 else values  # a second try is in float32

    @torch.no_grad()
    def held_out_loss(self) -> float:
        """The loss of the held-out rows with finished integers, over all processes."""
        task = self._task
        self._parameters.write_back()
        task.student.eval()
        for name, weight in task.weights.items():
            task.slots[name].value = weight.harden()()
        sums = torch.zeros(2, dtype=torch.float64)
        for rows in task.held_out.split(self._config.batch_size) if len(task.held_out) else ():
            output = self._in_pieces(self._step.output, self._gather(task.quantized_inputs, rows))
            loss, _ = self._step.reconstruction_loss(output.float(), self._gather(task.targets, rows).float())
            sums += torch.tensor([float(loss) * len(rows), len(rows)], dtype=torch.float64)
        task.student.train()
        total, count = self._workers.sum_(sums)
        return float(total / count)

    def state(self) -> dict[str, Tensor]:
        """All that changes from step to step, as copies on the CPU."""
        state = {
            "elements": self._parameters.elements.detach(),
            "offsets": self._parameters.offsets.detach(),
            "loss": self.loss,
            "micro_batches": torch.tensor(self._step.micro_batches.count),
            "generator": self._generator.get_state(),
            **prefixed("batches", self._batches.state()),
            **prefixed("masks", self._masks.state()),
        }
        if self._step.optimizer is not None:
            state.update(prefixed("optimizer", optimizer_state(self._step.optimizer)))
        return {name: value.detach().cpu().clone() for name, value in state.items()}

    @torch.no_grad()
    def resume(self, state: Mapping[str, Tensor], steps_done: int) -> None:
        """Go on from a state, after so many steps."""
        self.restore([state["elements"], state["offsets"]])
        self.loss.copy_(state["loss"])
        self._step.micro_batches.count = int(state["micro_batches"])
        self._generator.set_state(state["generator"])
        self._batches.restore(without_prefix("batches", state))
        self._masks.restore(without_prefix("masks", state))
        if self._step.optimizer is not None:
            restore_optimizer(self._step.optimizer, without_prefix("optimizer", state))
        self._done = steps_done
        self._step.num_finite.fill_(steps_done)  # a state is kept behind a check

    def check_numbers(self) -> None:
        """Look at all steps so far, and at what the last one has changed.

        Raises:
            NumbersError: the first step whose loss was not finite in any process, or what holds such a value.
        """
        names = self._parameters.not_finite()
        own = torch.tensor([[int(self._step.num_finite), -len(names)]])
        num_finite, fewest = self._workers.all_gather_rows(own).amin(0).tolist()
        if num_finite == self._done and fewest == 0:
            return
        held = f", and the {', '.join(names[:3])} are not finite" if names else ""
        what = f"the loss is NaN or infinite at step {num_finite + 1}"
        if num_finite == self._done:
            what = f"the gradients are NaN or infinite by step {num_finite}"
        error = NumbersError(f"Unit '{self._task.name}': {what}{held}.")
        error.is_shared = True  # all processes look at what all have
        raise error

    def snapshot(self) -> list[Tensor]:
        """A copy of all that learns."""
        return [parameter.detach().clone() for parameter in self._parameters.tensors()]

    @torch.no_grad()
    def restore(self, state: list[Tensor]) -> None:
        """Go back to a snapshot."""
        for parameter, value in zip(self._parameters.tensors(), state, strict=True):
            parameter.copy_(value)

    def finish(self) -> None:
        """Leave what was learned in the task's modules."""
        self._parameters.write_back()
        self._task.student.eval()
        for slot in self._task.slots.values():
            slot.value = None


def _own_place(workers: Workers) -> tuple[int, ...]:
    """The part of the seed that makes a process's random numbers its own; empty for a single process."""
    return (workers.rank,) if workers.size > 1 else ()
