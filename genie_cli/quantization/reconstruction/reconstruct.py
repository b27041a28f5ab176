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
    workers, work, every = context.workers, context.work, context.log_every or LOG_EVERY
    watched = int(workers.sum_(torch.tensor(len(task.data.held_out)))) if config.patience is not None else 0
    stopping = EarlyStopping(config, every) if watched else None
    taken, start = config.num_steps, 0
    with closing(UnitLearner(task, config, context, every)) as learner:
        if (left := work.checkpoint(checkpoint, workers)) is not None:
            start = left.facts["step"]
            learner.resume(left.tensors, start)
            task.log.extend(saved_rows(left))
            if stopping is not None:
                stopping.resume(left)
        on_pace(start, True)
        for step in range(start + 1, config.num_steps + 1):
            batch, regularized = learner.next_batch(), learner.set_schedules()
            for attempt in learner.micro_batches.attempts():
                with attempt:
                    learner.optimization_step(regularized)(*batch)
            learner.update_together()
            learner.steps_done = step
            is_logged = step % every == 0 or step == config.num_steps
            if is_logged:
                learner.check_numbers()
                on_step(step, float(learner.loss))
            if is_logged or is_over(step, context.device):
                on_pace(step, False)
            held_out_loss, is_settled = None, False
            if stopping is not None and stopping.is_due(step):
                learner.check_numbers()
                held_out_loss = learner.held_out_loss()
                if not math.isfinite(held_out_loss):
                    raise NumbersError(f"Unit '{task.name}': the held-out loss is {held_out_loss} at step {step}.")
                is_settled = stopping.is_over(step, held_out_loss, learner.snapshot)
            if is_logged or held_out_loss is not None:
                task.log.append(LossRow(step, float(learner.loss), held_out_loss))
            if is_settled:
                taken = step
                break
            if step == config.num_steps:
                break
            is_asked = (step % every == 0 or learner.can_be_left_at(step)) and context.interrupts.agreed(workers)
            if is_asked:
                learner.check_numbers()
            if is_asked or (step % every == 0 and work.is_due(checkpoint, workers)):
                best = stopping.saved() if stopping is not None else Saved({}, {})
                state = Saved(
                    {**learner.state(), **best.tensors}, {"step": step, **rows_as_facts(task.log), **best.facts}
                )
                work.save_checkpoint(checkpoint, state, workers)
            if is_asked:
                raise KeyboardInterrupt
        if stopping is not None and stopping.best is not None:
            learner.restore(stopping.best)
        learner.finish()
    return taken
