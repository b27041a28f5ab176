"""A metric of the user's own: an object with ``update(outputs, targets)`` and ``compute()``, such as torchmetrics'."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from genie_cli.errors import InputError
from genie_cli.evaluation.keys import is_reserved
from genie_cli.evaluation.metrics.metric import Figures, Metric, described
from genie_cli.runtime.user_code import UserCode


class OwnMetric(Metric):
    """The figures of an object that the user's factory makes."""

    is_summed = False

    def __init__(self, code: UserCode) -> None:
        """Call the factory.

        Args:
            code: returns a new object each time.

        Raises:
            InputError: it fails, or its object has no such methods.
        """
        self._code, self.name = code, code.name
        self.object = code()
        lacking = [name for name in ("update", "compute") if not callable(getattr(self.object, name, None))]
        if lacking or isinstance(self.object, type | Mapping):
            raise InputError(
                f"Metric '{code.spec}' must give an object with update(outputs, targets) and compute(), it gave "
                f"{'a class' if isinstance(self.object, type) else described(self.object)}."
            )

    def update(self, outputs: Any, targets: Any) -> None:
        """Hand a batch on; outputs as the network gives them, targets as the data give them."""
        took = f"in update(), which got outputs {described(outputs)} and targets {described(targets)}"
        with self._code.running(took):
            self.object.update(outputs, targets)

    def compute(self) -> Figures:
        """The object's numbers, in its order.

        Raises:
            InputError: it fails, or gives something else.
        """
        with self._code.running("in compute()"):
            computed = self.object.compute()
        if not isinstance(computed, Mapping):
            computed = {type(self.object).__name__: computed}
        figures = {str(name): _plain(value) for name, value in computed.items()}
        if any(value is None for value in figures.values()) or not any(isinstance(v, float) for v in figures.values()):
            raise InputError(
                f"Metric '{self._code.spec}' must compute a dict of numbers, it computed {described(dict(computed))}."
            )
        for name in figures:
            if is_reserved(name):
                raise InputError(f"Metric '{self._code.spec}' calls a number '{name}', as metrics files do: rename it.")
        return figures


def _plain(value: Any) -> float | list[float] | None:
    """A number, or a list of them, of whatever type; None for anything else."""
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        return None
    if array.ndim > 1 or isinstance(value, str | bytes):
        return None
    return float(array) if array.ndim == 0 else [float(each) for each in array]
