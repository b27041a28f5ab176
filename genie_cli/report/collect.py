"""Files of runs, recognised by what they hold, and put together by the hash of the network they are about."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from genie_cli.artifacts.details import Details, read_details
from genie_cli.artifacts.export_report import exported_file
from genie_cli.artifacts.images import ImageSet, load_images
from genie_cli.artifacts.json_kind import json_kind
from genie_cli.artifacts.metadata import sniff, validate
from genie_cli.artifacts.metrics import read_json, read_metrics
from genie_cli.artifacts.network_size import NetworkSize, network_size
from genie_cli.artifacts.quantized import QuantizedMetadata
from genie_cli.artifacts.quantized_folder import METRICS_FILE, STEP_SIZES_FILE, WEIGHTS_FILE
from genie_cli.artifacts.unit_figures import UnitFigures, read_units
from genie_cli.errors import InputError, UsageError
from genie_cli.evaluation.comparison import read_rows

_DEEPEST = 4
"""Folders inside of folders that are looked through."""
_SYNTHESIS_LOG = ["batch", "step", "loss", "latent_lr"]
_UNIT_LOG = ["unit", "step", "loss", "held_out_loss"]
_FACTS = {"model": "teacher", "preset": "preset", "protocol": "protocol"}
"""Fact of a metrics file -> field of the metadata."""
_BITS = ("weight_bits", "activation_bits")


@dataclass(frozen=True)
class QuantizedFolder:
    """A quantized network, without its tensors."""

    metadata: QuantizedMetadata
    size: NetworkSize
    units: tuple[UnitFigures, ...]
    details: Details | None


@dataclass
class ReportedRun:
    """All that is known of one network; at least one part is there.

    Attributes:
        name: the folder's name, or that of the file of figures.
        quantized: the quantized folder.
        evaluation: the file of ``genie evaluate --out``.
        figures: the same as a row of a table, checked.
        exports: name of a file -> report of ``genie export``.
        performance: seconds and memory of the quantization.
    """

    name: str
    quantized: QuantizedFolder | None = None
    evaluation: dict[str, Any] | None = None
    figures: dict[str, Any] = field(default_factory=dict)
    exports: dict[str, dict[str, Any]] = field(default_factory=dict)
    performance: dict[str, Any] | None = None


@dataclass
class Found:
    """The files of all RUNs.

    Attributes:
        runs: what is known of each network, in the order of their names.
        images: name -> image set.
        synthesis: name -> batch -> its (step, loss).
        speeds: rows of ``genie benchmark --json``.
        evaluations: the files of figures, for the tables.
    """

    runs: list[ReportedRun] = field(default_factory=list)
    images: dict[str, ImageSet] = field(default_factory=dict)
    synthesis: dict[str, dict[int, list[tuple[int, float]]]] = field(default_factory=dict)
    speeds: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[Path] = field(default_factory=list)


def collect(parts: Sequence[Path]) -> Found:
    """Read what the parts of RUNs are: quantized folders, image sets, files of figures, loss curves.

    Raises:
        InputError: a file that cannot be read or is none of genie's.
        UsageError: a file is given twice.
    """
    _refuse_twice(parts)
    found = Found()
    loose: list[tuple[Path, dict[str, Any]]] = []
    names = _names([part for part in parts if part.is_dir()])
    for path in parts:
        if path.is_dir():
            found.runs.append(ReportedRun(names[path], _read_folder(path)))
        elif path.suffix == ".safetensors":
            found.images[_unused(path.stem, found.images)] = load_images(path)
        elif path.suffix == ".csv":
            curves = _read_curves(path)
            if curves:
                found.synthesis[_unused(path.stem, found.synthesis)] = curves
        else:
            loose.append((path, _read_json(path)))
    loose.sort(key=lambda pair: "seconds" in pair[1])  # seconds are found by the names that the others give
    for path, fields in loose:
        _place(found, path, fields)
    found.runs.sort(key=lambda run: run.name)
    return found


def parts_of(path: Path) -> Iterator[Path]:
    """The files and quantized folders that a RUN stands for.

    A file that is named has to be one that a report reads. In a folder, whatever genie did not write is passed over.

    Raises:
        InputError: a file that no report reads, or a folder that holds nothing of genie's.
    """
    if path.is_dir() and not (path / WEIGHTS_FILE).is_file():
        parts = list(_inside(path, _DEEPEST))
        if not parts:
            raise InputError(
                f"Folder {path} holds nothing that genie wrote: give a quantized folder, an image set, metrics or "
                "export files, or a folder of these."
            )
        yield from parts
    elif path.is_dir():
        yield path
    elif not path.exists():
        raise InputError(f"{path} does not exist: give a quantized folder, an image set or a metrics file.")
    elif path.name in (WEIGHTS_FILE, STEP_SIZES_FILE) or (path.name == METRICS_FILE and _is_quantized(path.parent)):
        yield path.parent
    elif path.suffix in (".safetensors", ".csv", ".json"):
        yield path
    else:
        raise InputError(
            f"{path} is no file that a report reads: give .safetensors, .json or .csv files of genie, or folders."
        )


def _is_quantized(folder: Path) -> bool:
    return (folder / WEIGHTS_FILE).is_file() and (folder / STEP_SIZES_FILE).is_file()


def _inside(folder: Path, depth: int) -> Iterator[Path]:
    if _is_quantized(folder):
        yield folder
        return
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            if depth > 1:
                yield from _inside(entry, depth - 1)
        elif _is_ours(entry):
            yield entry


def _is_ours(path: Path) -> bool:
    """True if a file that was come across is one that a report reads."""
    try:
        if path.suffix == ".safetensors":
            return bool(sniff(path)["kind"] == "images")
        if path.suffix == ".csv":
            return _heading(path) in (_SYNTHESIS_LOG, _UNIT_LOG)
        return path.suffix == ".json" and _recognised(read_json(path)) is not None
    except InputError:
        return False


def _refuse_twice(parts: Sequence[Path]) -> None:
    seen: set[Path] = set()
    for part in parts:
        place = part.parent.resolve() / part.name
        if place in seen:
            raise UsageError(f"{part} is given twice.")
        seen.add(place)


def _names(folders: Sequence[Path]) -> dict[Path, str]:
    """A name for each folder: its own, or with its parent's where two share one."""
    absolute = {folder: folder.absolute() for folder in folders}
    own = [path.name for path in absolute.values()]
    return {
        folder: path.name if own.count(path.name) == 1 else f"{path.parent.name}/{path.name}"
        for folder, path in absolute.items()
    }


def _unused(name: str, taken: Iterable[str]) -> str:
    names, number, found = set(taken), 2, name
    while found in names:
        found, number = f"{name} ({number})", number + 1
    return found


def _read_folder(folder: Path) -> QuantizedFolder:
    metadata = validate(QuantizedMetadata, sniff(folder), folder / WEIGHTS_FILE)
    metrics = folder / METRICS_FILE
    return QuantizedFolder(
        metadata, network_size(folder), read_units(read_metrics(metrics), metrics), read_details(folder)
    )


def _recognised(content: Any) -> str | None:
    """The kind of a JSON file."""
    if isinstance(content, list):
        return "speeds" if content and all(_is_speed(row) for row in content) else None
    return json_kind(content) if isinstance(content, dict) else None


def _is_speed(row: Any) -> bool:
    if not isinstance(row, dict) or not {"file", "weights", "runtime", "threads", "milliseconds"} <= row.keys():
        return False
    times = row["milliseconds"]
    return isinstance(times, dict) and all(_is_number(value) for value in times.values())


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _read_json(path: Path) -> dict[str, Any]:
    content = read_json(path)
    kind = _recognised(content)
    if kind is None:
        raise InputError(f"{path} is none of the files that genie's commands write: evaluate, export, benchmark.")
    return {"kind": "speeds", "rows": content} if kind == "speeds" else {**content, "kind": kind}


def _place(found: Found, path: Path, fields: dict[str, Any]) -> None:
    """Put a file of figures where it belongs."""
    kind = fields["kind"]
    name = path.name.removesuffix(".json")
    if kind == "speeds":
        found.speeds.extend(fields["rows"])
    elif kind == "export":
        _check_export(path, fields)
        file = exported_file(path, fields)
        name = Path(file).stem if "format" in fields else file
        run = _by_hash(found.runs, fields.get("content_sha256"), name) or _named(found.runs, name)
        _or_new(found, run, name).exports[file] = fields
    elif kind == "performance":
        run = _named(found.runs, name.removeprefix("quantize-"))
        if run is not None:
            run.performance = fields
    elif kind == "evaluation":
        found.evaluations.append(path)
        free = [run for run in found.runs if run.evaluation is None]
        sha256 = fields.get("quantized_sha256")
        own = _of_hash(free, sha256) if sha256 is not None else free
        run = _named(own, name) or _by_facts(own, fields) or (own[0] if sha256 is not None and len(own) == 1 else None)
        run = _or_new(found, run, name)
        run.evaluation, (run.figures,) = fields, read_rows([path])


def _check_export(path: Path, fields: Mapping[str, Any]) -> None:
    for key in ("num_bytes", "agreement"):
        if not _is_number(fields.get(key)):
            raise InputError(f"{path} is no report of 'genie export': its '{key}' is not a number.")


def _or_new(found: Found, run: ReportedRun | None, name: str) -> ReportedRun:
    if run is None:
        run = ReportedRun(_unused(name, (run.name for run in found.runs)))
        found.runs.append(run)
    return run


def _of_hash(runs: Iterable[ReportedRun], sha256: Any) -> list[ReportedRun]:
    """Runs whose weights have this hash: several, where the same weights stand beside other step sizes."""
    if sha256 is None:
        return []
    return [run for run in runs if run.quantized is not None and run.quantized.metadata.content_sha256 == sha256]


def _by_hash(runs: Iterable[ReportedRun], sha256: Any, name: str) -> ReportedRun | None:
    """The run whose weights have this hash; among several the one of this name, or none of them."""
    own = _of_hash(runs, sha256)
    return own[0] if len(own) == 1 else _named(own, name)


def _named(runs: Iterable[ReportedRun], name: str) -> ReportedRun | None:
    return next((run for run in runs if run.name == name), None)


def _by_facts(runs: Iterable[ReportedRun], fields: Mapping[str, Any]) -> ReportedRun | None:
    """The one run of the same network, recipe and bits; None: none, or several could be meant."""
    own = []
    for run in runs:
        if run.quantized is None:
            continue
        made = run.quantized.metadata
        known = {fact: getattr(made, key) for fact, key in _FACTS.items()}
        known |= {key: made.config.get(key) for key in _BITS}
        if all(fields.get(fact) == value for fact, value in known.items()):
            own.append(run)
    return own[0] if len(own) == 1 else None


def _heading(path: Path) -> list[str]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return next(csv.reader(file), [])
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{path} cannot be read: {' '.join(str(error).split())}.") from error


def _read_curves(path: Path) -> dict[int, list[tuple[int, float]]]:
    """Batch -> its steps and losses; nothing for the log of a quantization, which the folder's details hold."""
    heading = _heading(path)
    if heading == _UNIT_LOG:
        return {}
    if heading != _SYNTHESIS_LOG:
        raise InputError(f"{path} is no loss curve of 'genie synthesize --log' or 'genie quantize --log'.")
    curves: dict[int, list[tuple[int, float]]] = {}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                curves.setdefault(int(row["batch"]), []).append((int(row["step"]), float(row["loss"])))
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise InputError(f"{path} is a damaged loss curve: {' '.join(str(error).split())}.") from error
    return curves
