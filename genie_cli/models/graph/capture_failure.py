"""The reason why a network cannot be captured, and its fix."""

from __future__ import annotations

import inspect

import torch
from torch import Tensor, nn

from genie_cli.errors import InputError
from genie_cli.models.graph.data_access import data_access

_DATA_DEPENDENT = ("data-dependent", "DataDependent", "dynamic control flow")
"""Words of the exporter where forward() decides by values."""
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
    try:
        with torch.no_grad():
            model(example)
    except _OF_THE_CODE as own:
        return f"{type(own).__name__}: {_first_line(own)}", "This is an error of its forward() on any images."
    except Exception as own:  # the user's own code may raise anything
        return _first_line(own), "Check --input-size and --num-channels: its forward() fails on such images."
    if data_access(model, example).has_changed:
        return "its forward() changes a tensor through .data", "Let it compute a new tensor instead."
    told = f"{type(error).__name__} {error}"
    if any(words in told for words in _DATA_DEPENDENT):
        return (
            _first_line(error),
            "Its forward() decides by the values of the images: take data-dependent control flow out of it.",
        )
    return _first_line(error), "Its forward() runs, and torch.export cannot follow it there: rewrite that part of it."


def _first_line(error: Exception) -> str:
    return next((line.strip()[:300] for line in str(error).splitlines() if line.strip()), type(error).__name__)
