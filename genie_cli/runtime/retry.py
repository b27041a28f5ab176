"""A second try in float32: bfloat16 overflows or loses digits where float32 does not."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType

import torch

from genie_cli.errors import NumbersError
from genie_cli.runtime.context import RunContext
from genie_cli.runtime.progress import Note


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
        """Hold back a `NumbersError`, unless the arithmetic was float32."""
        self.has_failed = isinstance(error, NumbersError) and self.context.dtype != torch.float32
        if self.has_failed:
            self.context.report(Note(f"{error} It is tried again in float32.", warning=True))
        return self.has_failed


def float32_retried(context: RunContext, part: str) -> Iterator[Attempt]:
    """Tries of the part of the work called `part`: one, and a second in float32 where the first gave NaN or infinity.

    Use::

        for attempt in float32_retried(context, "unit3"):
            with attempt:
                result = work(attempt.context, attempt.checkpoint)
    """
    first = Attempt(context, part)
    yield first
    if first.has_failed:
        yield Attempt(context.in_float32(), f"{part}.float32")
