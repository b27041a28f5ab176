"""GENIE-M on one unit (section 3.2): weights, softbits and step sizes learn together, against the teacher's outputs."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import closing

import torch

from genie_cli.config import QuantizeConfig
from genie_cli.errors import NumbersError
from genie_cli.quantization.reconstruction.early_stopping import EarlyStopping
from genie_cli.quantization.reconstruction.learner import UnitLearner
from genie_cli.quantization.reconstruction.loss_log import LossRow, rows_as_facts, saved_rows
from genie_cli.quantization.reconstruction.task import UnitTask
from genie_cli.runtime.context import RunContext
from genie_cli.runtime.repeated_step import is_over
from genie_cli.runtime.work import Saved

LOG_EVERY = 50
"""Steps between progress reports: reading the loss makes a GPU wait."""


def reconstruct(
    task: UnitTask,
    config: QuantizeConfig,
    context: RunContext,
    checkpoint: str,
    on_step: Callable[[int, float], None],
    on_pace: Callable[[int, bool], None] = lambda step, found: None,
) -> int:
    """Minimise the reconstruction error of one unit in place (Eq. 10-11 with LSQ and QDrop).

    With `config.patience`, a unit ends before its steps are done once the loss of the held-out rows
    (finished integers, nothing dropped) has not improved for so many steps, and goes back to its best.

    Args:
        task: the unit.
        config: rates, steps, regularizer, patience.
        context: what to run on; its processes share the batches, and gradients are summed over them.
        checkpoint: name of the unit's checkpoints.
        on_step: called with (steps done, reconstruction loss) every so many steps.
        on_pace: receives the number of steps that are over, and whether an earlier run took them.

    Returns:
        The steps taken.

    Raises:
        KeyboardInterrupt: the user has interrupted; a checkpoint of the last step is kept.
        NumbersError: the loss is not finite.
    """
    with closing(_Course(task, config, context, checkpoint, on_step, on_pace)) as course:
        return course.run()


class _Course:
    """The steps of a unit: what is looked at between them, and what is kept."""

    def __init__(
        self,
        task: UnitTask,
        config: QuantizeConfig,
        context: RunContext,
        checkpoint: str,
        on_step: Callable[[int, float], None],
        on_pace: Callable[[int, bool], None],
    ) -> None:
        """Of the arguments of `reconstruct`."""
        self._task, self._config, self._context, self._checkpoint = task, config, context, checkpoint
        self._on_step, self._on_pace = on_step, on_pace
        self._every = context.log_every or LOG_EVERY
        held_out = torch.tensor(len(task.data.held_out))
        is_watched = config.patience is not None and int(context.workers.sum_(held_out)) > 0
        self._stopping = EarlyStopping(config, self._every) if is_watched else None
        self._learner = UnitLearner(task, config, context, self._every)

    def close(self) -> None:
        """Give back what the learner holds."""
        self._learner.close()

    def run(self) -> int:
        """Take the steps, from the newest checkpoint on; the number of them that were taken."""
        num_steps, taken = self._config.num_steps, self._config.num_steps
        start = self._resumed()
        self._on_pace(start, True)
        for step in range(start + 1, num_steps + 1):
            self._take(step)
            self._report(step)
            if self._is_settled(step):
                taken = step
                break
            if step < num_steps:
                self._keep(step)
        if self._stopping is not None and self._stopping.best is not None:
            self._learner.restore(self._stopping.best)
        self._learner.finish()
        return taken

    def _resumed(self) -> int:
        """Go on from the newest checkpoint, if there is one: the number of its step."""
        left = self._context.work.checkpoint(self._checkpoint, self._context.workers)
        if left is None:
            return 0
        step: int = left.facts["step"]
        self._learner.resume(left.tensors, step)
        self._task.log.extend(saved_rows(left))
        if self._stopping is not None:
            self._stopping.resume(left)
        return step

    def _take(self, step: int) -> None:
        """Take one optimizer step."""
        learner = self._learner
        batch, regularized = learner.next_batch(), learner.set_schedules()
        for attempt in learner.micro_batches.attempts():
            with attempt:
                learner.optimization_step(regularized)(*batch)
        learner.update_together()
        learner.steps_done = step

    def _is_logged(self, step: int) -> bool:
        return step % self._every == 0 or step == self._config.num_steps

    def _report(self, step: int) -> None:
        """Say how far the unit is."""
        is_logged = self._is_logged(step)
        if is_logged:
            self._learner.check_numbers()
            self._on_step(step, float(self._learner.loss))
        if is_logged or is_over(step, self._context.device):
            self._on_pace(step, False)

    def _is_settled(self, step: int) -> bool:
        """Log the losses where they are due; True once the held-out loss has not improved for long."""
        held_out_loss, is_over_now = None, False
        if self._stopping is not None and self._stopping.is_due(step):
            self._learner.check_numbers()
            held_out_loss = self._learner.held_out_loss()
            if not math.isfinite(held_out_loss):
                raise NumbersError(f"Unit '{self._task.name}': the held-out loss is {held_out_loss} at step {step}.")
            is_over_now = self._stopping.is_over(step, held_out_loss, self._learner.snapshot)
        if self._is_logged(step) or held_out_loss is not None:
            self._task.log.append(LossRow(step, float(self._learner.loss), held_out_loss))
        return is_over_now

    def _keep(self, step: int) -> None:
        """Keep a checkpoint where one is due, or where the user has interrupted, and then end."""
        workers, work, is_round = self._context.workers, self._context.work, step % self._every == 0
        can_be_left = is_round or self._learner.can_be_left_at(step)
        is_asked = can_be_left and self._context.interrupts.agreed(workers)
        if is_asked:
            self._learner.check_numbers()
        if is_asked or (is_round and work.is_due(self._checkpoint, workers)):
            best = self._stopping.saved() if self._stopping is not None else Saved({}, {})
            tensors = {**self._learner.state(), **best.tensors}
            facts = {"step": step, **rows_as_facts(self._task.log), **best.facts}
            work.save_checkpoint(self._checkpoint, Saved(tensors, facts), workers)
        if is_asked:
            raise KeyboardInterrupt
