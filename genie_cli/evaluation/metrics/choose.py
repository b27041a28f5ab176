"""The metrics of one evaluation, from what the user names and what the data are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import fx

from genie_cli.data.samples import Samples
from genie_cli.errors import InputError, UsageError, unknown_name
from genie_cli.evaluation.metrics.classification import Accuracy, Agreement
from genie_cli.evaluation.metrics.detection import Detection, check_installed
from genie_cli.evaluation.metrics.fidelity import Fidelity
from genie_cli.evaluation.metrics.metric import Metric
from genie_cli.evaluation.metrics.network_outputs import NetworkOutputs, as_computed, as_returned
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
        view: the graph of which these outputs are, of a captured graph.
        decode: turns outputs into what the metrics take.
        code: the metric's own code.
        notes: what the user should know of the choice.
    """

    name: str
    own: Metric | None
    teacher: Metric | None
    pair: Metric | None
    view: Callable[[fx.GraphModule], fx.GraphModule] = as_returned
    decode: UserCode | None = None
    code: UserCode | None = None
    notes: tuple[str, ...] = ()

    def codes(self) -> dict[str, UserCode]:
        """The user's code that takes part: ``metric`` and ``decode``."""
        return {name: code for name, code in (("metric", self.code), ("decode", self.decode)) if code is not None}

    def all(self) -> list[Metric]:
        """Those that there are."""
        return [metric for metric in (self.own, self.teacher, self.pair) if metric is not None]


def choose_metrics(wanted: Wanted, samples: Samples, outputs: NetworkOutputs, has_teacher: bool) -> Metrics:
    """The metrics for some images.

    Without a wish it is the one of the images' targets, or fidelity where they have none. Where they have labels, and
    the network no class scores, a student is measured by its fidelity.

    Args:
        wanted: what the user asks for.
        samples: the images.
        outputs: those of the network.
        has_teacher: a second network is there to compare with.

    Raises:
        UsageError: an unknown metric, one that does not suit the data or the network or lacks an option, or packages
            that it needs.
        InputError: code of the user's that fails.
    """
    name, notes = (wanted.metric, ()) if wanted.metric is not None else _default(wanted, samples, outputs, has_teacher)
    decode = load_code(wanted.decode, "Decode", "function") if wanted.decode is not None else None
    if wanted.ignore_class is not None and name != "segmentation":
        raise UsageError(f"--ignore-class {wanted.ignore_class} is for --metric segmentation, and this is {name}.")
    if name == "fidelity":
        return _fidelity(outputs, decode, has_teacher, notes)
    if name not in BUILT_IN and not names_code(name):
        raise unknown_name("metric", name, BUILT_IN, f": {', '.join(BUILT_IN)} or FILE.py:FACTORY")
    if not samples.has_targets:
        raise UsageError(f"Metric {name} compares outputs with targets, and the data have none: use --metric fidelity.")
    if name in BUILT_IN and samples.task is not None and samples.task != name:
        raise UsageError(
            f"Metric {name} needs {_TARGETS[name]}, and the data give {_TARGETS[samples.task]}: use --metric "
            f"{samples.task}, or other data."
        )
    if name == "classification":
        metrics = _classification(samples, outputs, decode)
    elif name == "segmentation":
        metrics = _segmentation(wanted, samples, outputs, decode)
    elif name == "detection":
        metrics = _detection(decode)
    else:
        metrics = _own(name, decode)
    return metrics if has_teacher else replace(metrics, teacher=None, pair=None)


def _default(
    wanted: Wanted, samples: Samples, outputs: NetworkOutputs, has_teacher: bool
) -> tuple[str, tuple[str, ...]]:
    if samples.task is None and samples.has_targets:
        raise UsageError(
            "The data give targets of their own kind: name what to measure with --metric, "
            f"{', '.join(BUILT_IN)} or FILE.py:FACTORY."
        )
    if samples.task == "classification" and outputs.decision is None and wanted.decode is None and has_teacher:
        return "fidelity", (f"no accuracy is measured: {outputs.why_no_logits}.",)
    return samples.task or "fidelity", ()


def _classification(samples: Samples, outputs: NetworkOutputs, decode: UserCode | None) -> Metrics:
    if decode is None and outputs.decision is None:
        raise UsageError(
            f"There is no accuracy to measure: {outputs.why_no_logits}. Use another --metric, or --decode "
            "FILE.py:FUNCTION. With --quantized, --metric fidelity compares the outputs of a quantized network with "
            "the network's own."
        )
    decision = outputs.decision if decode is None else None
    notes: tuple[str, ...] = ()
    if decision is not None and decision.is_binary:
        kind = "probability" if decision.threshold else "logit"
        notes = (f"the network has one output: a {kind} above {decision.threshold:g} is class 1, else class 0.",)
    own, teacher = (Accuracy(decision, samples.class_names) for _ in range(2))
    view = outputs.scores if decode is None else as_returned
    return Metrics("classification", own, teacher, Agreement(decision), view, decode, notes=notes)


def _segmentation(wanted: Wanted, samples: Samples, outputs: NetworkOutputs, decode: UserCode | None) -> Metrics:
    is_squeezed = samples.task == "segmentation" and samples.code_sha256 is None
    own, teacher = (Segmentation(wanted.ignore_class, outputs.threshold, is_squeezed) for _ in range(2))
    return Metrics("segmentation", own, teacher, PixelAgreement(outputs.threshold), decode=decode)


def _detection(decode: UserCode | None) -> Metrics:
    check_installed()
    if decode is None:
        raise UsageError(
            "Metric detection needs boxes: name the function that makes them of the network's outputs, --decode "
            "FILE.py:FUNCTION."
        )
    return Metrics("detection", Detection(), Detection(), None, decode=decode)


def _fidelity(outputs: NetworkOutputs, decode: UserCode | None, has_teacher: bool, notes: tuple[str, ...]) -> Metrics:
    if decode is not None:
        raise UsageError("Metric fidelity compares outputs as they are: leave out --decode.")
    if not has_teacher:
        raise UsageError(
            "Metric fidelity compares a network with its teacher: give --quantized FOLDER, or --folded. For figures of "
            "the teacher itself use data with targets."
        )
    return Metrics("fidelity", None, None, Fidelity(outputs.names), as_computed, notes=notes)


def _own(name: str, decode: UserCode | None) -> Metrics:
    code = load_code(name, "Metric")
    own, teacher = OwnMetric(code), OwnMetric(code)
    if teacher.object is own.object:
        raise InputError(f"Metric '{name}' must give a new object each time: it may have to measure two networks.")
    return Metrics(code.name, own, teacher, None, decode=decode, code=code)
