"""Inject faults into real runs: kills at random moments, a full disk, short memory, two runs at once, damaged files.

    python benchmarks/chaos.py --kills 20 --out chaos.json

Every run that is started again has to end in the bytes of a run without a fault. A row counts the faults injected,
those survived, files lost (an output that existed before is gone or changed), and wrong results (an output of other
bytes).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import re
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torchvision  # noqa: F401  (imported before the forks)

import genie_cli.quantization.quantize
import genie_cli.synthesis.synthesize  # noqa: F401
from genie_cli.app import main as main_of_genie
from genie_cli.work.folder import ROOT

SYNTHESIZE = [
    *("synthesize", "--model", "digits_resnet", "--n", "96", "--batch-size", "32", "--num-steps", "100"),
    *("--checkpoint-interval", "0.2"),
]
QUANTIZE = [
    *("quantize", "--model", "digits_resnet", "--images", "images.safetensors", "--num-steps", "100"),
    *("--weight-bits", "2", "--checkpoint-interval", "0.2"),
]
FORK = multiprocessing.get_context("fork")
"""Children start with everything imported, so that a run takes a few seconds and its start hardly any."""


@dataclass
class Row:
    """The results of one kind of fault."""

    fault: str
    injected: int = 0
    survived: int = 0
    lost: int = 0
    wrong: int = 0


class Run:
    """A genie process in `folder`: `genie ARGUMENTS --out OUT` in a fork of this process."""

    def __init__(self, folder: Path, arguments: list[str], out: str, limit: Callable[[], None] | None = None) -> None:
        """Start the process under `limit`."""
        self._messages = folder / f"messages-{time.monotonic_ns()}.txt"
        self._process = FORK.Process(target=self._work, args=(folder, [*arguments, "--out", out], limit))
        self._process.start()

    def _work(self, folder: Path, arguments: list[str], limit: Callable[[], None] | None) -> None:
        os.chdir(folder)
        descriptor = os.open(self._messages, os.O_WRONLY | os.O_CREAT)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.argv = ["genie", *arguments]
        if limit is not None:
            limit()
        main_of_genie()

    def kill(self) -> None:
        """Kill the process with signal 9."""
        self._process.kill()

    def wait(self) -> tuple[int, str]:
        """Wait for the end; returns the exit code and the printed text."""
        self._process.join()
        printed = self._messages.read_text(encoding="utf-8") if self._messages.exists() else ""
        self._messages.unlink(missing_ok=True)
        assert self._process.exitcode is not None
        return self._process.exitcode, printed


def run(folder: Path, arguments: list[str], out: str) -> tuple[int, str]:
    """Exit code and messages of a run without a fault."""
    return Run(folder, arguments, out).wait()


def content(path: Path) -> dict[str, bytes]:
    """The bytes of a file, or of the files of a folder."""
    files = sorted(path.iterdir()) if path.is_dir() else [path] if path.exists() else []
    return {file.name if path.is_dir() else "file": file.read_bytes() for file in files}


def judge(row: Row, folder: Path, arguments: list[str], out: str, wanted: dict[str, bytes]) -> None:
    """Start the same command again, and compare its output with that of the run without a fault."""
    code, messages = run(folder, arguments, out)
    found = content(folder / out)
    row.wrong += code == 0 and found != wanted
    row.survived += code == 0 and found == wanted
    if code != 0 or found != wanted:
        sys.stderr.write(f"{row.fault}: exit code {code}, {messages[-500:]}\n")


def killed(folder: Path, arguments: list[str], wanted: dict[str, bytes], seconds: float, kills: int, end: float) -> Row:
    """Kill runs at random moments between start and end, and start each again; stop after the time `end`."""
    row, draw = Row(f"kill -9 of {arguments[0]}"), random.Random(0)
    for i in range(kills):
        if time.monotonic() > end:
            sys.stderr.write(f"{row.fault}: out of time after {i} of {kills}\n")
            break
        out = f"killed-{arguments[0]}-{i}" + (".safetensors" if arguments[0] == "synthesize" else "")
        process = Run(folder, arguments, out)
        time.sleep(draw.uniform(0.0, 1.0) * seconds)
        process.kill()
        process.wait()
        row.injected += 1
        row.wrong += bool(content(folder / out)) and content(folder / out) != wanted  # whole or not at all
        judge(row, folder, arguments, out, wanted)
    return row


def short_of(what: str, limit: Callable[[], None], folder: Path, arguments: list[str], wanted: dict[str, bytes]) -> Row:
    """Run under a limit that is too low: one message, no traceback, the old output kept; then run without the limit."""
    row, out = Row(what), "short" + (".safetensors" if arguments[0] == "synthesize" else "")
    run(folder, arguments, out)
    code, messages = Run(folder, [*arguments, "--seed", "1"], out, limit).wait()
    row.injected += 1
    row.lost += content(folder / out) != wanted
    row.wrong += "Traceback" in messages or code == 0
    if row.lost or row.wrong:
        sys.stderr.write(f"{what}: exit code {code}, {messages[-800:]}\n")
    judge(row, folder, arguments, out, wanted)
    return row


def short_of_memory(folder: Path, arguments: list[str], wanted: dict[str, bytes]) -> Row:
    """Run with a few MiB beyond the modules' memory: the same bytes, or one message and the same bytes unlimited."""
    row = Row(f"memory short in {arguments[0]}")
    base = 1024 * int(next(iter(re.findall(r"VmData:\s+(\d+)", Path("/proc/self/status").read_text()))))
    for beyond in (8, 64, 128, 256):

        def limit(size: int = base + (beyond << 20)) -> None:
            resource.setrlimit(resource.RLIMIT_DATA, (size, size))

        out = f"memory-{arguments[0]}-{beyond}" + (".safetensors" if arguments[0] == "synthesize" else "")
        code, messages = Run(folder, arguments, out, limit).wait()
        row.injected += 1
        found = content(folder / out)
        is_other = code == 0 and found != wanted and "micro-batches" not in messages  # whose sums round differently
        row.wrong += is_other or (code != 0 and bool(found))
        if "Traceback" in messages:
            row.wrong += 1
            sys.stderr.write(f"{row.fault}, {beyond} MiB: {messages[-800:]}\n")
        judge(row, folder, arguments, out, wanted)
    return row


def two_at_once(folder: Path, arguments: list[str], wanted: dict[str, bytes]) -> Row:
    """Start two runs on one output: one is refused, the other ends well."""
    row, out = Row("two runs on one output"), "both.safetensors"
    both = [process.wait() for process in [Run(folder, arguments, out) for _ in range(2)]]
    row.injected += 1
    codes = sorted(code for code, _ in both)
    found = content(folder / out)
    row.wrong += found != wanted
    row.survived += codes == [0, 3] and found == wanted
    if codes != [0, 3]:  # the first may have ended before the second began
        sys.stderr.write(f"exit codes {codes}: {both}\n")
    return row


def corrupted(folder: Path, arguments: list[str], wanted: dict[str, bytes]) -> Row:
    """Change a byte of checkpoints and parts, cut them or empty them: a damaged file must be ignored."""
    row, draw = Row("corrupted checkpoint"), random.Random(1)
    for kind in ("flip", "cut", "empty", "all"):
        out = f"corrupted-{kind}.safetensors"
        process, deadline = Run(folder, arguments, out), time.monotonic() + 60
        while len(files := sorted(folder.glob(f"{ROOT}/*/*.checkpoint*"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        process.kill()
        process.wait()
        files = sorted(folder.glob(f"{ROOT}/*/*.checkpoint*"), key=lambda file: file.stat().st_mtime)
        for file in files if kind == "all" else files[-1:]:
            data = bytearray(file.read_bytes())
            if kind == "flip":
                data[draw.randrange(len(data))] ^= 1
            else:
                del data[0 if kind == "empty" else len(data) // 2 :]
            file.write_bytes(bytes(data))
            row.injected += 1
        before = row.survived
        judge(row, folder, arguments, out, wanted)
        row.survived = before + (row.survived - before) * max(1, len(files) if kind == "all" else 1)
    return row


def main() -> int:
    """Inject the faults, print and write the results; returns 1 if something was lost or wrong."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--kills", type=int, default=20, help="of each command")
    options.add_argument("--seconds", type=float, default=600, help="approximate limit of the whole time")
    options.add_argument("--out", type=Path, help="JSON file to write")
    args = options.parse_args()
    started_at = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        started = time.monotonic()
        assert run(folder, SYNTHESIZE, "images.safetensors")[0] == 0
        synthesis_seconds, started = time.monotonic() - started, time.monotonic()
        assert run(folder, QUANTIZE, "quantized")[0] == 0
        quantization_seconds = time.monotonic() - started
        images, network = content(folder / "images.safetensors"), content(folder / "quantized")

        def small_files() -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))

        first_end, second_end = (started_at + share * args.seconds for share in (0.35, 0.7))  # the rest takes a third
        rows: list[Row] = []
        sys.stdout.write("fault                      injected  survived  lost  wrong\n")
        for inject in (
            lambda: killed(folder, SYNTHESIZE, images, synthesis_seconds, args.kills, first_end),
            lambda: killed(folder, QUANTIZE, network, quantization_seconds, args.kills, second_end),
            lambda: two_at_once(folder, SYNTHESIZE, images),
            lambda: corrupted(folder, SYNTHESIZE, images),
            lambda: short_of("disk full in synthesize", small_files, folder, SYNTHESIZE, images),
            lambda: short_of("disk full in quantize", small_files, folder, QUANTIZE, network),
            lambda: short_of_memory(folder, SYNTHESIZE, images),
            lambda: short_of_memory(folder, QUANTIZE, network),
        ):
            rows.append(row := inject())
            figures = f"{row.injected:8d}  {row.survived:8d}  {row.lost:4d}  {row.wrong:5d}"
            sys.stdout.write(f"{row.fault.ljust(25)}  {figures}\n")
            sys.stdout.flush()
    if args.out is not None:
        args.out.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n", encoding="utf-8")
    return 1 if any(row.lost or row.wrong or row.survived < row.injected for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
