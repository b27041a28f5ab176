"""The things that the units of a quantization share, and the place of the work among all its steps."""

from __future__ import annotations

from dataclasses import dataclass, replace

from genie_cli.quantization.activations.pool import ActivationPool
from genie_cli.quantization.plan import QuantizationPlan
from genie_cli.quantization.result import STAGE
from genie_cli.runtime.context import RunContext
from genie_cli.runtime.progress import Advanced, Paced, Reporter


@dataclass(frozen=True)
class Stage:
    """The things that all units share.

    Attributes:
        plan: what to do.
        pool: where activations are kept.
        context: what to run on.
    """

    plan: QuantizationPlan
    pool: ActivationPool
    context: RunContext


@dataclass(frozen=True)
class StageProgress:
    """The place of the work: reports the steps of a unit among those of the network.

    Attributes:
        report: receives the events.
        part: the unit's name in the work folder.
        where: the place of the work, for a person to read.
        before: steps of the network before those that are counted.
        share_before: their share of the cost of all steps.
        step_share: the share of one step of the unit.
    """

    report: Reporter
    part: str
    where: str
    before: int
    share_before: float
    step_share: float

    def __call__(self, step: int, loss: float) -> None:
        """Report a step and its loss."""
        self.report(Advanced(STAGE, self.before + step, self.where, {"loss": loss}))

    def pace(self, step: int, found: bool) -> None:
        """Report that a step is over, and whether an earlier run took it."""
        share = self.share_before + step * self.step_share
        self.report(Paced(STAGE, self.before + step, min(share, 1.0), found))

    def behind(self, num_steps: int) -> StageProgress:
        """The place after so many steps of the unit."""
        share_before = self.share_before + num_steps * self.step_share
        return replace(self, before=self.before + num_steps, share_before=share_before)
