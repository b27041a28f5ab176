"""The metrics of one evaluation, from what the user names and what the data are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from genie_cli.data.samples import Samples
from genie_cli.errors import InputError, UsageError, unknown_name
from genie_cli.evaluation.metrics.classification import Accuracy, Agreement
from genie_cli.evaluation.metrics.decision import Decision
from genie_cli.evaluation.metrics.detection import Detection, check_installed
from genie_cli.evaluation.metrics.fidelity import Fidelity
from genie_cli.evaluation.metrics.metric import Metric
from genie_cli.evaluation.metrics.own import OwnMetric
from genie_cli.evaluation.metrics.segmentation import PixelAgreement, Segmentation
from genie_cli.runtime.user_code import UserCode, load_code, names_code

BUILT_IN = ("classification", "segmentation", "detection", "fidelity")
_TARGETS = {"classification": "a label per image", "segmentation": "class maps", "detection": "boxes"}


@dataclass(frozen=True)
class Wanted:
    """The user's wishes.

    Attributes:
        metric: one of `BUILT_IN`, or ``FILE.py:FACTORY``; None: the one that suits the data.
        decode: ``FILE.py:FUNCTION`` that turns the network's outputs into what the metric takes; None: as they are.
        ignore_class: class that does not count in a segmentation.
    """

    metric: str | None = None
    decode: str | None = None
    ignore_class: int | None = None


@dataclass(frozen=True)
class Metrics:
    """The metrics of one evaluation.

    Attributes:
        name: for people and files: without folders.
        own: of the network's outputs and the targets; None: it takes no targets.
        teacher: the same of the teacher; None where there is none.
        pair: of the outputs of both; None where there is no teacher, or nothing to compare.
        decode: turns outputs into what the metrics take.
        code: the metric's own code.
    """

    name: str
    own: Metric | None
    teacher: Metric | None
    pair: Metric | None
    decode: UserCode | None = None
    code: UserCode | None = None

    def codes(self) -> dict[str, UserCode]:
        """The user's code that takes part: ``metric`` and ``decode``."""
        return {name: code for name, code in (("metric", self.code), ("decode", self.decode)) if code is not None}

    def all(self) -> list[Metric]:
        """Those that there are."""
        return [metric for metric in (self.own, self.teacher, self.pair) if metric is not None]


def choose_metrics(wanted: Wanted, samples: Samples, decision: Decision, has_teacher: bool) -> Metrics:
    """The metrics for some images.

    Args:
        wanted: what the user asks for.
        samples: the images.
        decision: the rule by which a classifier's outputs become classes.
        has_teacher: a second network is there to compare with.

    Raises:
        UsageError: an unknown metric, one that does not suit the data or lacks an option, or packages that it needs.
        InputError: code of the user's that fails.
    """
    name = wanted.metric or _default(samples)
    decode = load_code(wanted.decode, "Decode", "function") if wanted.decode is not None else None
    if wanted.ignore_class is not None and name != "segmentation":
        raise UsageError(f"--ignore-class {wanted.ignore_class} is for --metric segmentation, and this is {name}.")
    if name == "fidelity":
        return _fidelity(decode, has_teacher)
    if not samples.has_targets:
        raise UsageError(f"Metric {name} compares outputs with targets, and the data have none: use --metric fidelity.")
    if name not in BUILT_IN:
        return _own(name, decode, has_teacher)
    if samples.task is not None and samples.task != name:
        raise UsageError(
            f"Metric {name} needs {_TARGETS[name]}, and the data give {_TARGETS[samples.task]}: use --metric "
            f"{samples.task}, or other data."
        )
    make, pair = _built_in(name, wanted, samples, decision)
    if name == "detection":
        check_installed()
        if decode is None:
            raise UsageError(
                "Metric detection needs boxes: name the function that makes them of the network's outputs, --decode "
                "FILE.py:FUNCTION."
            )
    return Metrics(name, make(), make() if has_teacher else None, pair if has_teacher else None, decode)


def _default(samples: Samples) -> str:
    if samples.task is None and samples.has_targets:
        raise UsageError(
            "The data give targets of their own kind: name what to measure with --metric, "
            f"{', '.join(BUILT_IN)} or FILE.py:FACTORY."
        )
    return samples.task or "fidelity"


def _built_in(
    name: str, wanted: Wanted, samples: Samples, decision: Decision
) -> tuple[Callable[[], Metric], Metric | None]:
    """A maker of a network's metric, and the metric of a pair."""
    if name == "classification":
        known = decision if wanted.decode is None else None
        return lambda: Accuracy(known, samples.class_names), Agreement(known)
    if name == "segmentation":
        threshold, is_squeezed = decision.threshold, samples.task == "segmentation" and samples.code_sha256 is None
        return lambda: Segmentation(wanted.ignore_class, threshold, is_squeezed), PixelAgreement(threshold)
    return Detection, None


def _fidelity(decode: UserCode | None, has_teacher: bool) -> Metrics:
    if decode is not None:
        raise UsageError("Metric fidelity compares outputs as they are: leave out --decode.")
    if not has_teacher:
        raise UsageError(
            "Metric fidelity compares a network with its teacher: give --quantized FOLDER, or --folded. For figures of "
            "the teacher itself use data with targets."
        )
    return Metrics("fidelity", None, None, Fidelity())


def _own(name: str, decode: UserCode | None, has_teacher: bool) -> Metrics:
    if not names_code(name):
        raise unknown_name("metric", name, BUILT_IN, f": {', '.join(BUILT_IN)} or FILE.py:FACTORY")
    code = load_code(name, "Metric")
    own = OwnMetric(code)
    teacher = OwnMetric(code) if has_teacher else None
    if teacher is not None and teacher.object is own.object:
        raise InputError(f"Metric '{name}' must give a new object each time: it measures two networks.")
    return Metrics(code.name, own, teacher, None, decode, code)
