"""The use of ``tensor.data`` in a forward pass: the exporter cannot follow it, and can follow ``tensor.detach()``."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_GET, _SET = torch.Tensor.data.__get__, torch.Tensor.data.__set__  # type: ignore[attr-defined]


class DataAccess(TorchFunctionMode):
    """While it is entered, reading ``tensor.data`` gives ``tensor.detach()``, which is the same in evaluation.

    Attributes:
        has_read: True once ``.data`` was read.
        has_changed: True once ``.data`` was replaced, or what it gave was changed in place.
    """

    def __init__(self) -> None:
        """Nothing was read yet."""
        super().__init__()
        self.has_read = self.has_changed = False
        self._given: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function; reading ``.data`` as said."""
        if func == _GET:
            self.has_read = True
            self._given.append(args[0].detach())
            return self._given[-1]
        if func == _SET or (_is_in_place(func) and any(args[0] is given for given in self._given)):
            self.has_changed = True
        return func(*args, **(kwargs or {}))


def data_access(model: nn.Module, example: Tensor) -> DataAccess:
    """The use of ``.data`` in one forward pass, which may fail."""
    access = DataAccess()
    with torch.no_grad(), suppress(Exception), access:
        model(example)
    return access


def _is_in_place(func: Any) -> bool:
    """True for ``add_``, ``__iadd__`` and their like."""
    name = getattr(func, "__name__", "")
    return name == "__setitem__" or name.startswith("__i") or (name.endswith("_") and not name.endswith("__"))
