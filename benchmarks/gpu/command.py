"""The command line of the check: sections one after the other, a JSON line each, and a table last."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from gpu.bench import Options
from gpu.isolation import run_section
from gpu.sections import SECTIONS

_TOTAL_SECONDS = 435.0
"""All sections end within that."""
_SHOWN_LINES = 6
"""Lines of a longer text that the table shows."""
_LEAST_SECONDS = 5.0
"""A section is not started with less time than that."""


def main() -> None:
    """Run the sections that were asked for; the exit code is 1 where one of them found something wrong."""
    args = _arguments()
    options = Options(args.device, args.tiny, None if args.kits is None else args.kits.resolve())
    processes = multiprocessing.get_context(args.start_method)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # a section under way is ended then
    deadline = time.monotonic() + args.slack * _TOTAL_SECONDS
    rows: list[dict[str, Any]] = []
    for section in SECTIONS:
        if section.name not in args.only or section.name in args.skip:
            continue
        left = deadline - time.monotonic()
        if left < _LEAST_SECONDS:
            rows.append({"section": section.name, "status": "skipped", "seconds": 0.0, "reason": "no time is left"})
        else:
            rows.append(run_section(section, options, min(args.slack * section.seconds, left), processes))
        sys.stdout.write(json.dumps(rows[-1]) + "\n")
        sys.stdout.flush()
        if args.out is not None:
            args.out.write_text(json.dumps({"arguments": sys.argv[1:], "sections": rows}, indent=1) + "\n")
    sys.stdout.write(table(rows))
    sys.stdout.flush()
    is_wrong = any(row["status"] not in ("ok", "skipped") for row in rows)
    os._exit(int(is_wrong))  # Python would wait for a process that cannot be ended


def _arguments() -> argparse.Namespace:
    names = [section.name for section in SECTIONS]
    parser = argparse.ArgumentParser(description=f"Check genie on a GPU. Sections, in their order: {', '.join(names)}.")
    parser.add_argument("--only", type=_listed, default=names, help="sections, comma-separated; default all")
    parser.add_argument("--skip", type=_listed, default=[], help="sections, comma-separated")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small sizes: runs through on a CPU")
    parser.add_argument("--kits", type=Path, help="folder that holds cifar10/ and imagenet/, for accuracy")
    parser.add_argument("--out", type=Path, help="JSON file to write, anew after each section")
    parser.add_argument("--slack", type=float, default=1.0, help="multiply all deadlines: for a busy machine")
    parser.add_argument(
        "--start-method", choices=("fork", "spawn"), default="fork", help="of processes; spawn imports all anew in each"
    )
    args = parser.parse_args()
    if unknown := {*args.only, *args.skip} - {*names}:
        parser.error(f"no section is called {', '.join(sorted(unknown))}: the sections are {', '.join(names)}")
    return args


def _listed(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def table(rows: list[dict[str, Any]]) -> str:
    """Sections with their findings, one per line."""
    lines = []
    for row in rows:
        checks = row.get("checks", {})
        passed = f"{sum(checks.values())} of {len(checks)} checks" if checks else ""
        lines.append(f"\n{row['section']:<12}{row['status']:<10}{row['seconds']:>6.1f} s   {passed}".rstrip())
        lines += [f"  WRONG: {name}" for name, has_passed in checks.items() if not has_passed]
        texts = [line for kind in ("reason", "output") for line in row.get(kind, "").splitlines()[:_SHOWN_LINES]]
        lines += [f"  {line}" for line in texts]
        lines += [f"  {name}: {text.splitlines()[-1]}" for name, text in row.get("errors", {}).items()]
        lines += [f"  {name}: skipped, {reason}" for name, reason in row.get("skipped", {}).items()]
        lines += [f"  {name:<58} {_cell(value)}" for name, value in row.get("figures", {}).items()]
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items()) or "none"
    if isinstance(value, list):
        return "".join(f"\n      {_cell(item)}" for item in value) or "none"
    return str(value)
