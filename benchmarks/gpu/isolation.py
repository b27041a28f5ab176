"""A section in a process of its own, which is ended at the section's deadline, with all that it has started."""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import sys
import tempfile
import time
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

from gpu.bench import Bench, Options, SkippedError, error_text
from gpu.sections import SECTIONS, Section

_NOTICE = 2.0
"""Seconds before the deadline at which the process writes where it is."""
_LONGEST_END = 5.0
"""Seconds that a killed process is waited for: one that hangs in a driver or on a disk may outlive its end."""
_LONGEST_OUTPUT = 1500
"""Characters that are kept of the output of a process that did not end well."""
_FINDINGS = {"figure": "figures", "check": "checks", "skipped": "skipped", "error": "errors"}


def run_section(section: Section, options: Options, seconds: float, processes: BaseContext) -> dict[str, Any]:
    """The findings of a section.

    Args:
        section: what to run.
        options: of the command line.
        seconds: its deadline.
        processes: how processes are started.

    Returns:
        JSON values: section; status: ok, failed, timed out or skipped; seconds; then, where there are any: figures,
        checks, skipped (part -> why), errors (part -> text), reason (of a skipped section), and of a process that did
        not end well its output: where it was, or the last of it.
    """
    with tempfile.TemporaryDirectory(prefix="genie-check-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        started = time.monotonic()
        process: Any = processes.Process(target=_work, args=(section.name, options, seconds, folder))
        process.start()
        try:
            process.join(seconds)
            is_late = process.is_alive()
        finally:
            if process.is_alive():  # here too where this process is interrupted
                _end(process.pid)
            process.join(_LONGEST_END)
        row: dict[str, Any] = {"section": section.name, "status": "ok", "seconds": round(time.monotonic() - started, 1)}
        row.update(_findings(folder))
        output = _read(folder / "output").strip()
    if is_late:
        row.update(status="timed out", output=_shown(output))
    elif process.exitcode:
        row.update(status="failed", output=f"exit code {process.exitcode}\n{_shown(output)}")
    elif "reason" in row:
        row["status"] = "skipped"
    elif "errors" in row or not all(row.get("checks", {}).values()):
        row["status"] = "failed"
    return row


def _work(name: str, options: Options, seconds: float, folder: Path) -> None:
    """Run a section: the main function of its process."""
    os.setsid()  # one group with all that it starts
    output = os.open(folder / "output", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(output, stream)
    faulthandler.enable(2)
    faulthandler.dump_traceback_later(max(0.1, seconds - _NOTICE), file=2)
    section = next(one for one in SECTIONS if one.name == name)
    findings = folder / "findings"
    try:
        section.run(Bench(options, seconds, findings))
    except SkippedError as reason:
        _append(findings, "reason", str(reason))
    except BaseException:
        _append(findings, "error", error_text())
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # a GPU in a bad state may hang at the end of Python


def _append(findings: Path, kind: str, text: str) -> None:
    with findings.open("a", encoding="utf-8") as file:
        file.write(json.dumps([kind, "section", text]) + "\n")


def _findings(folder: Path) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for line in _read(folder / "findings").splitlines():
        try:
            kind, name, value = json.loads(line)
        except ValueError:  # the process was ended as it wrote it
            continue
        if kind == "reason":
            row["reason"] = value
        else:
            row.setdefault(_FINDINGS[kind], {})[name] = value
    return row


def _shown(output: str) -> str:
    """Where a process was, by Python's list of its calls, innermost first; without one, the last that it said."""
    start = output.rfind("Fatal Python error")
    if start < 0:
        start = output.rfind("Thread 0x")  # the main thread comes last
    return output[start:][:_LONGEST_OUTPUT] if start >= 0 else output[-_LONGEST_OUTPUT:]


def _read(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""


def _end(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:  # it has no group of its own yet
        os.kill(pid, signal.SIGKILL)
