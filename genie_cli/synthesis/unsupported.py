"""A step of synthesis on two images, before the work: it shows whether networks can be computed in an arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

from genie_cli.config import SynthesizeConfig
from genie_cli.models.teacher import Teacher
from genie_cli.runtime.context import RunContext
from genie_cli.runtime.retry import first_line, may_lack_arithmetic
from genie_cli.runtime.shortage import is_out_of_memory
from genie_cli.synthesis.discrepancy import Student
from genie_cli.synthesis.distill import Batch, teacher_networks


def unsupported_synthesis(
    teacher: Teacher,
    config: SynthesizeConfig,
    context: RunContext,
    others: Sequence[Teacher] = (),
    student: Student | None = None,
) -> str | None:
    """The operation that keeps a step from being computed in the context's arithmetic, in words.

    Args:
        teacher: see `synthesize_images`.
        config: see there.
        context: device and arithmetic.
        others: see there.
        student: see there.

    Returns:
        None where a step can be computed, or where two images already take more memory than there is.

    Raises:
        InputError: a network without batch norms.
    """
    networks = teacher_networks(teacher, others, config, context)
    try:
        short = config.model_copy(update={"num_steps": 1})
        with closing(Batch(networks, teacher, student, 0, 2, short, context)) as batch:
            batch.step()
    except Exception as error:
        if is_out_of_memory(error):
            return None
        if not may_lack_arithmetic(error):
            raise
        found = (network.unsupported_operation() for network in networks)
        return next(filter(None, found), f"the network ({first_line(error)})")
    return None
