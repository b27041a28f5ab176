"""Decorators by which users add a synthesis term, a rounding or a preset."""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any, Literal, TypeVar

from genie_cli.config.presets import Preset
from genie_cli.errors import UsageError
from genie_cli.quantization import presets as quantization_presets
from genie_cli.quantization.learned.roundings import ROUNDINGS, Rounding
from genie_cli.quantization.learned.weight import LearnedWeight
from genie_cli.runtime.registered import Kind, Registration, register
from genie_cli.runtime.user_code import UserCode
from genie_cli.synthesis import presets as synthesis_presets
from genie_cli.synthesis.own_terms import ImageBatch, OwnTerm

Term = Callable[[ImageBatch], Any]
WeightT = TypeVar("WeightT", bound=type[LearnedWeight])
Options = Callable[[], Mapping[str, Any]]
Of = Literal["synthesize", "quantize"]


def synthesis_term(name: str, *, needs_logits: bool = False) -> Callable[[Term], Term]:
    """Register a function as a term of the loss of a synthesis, which ``--term NAME=WEIGHT`` switches on.

    The function takes an `ImageBatch` and returns a scalar tensor, which is to become small. It runs in every step. A
    GPU records a step, so that the function must do the same operations each time and read no value back.

    Args:
        name: what options call it.
        needs_logits: it reads the class scores.

    Raises:
        UsageError: the name is taken.
    """

    def decorate(function: Term) -> Term:
        code = _code("Term", function)
        register(Registration("synthesis term", name, OwnTerm(function, needs_logits, code), code), ())
        return function

    return decorate


def rounding(
    name: str, *, learns_elements: bool = True, learns_step_sizes: bool = True, decays: bool = False
) -> Callable[[WeightT], WeightT]:
    """Register a class as a way that weights learn, which ``--rounding NAME`` chooses.

    The class is a `LearnedWeight`: it says the weight of what learns, its slopes, and the finished codes.

    Args:
        name: what options call it.
        learns_elements: softbits or shifts learn, with `rounding_lr`.
        learns_step_sizes: step sizes learn, with `weight_step_lr`.
        decays: the rate of the elements falls to 0 along a cosine.

    Raises:
        UsageError: the name is taken, or the class is none of that kind.
    """

    def decorate(weight: WeightT) -> WeightT:
        if not (isinstance(weight, type) and issubclass(weight, LearnedWeight)):
            raise UsageError(f"Rounding '{name}' must be a class made of genie_cli.LearnedWeight.")
        lacking = sorted(weight.__abstractmethods__) + [
            each for each in ("has_softbits",) if not hasattr(weight, "has_softbits")
        ]
        if lacking:
            raise UsageError(f"Rounding '{name}', class {weight.__name__}, lacks {', '.join(lacking)}.")
        code = _code("Rounding", weight)
        value = Rounding(_told(weight, code), learns_elements, learns_step_sizes, decays)
        register(Registration("rounding", name, value, code), ROUNDINGS)
        return weight

    return decorate


def preset(name: str, *, of: Of) -> Callable[[Options], Options]:
    """Register a function's options as a preset, which ``--preset NAME`` chooses.

    The function returns key -> value, over the defaults and under params files and flags. Its docstring's first line is
    what ``genie presets`` says of it.

    Args:
        name: what options call it.
        of: the command.

    Raises:
        UsageError: the name is taken, or the function returns no mapping.
    """
    kinds: dict[str, tuple[Kind, Mapping[str, Preset]]] = {
        "synthesize": ("synthesis preset", synthesis_presets.PRESETS),
        "quantize": ("quantization preset", quantization_presets.PRESETS),
    }
    if of not in kinds:
        raise UsageError(f"Preset '{name}' is of {of!r}: synthesize and quantize have presets.")
    kind, own = kinds[of]

    def decorate(function: Options) -> Options:
        code = _code("Preset", function)
        options = code()
        if not isinstance(options, Mapping) or "preset" in options:
            told = "one with a key 'preset'" if isinstance(options, Mapping) else type(options).__name__
            raise UsageError(f"Preset '{name}' must return options, key -> value, it returned {told}.")
        summary = (inspect.getdoc(function) or "").partition("\n")[0]
        register(Registration(kind, name, Preset(summary, code.name, dict(options)), code), own)
        return function

    return decorate


def _code(kind: str, of: Any) -> UserCode:
    """The function or class with its file, and that file's hash; in a notebook, that of its own text."""
    module = sys.modules.get(of.__module__)
    place = getattr(module, "__file__", None)
    file = Path(place) if place else None
    if file is not None and file.is_file():
        sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
        return UserCode(kind, f"{file}:{of.__qualname__}", of, file, sha256)
    try:
        text = inspect.getsource(of)
    except (OSError, TypeError):
        return UserCode(kind, f"{of.__module__}:{of.__qualname__}", of, None, None)
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    return UserCode(kind, f"{of.__module__}:{of.__qualname__}", of, None, sha256)


def _told(weight: type[LearnedWeight], code: UserCode) -> type[LearnedWeight]:
    """The class, whose own methods say where they failed."""

    def guarded(method: str) -> Callable[..., Any]:
        inner = getattr(weight, method)

        @wraps(inner)
        def call(*args: Any, **kwargs: Any) -> Any:
            with code.running(f"in {method}()"):
                return inner(*args, **kwargs)

        return call

    methods = {name: guarded(name) for name in ("__init__", "parts", "codes")}
    return type(weight.__name__, (weight,), methods)
