"""The one interface of all figures: they take batches of outputs, and give named numbers at the end."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from genie_cli.errors import InputError

Figures = dict[str, Any]
"""Name -> a number; also `per_class` (class -> number), `outputs` (output -> name -> number), and a user's lists."""


class Metric(ABC):
    """Figures of one network over all images.

    A metric of a network compares its outputs with the targets of the images. A metric of a pair compares the outputs
    of a student with those of its teacher, which stand in the place of the targets.

    Attributes:
        name: the user's name for it.
        takes: words for the outputs that it takes.
        is_summed: processes that share the images can add up their `counts`.
        compared: figures of which the teacher's value and the difference are given too; None: all that are one number.
    """

    name: str
    takes: str = ""
    is_summed = True
    compared: tuple[str, ...] | None = None

    @abstractmethod
    def update(self, outputs: Any, targets: Any) -> None:
        """Take a batch: outputs on the CPU, in float32 where they are floats.

        Raises:
            InputError: outputs or targets that it cannot take.
        """

    @abstractmethod
    def compute(self) -> Figures:
        """The figures of all batches; the first one is the most important."""

    def counts(self) -> list[Tensor]:
        """The tensors that the figures follow from; their sums over processes take their place."""
        return []

    def running(self) -> dict[str, float]:
        """Figures to show while the work goes on."""
        return {}

    def refused(self, outputs: Any) -> InputError:
        """The error of outputs that are not what it `takes`."""
        return InputError(
            f"Metric {self.name} takes {self.takes}, and the network gives {described(outputs)}: use another --metric, "
            "or name a function that turns these outputs into such ones, --decode FILE.py:FUNCTION."
        )


def share(count: int, total: int) -> float:
    """A percentage with four decimals."""
    return round(100 * count / max(1, total), 4)


def described(value: Any) -> str:
    """A value in words: types, names and shapes."""
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, Mapping):
        parts = ", ".join(f"'{key}': {_brief(each)}" for key, each in list(value.items())[:8])
        return f"a dict {{{parts}{', ...' if len(value) > 8 else ''}}}"
    if isinstance(value, list | tuple):
        kind = type(value).__name__
        return f"an empty {kind}" if not value else f"a {kind} of {len(value)}, the first {_brief(value[0])}"
    return "nothing" if value is None else type(value).__name__


def _brief(value: Any) -> str:
    return str(list(value.shape)) if isinstance(value, Tensor) else described(value)
