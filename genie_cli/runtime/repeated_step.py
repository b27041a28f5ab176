"""A training step that is called many times: recorded, and replayed from then on, where that saves time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from genie_cli.runtime.context import RunContext
from genie_cli.runtime.cuda_graph import GraphedStep
from genie_cli.runtime.determinism import RandomMasks
from genie_cli.runtime.operation_list import Recording
from genie_cli.runtime.progress import Note

RECORD_FROM = 100
"""Calls from which a CPU records a step: the recording takes as long as some 60 replays save."""


class RepeatedStep:
    """Calls ``step(*inputs)`` with inputs of the same shapes each time; every call is one step.

    On CUDA the step becomes a graph (`cuda_graph.py`). A CPU replays the flat list of its operations
    (`operation_list.py`): the first call shows which masks the step draws, and the second, which is given these, is
    recorded. All give the same bits. A step holds no sum over several processes; a CPU records none where there are
    several, since what follows the sum is another step.
    """

    def __init__(
        self,
        step: Callable[..., None],
        context: RunContext,
        masks: RandomMasks | None = None,
        state: Sequence[Tensor] = (),
        num_calls: int = 0,
        name: str = "",
    ) -> None:
        """Wrap `step`.

        Args:
            step: reads and writes tensors of fixed place alone, beside its inputs.
            context: where it runs.
            masks: where it draws masks from.
            state: parameters that it changes; a CPU's recording takes them as inputs.
            num_calls: how often it will be called, where a CPU may record it.
            name: what a note calls it.
        """
        self._step, self._masks, self._state = step, masks, tuple(state)
        self._name, self._report = name, context.report
        self._graphed: GraphedStep | None = None
        if context.device.type == "cuda":
            generators = () if masks is None else (masks.generator,)
            self._graphed = GraphedStep(step, context.device, generators, self._say_no_room)
        alone = context.workers.size == 1
        self._records = alone and context.device.type == "cpu" and masks is not None and num_calls >= RECORD_FROM
        self._drawn: list[Tensor] | None = None
        """The shapes of the masks that a step draws, without memory; None: not seen yet."""
        self._replay: Callable[..., None] | None = None

    def __call__(self, *inputs: Tensor) -> None:
        """Take one step."""
        if self._graphed is not None:
            self._graphed(*inputs)
            return
        if not self._records or self._masks is None:
            self._step(*inputs)
            return
        if self._drawn is None:
            with self._masks.watched() as drawn:
                self._step(*inputs)
            self._drawn = drawn
            # masks that are made anew each time, not views of a pool, are not to be held so long
            self._records = all(self._masks.has_room_for(like) for like in drawn)
            return
        masks = [self._masks.draw(like) for like in self._drawn]
        if self._replay is not None:
            self._replay(*self._state, *inputs, *masks)
            return
        recording = Recording([*self._state, *inputs, *masks])
        with self._masks.given(masks), recording:
            self._step(*inputs)
        try:
            self._replay = recording.replay()
        except Exception as error:  # whatever a network holds, its steps can be computed
            self._records = False
            self._report(Note(f"{self._name}: its steps are not recorded, and take longer: {error}"))

    def close(self) -> None:
        """Give back what recordings hold; no calls after that."""
        if self._graphed is not None:
            self._graphed.close()
            self._graphed = None
        self._step, self._replay, self._state, self._records = _closed, None, (), False

    def _say_no_room(self) -> None:
        self._report(Note(f"{self._name}: memory has no room for a recording of its steps, which take longer."))


def is_over(step: int, device: torch.device) -> bool:
    """True if the host knows that the step taken last, number `step` from 1, is over.

    On a CPU it always is. A GPU is waited for at steps 1, 2, 4, 8, ..., whose number grows slowly.
    """
    if device.type == "cpu":
        return True
    if step & (step - 1):
        return False
    torch.cuda.current_stream(device).synchronize()
    return True


def _closed(*inputs: Tensor) -> None:
    raise RuntimeError("this repeated step is closed")
