"""Networks in evaluation mode in every respect: dropout that a network leaves on is taken out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

_DROPOUTS = {
    "dropout", "dropout_", "dropout1d", "dropout2d", "dropout3d", "feature_dropout", "feature_dropout_",
    "alpha_dropout", "alpha_dropout_", "feature_alpha_dropout", "feature_alpha_dropout_",
}  # fmt: skip
_ATTENTION = "scaled_dot_product_attention"
_RANDOM_SLOPE = ("rrelu", "rrelu_")


class EvaluationMode(TorchFunctionMode):
    """While it is entered, calls of dropout hand their input on, whatever the network asks for.

    Attributes:
        found: names of the functions that were asked to draw at random.
    """

    def __init__(self) -> None:
        """Nothing was found yet."""
        super().__init__()
        self.found: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        """Run a function, without its randomness."""
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if name in _DROPOUTS and args and isinstance(args[0], Tensor):
            p = kwargs.get("p", args[1] if len(args) > 1 else 0.5)
            is_on = kwargs.get("training", kwargs.get("train", args[2] if len(args) > 2 else True))
            if p and is_on:
                self.found.add(name)
            return args[0]
        if name in _RANDOM_SLOPE:
            training = kwargs.get("training", args[3] if len(args) > 3 else False)
            if training:
                self.found.add(name)
            return func(*args[:3], **{**kwargs, "training": False})
        if name == _ATTENTION and (kwargs.get("dropout_p") or (len(args) > 4 and args[4])):
            self.found.add(name)
            kwargs.pop("dropout_p", None)
            args = (*args[:4], 0.0, *args[5:]) if len(args) > 4 else args
        return func(*args, **kwargs)
