"""The shared parts of the benchmarks: hardware, stopwatch, peak memory, a table and a JSON file."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from genie_cli.runtime.device import resolve_device
from genie_cli.runtime.progress import Advanced, Event
from genie_cli.runtime.settings import configure_process

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Stopwatch:
    """A reporter that keeps the seconds per step between progress events of one place (batch or unit)."""

    def __init__(self) -> None:
        """Start with nothing measured."""
        self.per_step: dict[str, list[float]] = {}
        self._last: tuple[str, int, float] | None = None

    def __call__(self, event: Event) -> None:
        """Take one event."""
        if not isinstance(event, Advanced):
            return
        now = time.perf_counter()
        if self._last is not None and self._last[0] == event.detail and event.done > self._last[1]:
            seconds = (now - self._last[2]) / (event.done - self._last[1])
            self.per_step.setdefault(event.detail, []).append(seconds)
        self._last = (event.detail, event.done, now)

    def medians(self) -> dict[str, float]:
        """Place -> median seconds per step."""
        return {place: statistics.median(times) for place, times in self.per_step.items()}


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    made = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    made.add_argument("--device", default="auto")
    made.add_argument("--threads", type=int, default=0, help="CPU threads; 0: torch's own choice")
    made.add_argument("--out", type=Path, help="JSON file to write")
    return made


def prepare(args: argparse.Namespace) -> torch.device:
    """The device, with the settings that the commands use."""
    if args.threads:
        torch.set_num_threads(args.threads)
    device = resolve_device(args.device)
    if device.type != "cpu" and getattr(args, "baseline", False):
        raise SystemExit("--baseline is for CPUs: on a GPU it would be compared across devices")
    configure_process(device, deterministic=True)
    return device


def hardware(device: torch.device) -> dict[str, Any]:
    """Names and versions that a figure depends on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()
    return {
        "device": name,
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def finish(rows: Sequence[dict[str, Any]], device: torch.device, out: Path | None) -> None:
    """Print the rows as a table, and write them with the hardware as JSON."""
    columns = [key for key in rows[0] if not isinstance(rows[0][key], dict | list)]
    cells = [columns, *([_cell(row.get(column)) for column in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    text = "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in cells)
    sys.stdout.write(f"{json.dumps(hardware(device))}\n{text}\n")
    if out is not None:
        out.write_text(
            json.dumps({"hardware": hardware(device), "rows": list(rows)}, indent=2) + "\n", encoding="utf-8"
        )


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
