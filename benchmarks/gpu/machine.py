"""The machine and its processes: the card and its ceilings, the tests that need it, two ranks on one GPU."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from measuring import hardware
from roofline import ceilings

from gpu.bench import Bench, SkippedError
from gpu.timing import milliseconds

ROOT = Path(__file__).resolve().parents[2]
_PACKAGES = ("torchvision", "triton", "safetensors", "numpy", "pydantic", "typer", "rich", "pytest")
_DRIVER_FIELDS = ("driver_version", "power.limit", "clocks.max.sm", "memory.total", "temperature.gpu")
_TRACEBACKS = 12_000
"""Characters of the failed tests' tracebacks that are kept."""
_MARGIN = 4.0
"""Seconds before the deadline at which a section ends a program that it has started, to tell of it."""


def environment(bench: Bench) -> None:
    """The card, versions, driver, and what copies and matrix products reach."""
    bench.figure("hardware", {**hardware(bench.device), "cores": os.cpu_count(), "python": sys.version.split()[0]})
    bench.figure("versions", {name: _version(name) for name in _PACKAGES})
    bench.figure("C compiler", shutil.which("cc") or shutil.which("gcc") or "none")
    if bench.is_cuda:
        properties = torch.cuda.get_device_properties(bench.device)
        bench.figure("CUDA", f"{torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}")
        bench.figure("multiprocessors", properties.multi_processor_count)
        bench.figure("compute capability", f"{properties.major}.{properties.minor}")
        with bench.part("driver"):
            bench.figure("driver", _driver())
    for dtype, label in ((torch.bfloat16, "bf16"), (torch.float32, "fp32")):
        with bench.part(label):
            products, copies = ceilings(bench.device, dtype)
            bench.figure(f"{label} TFLOP/s", products / 1e12)
            bench.figure("copy on the device GB/s", copies / 1e9)
    with bench.part("copies between host and device"):
        _copies(bench)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def _driver() -> dict[str, str]:
    if shutil.which("nvidia-smi") is None:
        raise SkippedError("there is no nvidia-smi")
    command = ["nvidia-smi", f"--query-gpu={','.join(_DRIVER_FIELDS)}", "--format=csv,noheader"]
    said = subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout
    return dict(zip(_DRIVER_FIELDS, said.splitlines()[0].split(", "), strict=True))


def _copies(bench: Bench) -> None:
    bench.require_cuda()
    on_device = torch.empty(bench.size(1 << 28, 1 << 20), dtype=torch.uint8, device=bench.device)
    for kind, is_pinned in (("page-locked", True), ("pageable", False)):
        on_host = torch.empty(len(on_device), dtype=torch.uint8, pin_memory=is_pinned)
        on_host.fill_(1)  # pages that are there
        up = milliseconds(bench, lambda host=on_host: on_device.copy_(host, non_blocking=True))
        down = milliseconds(bench, lambda host=on_host: host.copy_(on_device, non_blocking=True))
        bench.figure(f"host to device, {kind}, GB/s", len(on_device) / up / 1e6)
        bench.figure(f"device to host, {kind}, GB/s", len(on_device) / down / 1e6)


def cuda_tests(bench: Bench) -> None:
    """The project's tests of CUDA, counted by outcome; those that were reached where time runs out."""
    bench.require_cuda()
    if not (ROOT / "tests" / "cuda").is_dir():
        raise SkippedError("there is no folder tests/cuda")
    command = [sys.executable, "-m", "pytest", "tests/cuda", "-m", "cuda", "-v", "-p", "no:cacheprovider", "--tb=short"]
    text, exit_code = _run(command, bench.seconds_left() - _MARGIN)
    outcomes = re.findall(r"^(\S*::.+?) (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b", text, re.MULTILINE)
    bench.figure("outcomes", dict(Counter(outcome.lower() for _, outcome in outcomes)))
    bench.figure("summary", [line[:300] for line in re.findall(r"^(?:FAILED|ERROR) .+", text, re.MULTILINE)][:20])
    bench.figure("last lines", text.splitlines()[-3:])
    if exit_code:
        bench.figure("tracebacks", text.partition(" FAILURES ")[2][:_TRACEBACKS].splitlines())
    bench.check("all tests were run", exit_code is not None)
    bench.check("all tests pass", exit_code == 0)


def two_ranks(bench: Bench) -> None:
    """`genie` under torchrun with more processes than GPUs: one message, and the exit code of an unsuitable device."""
    bench.require_cuda()
    if (count := torch.cuda.device_count()) != 1:
        raise SkippedError(f"needs a machine with one GPU, this one has {count}")
    with tempfile.TemporaryDirectory() as folder:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        genie = [
            "-m",
            "--",
            "genie_cli",
            "synthesize",
            "--model",
            "digits_resnet",
            "--n",
            "4",
            "--num-steps",
            "2",
            "--device",
            "cuda",
        ]
        command = [*launcher, *genie, "--out", str(Path(folder) / "images.safetensors")]
        text, _ = _run(command, bench.seconds_left() - _MARGIN)
    messages = re.findall(r"^Error.*", text, re.MULTILINE)
    exit_codes = re.findall(r"exitcode\s*:\s*(-?\d+)", text)
    bench.figure("messages", messages)
    bench.figure("exit codes", exit_codes)
    if not messages:
        bench.figure("last lines", text.splitlines()[-20:])
    bench.check("one message names the number of GPUs", len(messages) == 1 and "has 1 GPU(s)" in messages[0])
    bench.check("the exit code is 4", "4" in exit_codes)


def _run(command: list[str], seconds: float) -> tuple[str, int | None]:
    """What a program wrote, and its exit code; None: it took more than `seconds` and was ended."""
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
        try:
            exit_code: int | None = process.wait(max(1.0, seconds))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            exit_code = None
        output.seek(0)
        return output.read(), exit_code
