"""A second try in float32: bfloat16 overflows or loses digits where float32 does not, and some operations lack it."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType

import torch

from genie_cli.errors import NumbersError
from genie_cli.runtime.context import RunContext
from genie_cli.runtime.progress import Note
from genie_cli.runtime.shortage import is_out_of_memory

_LONGEST_REASON = 200
"""Characters of PyTorch's message that a note repeats."""


def may_lack_arithmetic(error: BaseException | None) -> bool:
    """True for the kinds of error that PyTorch raises where an operation lacks a dtype, or gets two that differ.

    Its words for it are many, and some name no dtype at all (oneDNN's: "could not create a primitive descriptor"). A
    lack of memory is none of them.
    """
    return isinstance(error, RuntimeError | TypeError | ValueError) and not is_out_of_memory(error)


def first_line(error: BaseException) -> str:
    """The reason in PyTorch's words, cut to one line."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return line if len(line) <= _LONGEST_REASON else f"{line[:_LONGEST_REASON]}..."


class Attempt:
    """One try of a part of the work: a context manager that holds back the error which a second try may avoid.

    Attributes:
        context: what to run on.
        checkpoint: name of the checkpoints of this try. The second try starts anew and has its own: a checkpoint of the
            first one may already hold the cause.
    """

    def __init__(self, context: RunContext, checkpoint: str) -> None:
        """A try on `context`."""
        self.context, self.checkpoint = context, checkpoint
        self.has_failed = False

    def __enter__(self) -> Attempt:
        """The try itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        """Hold back a `NumbersError` and what `may_lack_arithmetic`, unless the arithmetic was float32."""
        is_reason = isinstance(error, NumbersError) or may_lack_arithmetic(error)
        self.has_failed = is_reason and self.context.dtype != torch.float32
        if self.has_failed:
            self.context.report(Note(f"{_said(error)} It is tried again in float32.", warning=True))
        return self.has_failed


def _said(error: BaseException | None) -> str:
    if isinstance(error, NumbersError) or error is None:
        return str(error)
    return f"bfloat16 cannot be used: {first_line(error)}."


def float32_retried(context: RunContext, part: str) -> Iterator[Attempt]:
    """Tries of the part of the work called `part`: one, and a second in float32 where the first one fails in bfloat16.

    Use::

        for attempt in float32_retried(context, "unit3"):
            with attempt:
                result = work(attempt.context, attempt.checkpoint)
    """
    first = Attempt(context, part)
    yield first
    if first.has_failed:
        yield Attempt(context.in_float32(), f"{part}.float32")
