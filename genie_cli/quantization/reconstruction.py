"""Learn one unit: all its weights, softbits and step sizes together, against the teacher's output."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, fx, nn

from genie_cli.artifacts.work_folder import NO_WORK, Work
from genie_cli.config import QuantizeConfig
from genie_cli.errors import NumbersError
from genie_cli.quantization.activation_store import ActivationStore
from genie_cli.quantization.batches import Batches, complement
from genie_cli.quantization.early_stopping import EarlyStopping
from genie_cli.quantization.learned_weight import LearnedWeight
from genie_cli.quantization.lsq import LearnedActivationQuantizer
from genie_cli.quantization.micro_batches import MicroBatches
from genie_cli.quantization.reconstruction_loss import kl_divergence, squared_error
from genie_cli.quantization.rounding import rounding_beta
from genie_cli.quantization.unit_parameters import UnitParameters
from genie_cli.runtime.determinism import RandomMasks, make_generator
from genie_cli.runtime.distribution import SOLO, Workers
from genie_cli.runtime.progress import Reporter, silent
from genie_cli.runtime.replay import ReplayedStep
from genie_cli.runtime.shortage import Pieces
from genie_cli.runtime.state import optimizer_state, prefixed, restore_optimizer, without_prefix

LOG_EVERY = 50
"""Steps between progress reports: reading the loss makes a GPU wait."""


class SoftWeightSlot(nn.Module):
    """Where the unit's graph reads a weight: filled once a step, read by the layer."""

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
    """What it takes to learn one unit.

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
    (with chance `drop_prob`) and the quantized one.

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
        if step % LOG_EVERY == 0 and step < config.num_steps and work.is_due(workers):
            watch = stopping.facts() if stopping is not None else {}
            best = stopping.tensors() if stopping is not None else {}
            work.save_checkpoint(place, {**learner.state(), **best}, {"step": step, **watch}, workers)
    if stopping is not None and stopping.best is not None:
        learner.restore(stopping.best)
    learner.finish()
    return taken


class _Learner:
    """The optimisation of one unit, a step a call; the step's device part can be a CUDA graph."""

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
        for activation in task.activations.values():
            activation.masks = self._masks
        self._activations = list(task.activations.values())
        self._parameters = UnitParameters(task.weights, task.activations, config, device)
        self._groups = self._parameters.groups()
        on_cuda = device.type == "cuda"
        adam = partial(torch.optim.Adam, fused=True, capturable=on_cuda)
        self._optimizer = adam(self._groups) if self._groups else None  # all rates may be 0
        total = min(config.batch_size, int(workers.sum_(torch.tensor(float(len(task.targets) - len(task.held_out))))))
        own = total // workers.size + (workers.rank < total % workers.size)
        self._share = own / total
        trained = complement(task.held_out, len(task.targets))
        draws = make_generator(torch.device("cpu"), config.seed, "batches", task.name, *_own_place(workers))
        self._batches = Batches(trained, max(own, 1), draws)
        self._micro_batches = MicroBatches(max(own, 1), task.name, report)
        self._in_pieces = Pieces(report)
        self._inputs: tuple[Tensor, Tensor, Tensor] | None = None
        self._static = on_cuda
        self._beta = torch.zeros((), device=device)
        self.loss = torch.zeros((), device=device)
        """Reconstruction loss of the last step."""
        self._num_finite = torch.zeros(1, dtype=torch.int64, device=device)  # counted there: reading makes a GPU wait
        self._done = 0
        self._start_over()
        task.student.train()

    def _start_over(self) -> None:
        alone = self._device if self._workers.size == 1 else torch.device("cpu")  # the collectives are not recorded
        self._steps = {
            regularized: ReplayedStep(partial(self._learn, regularized), alone, (self._generator,))
            for regularized in (False, True)
        }

    def step(self) -> None:
        """One optimizer step on the next batch."""
        config = self._config
        self._load(self._batches.draw())
        beta = rounding_beta(self._done, config.num_steps, config.warmup, config.beta_start, config.beta_end)
        regularized = beta is not None and self._parameters.has_softbits
        if beta is not None:
            self._beta.fill_(beta)
        decay = 0.5 * (1 + math.cos(math.pi * self._done / config.num_steps))
        for group in self._groups:
            if group["decays"]:
                group["lr"].fill_(group["start"] * decay)
        self._micro_batches.run(lambda: self._steps[regularized](), self._start_over)
        self._done += 1

    def _load(self, rows: Tensor) -> None:
        task = self._task
        full = task.full_inputs.gather(rows) if self._config.drop_prob > 0 else None
        quantized, targets = task.quantized_inputs.gather(rows), task.targets.gather(rows)
        inputs = (quantized if full is None else full, quantized, targets)
        if not self._static or self._inputs is None:
            self._inputs = inputs
            return
        for place, value in zip(self._inputs, inputs, strict=True):
            place.copy_(value)

    def _learn(self, regularized: bool) -> None:
        self._make_gradients(regularized)
        self._micro_batches.gradients_are_made()
        if self._optimizer is not None:
            self._sum_gradients()
            self._optimizer.step()
        self._parameters.keep_steps_positive()
        self._num_finite += self.loss.isfinite()

    def _make_gradients(self, regularized: bool) -> None:
        assert self._inputs is not None
        full, quantized, targets = self._inputs
        config, task = self._config, self._task
        if config.drop_prob > 0:
            quantized = torch.lerp(full, quantized, self._masks.draw(quantized))
        if self._optimizer is not None:
            self._optimizer.zero_grad(set_to_none=True)
        self.loss.zero_()
        for share, (inputs, wanted) in self._micro_batches.split(quantized, targets):
            made = self._parameters.make(self._dtype, self._beta if regularized else None)
            for slot, weight in zip(task.slots.values(), made.weights, strict=True):
                slot.value = weight
            for activation, step_size in zip(self._activations, made.step_sizes, strict=True):
                activation.step_size = step_size
            output = self._output(inputs)
            loss, gradient = self._reconstruction_loss(output.detach(), wanted)
            if self._share * share != 1:
                gradient.mul_(self._share * share)
            roots, gradients = [output], [gradient]
            if made.penalty is not None:  # by shares too: once in all
                roots.append(made.penalty)
                own_share = config.round_weight / self._workers.size * share
                gradients.append(torch.full_like(made.penalty, own_share))
            if self._optimizer is not None:
                torch.autograd.backward(roots, gradients)
            self.loss.add_(loss, alpha=share)

    def _output(self, inputs: Tensor) -> Tensor:
        with torch.autocast(self._device.type, self._dtype, enabled=self._dtype != torch.float32):
            output: Tensor = self._task.student(inputs)
        return output

    def _reconstruction_loss(self, output: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return (kl_divergence if self._config.loss == "kl" else squared_error)(output, targets)

    def _sum_gradients(self) -> None:
        if self._workers.size == 1:
            return
        tensors = [tensor for tensor in self._parameters.tensors() if tensor.requires_grad]
        gradients = [tensor.grad if tensor.grad is not None else torch.zeros_like(tensor) for tensor in tensors]
        summed = self._workers.sum_(torch.cat(gradients))
        for tensor, piece in zip(tensors, summed.split([len(tensor) for tensor in tensors]), strict=True):
            tensor.grad = piece

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
            output = self._in_pieces(self._output, task.quantized_inputs.gather(rows))
            loss, _ = self._reconstruction_loss(output, task.targets.gather(rows))
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
            "micro_batches": torch.tensor(self._micro_batches.count),
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
        self.restore([state["elements"], state["offsets"]])
        self.loss.copy_(state["loss"])
        self._micro_batches.count = int(state["micro_batches"])
        self._generator.set_state(state["generator"])
        self._batches.restore(without_prefix("batches", state))
        self._masks.restore(without_prefix("masks", state))
        if self._optimizer is not None:
            restore_optimizer(self._optimizer, without_prefix("optimizer", state))
        self._done = steps_done
        self._num_finite.fill_(steps_done)  # a state is kept behind a check

    def check_numbers(self) -> None:
        """Look at all steps so far, and at what the last one has changed.

        Raises:
            NumbersError: the first step whose loss was not finite in any process, or what holds such a value.
        """
        names = self._parameters.not_finite()
        own = torch.tensor([[int(self._num_finite), -len(names)]])
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
    """What sets the random numbers of a process apart; nothing where there is one."""
    return (workers.rank,) if workers.size > 1 else ()
