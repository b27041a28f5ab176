"""The optimisation of one unit (GENIE-M, section 3.2): its steps, and what is kept between them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from genie_cli.config import QuantizeConfig
from genie_cli.errors import NumbersError
from genie_cli.models.graph.outputs import as_tuple
from genie_cli.quantization.activations.store import ActivationStore
from genie_cli.quantization.augmentation import mixed_with_next
from genie_cli.quantization.learned.soft_rounding import rounding_beta
from genie_cli.quantization.reconstruction.batches import Batches, DeviceBatches, complement
from genie_cli.quantization.reconstruction.loss import find_loss
from genie_cli.quantization.reconstruction.micro_batches import MicroBatches
from genie_cli.quantization.reconstruction.parameters import UnitParameters
from genie_cli.quantization.reconstruction.task import UnitTask
from genie_cli.runtime.context import RunContext
from genie_cli.runtime.determinism import RandomMasks, make_generator
from genie_cli.runtime.distribution import Workers
from genie_cli.runtime.repeated_step import RepeatedStep
from genie_cli.runtime.state import optimizer_state, prefixed, restore_optimizer, without_prefix

_AGREE_EVERY = 5
"""Steps after which several processes ask one another whether the run was interrupted."""


class UnitLearner:
    """The optimisation of one unit: a step of it, and what is kept between steps.

    Attributes:
        loss: reconstruction loss of the last step.
        micro_batches: in how many parts a batch is worked through.
        steps_done: steps taken so far.
    """

    def __init__(self, task: UnitTask, config: QuantizeConfig, context: RunContext, num_ahead: int) -> None:
        """Start where the task's weights and quantizers are.

        Args:
            task: the unit.
            config: rates, steps, regularizer.
            context: what to run on.
            num_ahead: steps whose rows go to a GPU at once; checkpoints are made at multiples of it alone.
        """
        device, workers, data = context.device, context.workers, task.data
        self._task, self._config, self._context = task, config, context
        self._generator = make_generator(device, config.seed, "drop", task.name, *_own_place(workers))
        self._masks = RandomMasks(1 - config.drop_prob, self._generator)
        for activation in task.activations.values():
            activation.masks = self._masks
        self._parameters = UnitParameters(task.weights, task.activations, config, device, task.biases, task.rate_share)
        trained = complement(data.held_out, len(data.quantized_inputs[0]))
        total = min(config.batch_size, int(workers.sum_(torch.tensor(float(len(trained))))))
        own = total // workers.size + (workers.rank < total % workers.size)
        self._own_share = own / total
        draws = make_generator(torch.device("cpu"), config.seed, "batches", task.name, *_own_place(workers))
        self._batches = Batches(trained, max(own, 1), draws)
        self._ahead: DeviceBatches | None = None
        read = [*data.quantized_inputs, *data.targets, *(data.full_inputs if config.drop_prob > 0 else ())]
        if all(store.place == "device" for store in read):
            self._ahead = DeviceBatches(self._batches, num_ahead, device)
        self._groups = self._parameters.groups()
        adam = partial(torch.optim.Adam, fused=True, capturable=device.type == "cuda")
        self._optimizer = adam(self._groups) if self._groups else None  # all rates may be 0
        self._shared: Tensor | None = None
        """The gradients that several processes sum, in one place: a recorded update reads them there."""
        if workers.size > 1:
            learned = self._parameters.learned()
            sizes = [len(tensor) for tensor in learned]
            self._shared = torch.zeros(sum(sizes), device=device)
            for tensor, gradient in zip(learned, self._shared.split(sizes), strict=True):
                tensor.grad = gradient
        self._compare = find_loss(config.loss)
        self.micro_batches = MicroBatches(max(own, 1), task.name, context.report)
        self._step: RepeatedStep | None = None
        self._kind = (0, False)
        """Parts of a batch and the regularizer in `_step`."""
        self._updates = RepeatedStep(self._update, context, name=f"unit '{task.name}'")
        self.loss = torch.zeros((), device=device)
        self._num_finite = torch.zeros(1, dtype=torch.int64, device=device)
        """Steps whose loss was finite, counted on the device: reading makes a GPU wait."""
        self._beta = torch.zeros((), device=device)
        """The regularizer's exponent."""
        self.steps_done = 0
        task.student.train()

    def can_be_left_at(self, step: int) -> bool:
        """True if a run may end at a step that is not logged; the same in all processes."""
        if self._context.workers.size == 1:
            return self._ahead is None  # else rows of later steps were drawn
        return self._context.device.type == "cpu" and step % _AGREE_EVERY == 0

    def next_batch(self) -> tuple[Tensor, ...]:
        """The next batch as `_gathered` has it; nothing where the step itself gathers it on the device."""
        if self._ahead is None:
            return self._gathered(self._batches.draw())
        self._ahead.advance()
        return ()

    def _gathered(self, rows: Tensor) -> tuple[Tensor, ...]:
        """The teacher's inputs, each ``[b, ...]``, those of the quantized units before, and the teacher's outputs."""
        data = self._task.data
        quantized, targets = self._gather(data.quantized_inputs, rows), self._gather(data.targets, rows)
        full = self._gather(data.full_inputs, rows) if self._config.drop_prob > 0 else quantized
        return *full, *quantized, *targets

    def set_schedules(self) -> bool:
        """Set the rates and the regularizer's exponent of the next step; True if it is regularized."""
        config, done = self._config, self.steps_done
        decay = 0.5 * (1 + math.cos(math.pi * done / config.num_steps))
        for group in self._groups:
            if group["decays"]:
                group["lr"].fill_(group["start"] * decay)
        beta = rounding_beta(done, config.num_steps, config.warmup, config.beta_start, config.beta_end)
        if beta is not None:
            self._beta.fill_(beta)
        return beta is not None and self._parameters.has_softbits

    def optimization_step(self, regularized: bool) -> RepeatedStep:
        """`_optimize`, with or without the regularizer, as a step that is recorded where that saves time."""
        kind = self.micro_batches.count, regularized
        if self._step is None or kind != self._kind:
            if self._step is not None:
                self._step.close()  # its kind does not come again, and a recording holds memory
            config = self._config
            plain = math.ceil(config.warmup * config.num_steps) if self._parameters.has_softbits else config.num_steps
            num_calls = config.num_steps - plain if regularized else plain
            self._kind = kind
            self._step = RepeatedStep(
                partial(self._optimize, regularized),
                self._context,
                self._masks,
                self._parameters.tensors(),
                num_calls if kind[0] == 1 else 0,
                f"unit '{self._task.name}'",
            )
        return self._step

    def _optimize(self, regularized: bool, *batch: Tensor) -> None:
        """One step: mix the inputs, make the weights, compare, regularize, step.

        An input mixes, element by element, the teacher's (with probability `drop_prob`, QDrop) and the quantized one.
        The loss is the sum of those of the unit's outputs (`loss.py`), plus the rounding regularizer. In micro-batches
        each part adds its share.

        Args:
            regularized: the rounding regularizer is a part of the loss.
            batch: the teacher's inputs of the unit, each ``[b, ...]``, the same from the quantized units before, and
                the teacher's outputs; nothing where they are gathered here.
        """
        config, parameters, task = self._config, self._parameters, self._task
        if self._ahead is not None:
            batch = self._gathered(self._ahead.rows())
        num_inputs = len(task.data.quantized_inputs)
        full, inputs, targets = batch[:num_inputs], batch[num_inputs : 2 * num_inputs], batch[2 * num_inputs :]
        learned = parameters.learned()
        if config.drop_prob > 0:
            pairs = zip(full, inputs, strict=True)
            inputs = tuple(torch.lerp(own, quantized, self._masks.draw(quantized)) for own, quantized in pairs)
        if task.teacher is not None:
            inputs = tuple(map(mixed_with_next, inputs))
            with torch.no_grad(), self._context.autocast():
                targets = as_tuple(task.teacher(*inputs))
        self.loss.zero_()
        summed: list[Tensor] = []
        for share, parts in self.micro_batches.split(*inputs, *targets):
            made = parameters.make(self._context.dtype, self._beta if regularized else None)
            task.use(made.weights, made.step_sizes, made.biases)
            outputs = self._outputs(*parts[:num_inputs])
            roots, root_gradients = [], []
            for output, target, weight in zip(outputs, parts[num_inputs:], task.data.target_weights, strict=True):
                if not weight:
                    continue  # it is not compared
                loss, gradient = self._compare(output.detach(), target)
                self.loss.add_(loss, alpha=share * weight)
                if self._own_share * share * weight != 1:
                    gradient.mul_(self._own_share * share * weight)
                if output.requires_grad:  # what is computed from the inputs alone has nothing to learn
                    roots.append(output)
                    root_gradients.append(gradient)
            if made.penalty is not None:  # by shares too: once in all
                roots.append(made.penalty)
                own_weight = config.round_weight / self._context.workers.size * share
                root_gradients.append(torch.full_like(made.penalty, own_weight))
            gradients = torch.autograd.grad(roots, learned, root_gradients) if learned else ()
            summed = [a.add_(b) for a, b in zip(summed, gradients, strict=True)] if summed else list(gradients)
        if self._shared is None:
            for tensor, gradient in zip(learned, summed, strict=True):
                tensor.grad = gradient
        elif summed:
            torch.cat(summed, out=self._shared)
        task.let_go()
        self.micro_batches.gradients_are_made()
        self._num_finite += self.loss.isfinite()
        if self._shared is None:
            self._update()

    def _update(self) -> None:
        """Move what learns along its gradients."""
        if self._optimizer is not None:
            self._optimizer.step()
        self._parameters.keep_step_sizes_positive()

    def update_together(self) -> None:
        """With several processes: sum the gradients of a step over them, and take it; alone, a step has done so."""
        if self._shared is None:
            return
        if len(self._shared):
            self._context.workers.sum_(self._shared)
        self._updates()

    def _outputs(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The student's outputs, of the weights and step sizes that it was given last."""
        with self._context.autocast():
            return as_tuple(self._task.student(*inputs))

    def _gather(self, stores: Sequence[ActivationStore], rows: Tensor) -> tuple[Tensor, ...]:
        """Rows of each store, in the order of the stores."""
        is_on_cpu = rows.device.type == "cpu"
        values = (store.gather(rows) if is_on_cpu else store.gather_on_device(rows) for store in stores)
        is_exact = self._context.dtype == torch.float32  # a second try is in float32
        return tuple(value.float() if is_exact else value for value in values)

    @torch.no_grad()
    def held_out_loss(self) -> float:
        """The loss of the held-out rows with finished integers, over all processes."""
        task = self._task
        self._parameters.write_back()
        task.student.eval()
        task.use_finished_weights()
        sums = torch.zeros(2, dtype=torch.float64)
        for rows in task.data.held_out.split(self._config.batch_size) if len(task.data.held_out) else ():
            outputs = self._context.splitter(self._outputs, *self._gather(task.data.quantized_inputs, rows))
            targets = self._gather(task.data.targets, rows)
            loss = sum(
                float(self._compare(output.float(), target.float())[0]) * weight
                for output, target, weight in zip(outputs, targets, task.data.target_weights, strict=True)
                if weight
            )
            sums += torch.tensor([loss * len(rows), len(rows)], dtype=torch.float64)
        task.student.train()
        total, count = self._context.workers.sum_(sums)
        return float(total / count)

    def check_numbers(self) -> None:
        """Look at all steps so far, and at what the last one has changed.

        Raises:
            NumbersError: the first step whose loss was not finite in any process, or what holds such a value.
        """
        names = self._parameters.not_finite()
        own = torch.tensor([[int(self._num_finite), -len(names)]])
        num_finite, fewest = self._context.workers.all_gather_rows(own).amin(0).tolist()
        if num_finite == self.steps_done and fewest == 0:
            return
        held = f", and the {', '.join(names[:3])} are not finite" if names else ""
        what = f"the loss is NaN or infinite at step {num_finite + 1}"
        if num_finite == self.steps_done:
            what = f"the gradients are NaN or infinite by step {num_finite}"
        error = NumbersError(f"Unit '{self._task.name}': {what}{held}.")
        error.is_shared = True  # all processes look at what all have
        raise error

    def state(self) -> dict[str, Tensor]:
        """All that changes from step to step, as copies on the CPU."""
        state = {
            "elements": self._parameters.elements.detach(),
            "offsets": self._parameters.offsets.detach(),
            "loss": self.loss,
            "shifts": self._parameters.shifts.detach(),
            "micro_batches": torch.tensor(self.micro_batches.count),
            "generator": self._generator.get_state(),
            **prefixed("batches", self._batches.state()),
            **prefixed("masks", self._masks.state()),
        }
        if self._optimizer is not None:
            state.update(prefixed("optimizer", optimizer_state(self._optimizer)))
        return {name: value.detach().cpu().clone() for name, value in state.items()}

    @torch.no_grad()
    def resume(self, state: Mapping[str, Tensor], steps_done: int) -> None:
        """Go on from a state, after so many steps."""
        names = ("elements", "offsets", "shifts")[: len(self._parameters.tensors())]
        self.restore([state[name] for name in names])
        self.loss.copy_(state["loss"])
        self.micro_batches.count = int(state["micro_batches"])
        self._generator.set_state(state["generator"])
        self._batches.restore(without_prefix("batches", state))
        self._masks.restore(without_prefix("masks", state))
        if self._optimizer is not None:
            restore_optimizer(self._optimizer, without_prefix("optimizer", state))
        self.steps_done = steps_done
        self._num_finite.fill_(steps_done)  # a state is kept behind a check

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
        self._task.let_go()

    def close(self) -> None:
        """Give back what recorded steps hold."""
        if self._step is not None:
            self._step.close()
        self._updates.close()


def _own_place(workers: Workers) -> tuple[int, ...]:
    """The place that sets the random numbers of a process apart; nothing where there is one process."""
    return (workers.rank,) if workers.size > 1 else ()
