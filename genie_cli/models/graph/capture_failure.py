"""The reason why a network cannot be captured, and its fix."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from genie_cli.errors import InputError
from genie_cli.models.graph.data_access import data_access

_DATA_DEPENDENT = ("data-dependent", "DataDependent", "dynamic control flow")
"""Words of the exporter where forward() decides by values."""
_FIXED_BATCH = "specialized it to be a constant"
"""Words of the exporter where forward() fixes the number of images."""
_UNKNOWN_OUTPUT = re.compile(r"Found <class '([^']+)'> in output")
_OPEN = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_OF_THE_CODE = (AttributeError, ImportError, NameError, NotImplementedError)
"""Errors that another size of the images would not avoid."""


def capture_failure(model: nn.Module, example: Tensor, error: Exception) -> InputError:
    """The error for the user.

    Args:
        model: the network, in evaluation mode.
        example: the images that it was to be captured with.
        error: of the exporter.
    """
    found = None if isinstance(model, torch.jit.ScriptModule) else _count_of_values(model, example)
    told = f"{type(error).__name__} {error}"
    if found is not None and (_FIXED_BATCH in told or any(words in told for words in _DATA_DEPENDENT)):
        return InputError(after_post_processing(f"the number of values behind its {found} depends on the images"))
    reason, fix = _explained(model, example, error)
    shape = tuple(example.shape[1:])
    return InputError(f"The network cannot be captured for input {shape}: {reason.rstrip('.')}. {fix}")


def _explained(model: nn.Module, example: Tensor, error: Exception) -> tuple[str, str]:
    """Reason and fix."""
    if isinstance(model, torch.jit.ScriptModule):
        return "it is a TorchScript module", "Let the factory return the Python module that it was made of."
    parameters = list(inspect.signature(model.forward).parameters.values())
    if parameters and parameters[0].kind is inspect.Parameter.KEYWORD_ONLY:
        name = parameters[0].name
        return f"its forward() takes '{name}' by keyword alone", "Let it take the images as its first argument."
    needed = [f"'{each.name}'" for each in parameters[1:] if each.default is each.empty and each.kind not in _OPEN]
    if needed:
        return f"its forward() needs {', '.join(needed)} beside the images", "Give them defaults, or wrap the network."
    layers: list[str] = []
    try:
        with torch.no_grad(), _layers_noted(model, layers):
            model(example)
    except _OF_THE_CODE as own:
        return f"{type(own).__name__}: {_first_line(own)}", "This is an error of its forward() on any images."
    except Exception as own:  # the user's own code may raise anything
        where = f"at layer {layers[-1]}: " if layers else "in its own forward(): "
        return (
            f"{where}{_first_line(own)}",
            "Check --input-size and --num-channels: its forward() fails on such images.",
        )
    if data_access(model, example).has_changed:
        return "its forward() changes a tensor through .data", "Let it compute a new tensor instead."
    told = f"{type(error).__name__} {error}"
    if (unknown := _UNKNOWN_OUTPUT.search(str(error))) is not None:
        name = unknown[1].rpartition(".")[2]
        return (
            f"it returns a {name}, which torch.export does not know",
            f"Call torch.export.register_dataclass({name}) in the network's file, or return a dictionary.",
        )
    if _FIXED_BATCH in told:
        return (
            "its forward() fixes the number of images, as a loop over the batch or a view with its size does",
            f"Let it treat all images of a batch at once. torch.export says: {_first_line(error)}",
        )
    if any(words in told for words in _DATA_DEPENDENT):
        return (
            _first_line(error),
            "Its forward() decides by the values of the images: take data-dependent control flow out of it.",
        )
    return _first_line(error), "Its forward() runs, and torch.export cannot follow it there: rewrite that part of it."


@contextmanager
def _layers_noted(model: nn.Module, layers: list[str]) -> Iterator[None]:
    """Keep in `layers`, outermost first, the modules that are at work, each with the shape of its input."""

    def begin(name: str) -> Any:
        def note(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            shapes = [str(list(value.shape)) for value in inputs if isinstance(value, Tensor)]
            told = f" with input {', '.join(shapes)}" if shapes else ""
            layers.append(f"'{name}' ({type(module).__name__}){told}")

        return note

    def end(module: nn.Module, inputs: Any, outputs: Any) -> None:
        layers.pop()

    named = [(name, module) for name, module in model.named_modules() if name]
    handles = [module.register_forward_pre_hook(begin(name)) for name, module in named]
    handles += [module.register_forward_hook(end) for _, module in named]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _CountsOfValues(TorchDispatchMode):
    """Notes the first operation whose result has as many values as the numbers in its arguments say."""

    def __init__(self) -> None:
        super().__init__()
        self.found: str | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func.overloadpacket).rpartition(".")[2]
        by_mask = name == "index" and any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1])
        is_counted = torch.Tag.dynamic_output_shape in func.tags and name != "index"
        if self.found is None and (by_mask or is_counted or name == "nms"):
            self.found = "index by a mask" if by_mask else name
        return func(*args, **(kwargs or {}))


def _count_of_values(model: nn.Module, example: Tensor) -> str | None:
    """The first operation of a forward pass whose number of results depends on values; the pass may fail."""
    noise = torch.rand(example.shape, generator=torch.Generator().manual_seed(0))
    mode = _CountsOfValues()
    with torch.no_grad(), suppress(Exception), mode:
        model(noise)
    return mode.found


def _first_line(error: Exception) -> str:
    return next((line.strip()[:300] for line in str(error).splitlines() if line.strip()), type(error).__name__)


def after_post_processing(reason: str) -> str:
    """The message for a network that does its post-processing in forward()."""
    return (
        f"The network cannot be captured: {reason}, as behind non-maximum suppression or a threshold on scores. Give "
        "genie the part before that: a factory whose forward() returns the raw maps (scores and boxes of all places), "
        "such as a small module around the network's backbone and heads. Apply the post-processing to what "
        "genie_cli.load returns."
    )
