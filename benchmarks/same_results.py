"""Content hashes and figures of everything that the commands write, to compare the results of two commits.

    python benchmarks/same_results.py --tree ../old --out before.json
    python benchmarks/same_results.py --out after.json --compare before.json

Covered: every synthesis and quantization preset on the embedded network, the other protocols, networks with
PReLU, ELU and ReLU6, a killed run that goes on, two processes, and (where GENIE_KITS names the kits) GENIE on CIFAR
ResNet-20 at W2A4 and W4A4 in fp32 and bf16. Both runs have to take place on one machine: bytes depend on its processor.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from safetensors import safe_open

SYNTHESIZERS = ("genie", "zeroq", "swing", "gba", "latent", "genie-fast", "gdfq", "qimera", "kw", "intraq")
QUANTIZERS = ("genie-m", "minmax", "mse", "dfq", "adaround", "adaquant", "brecq", "qdrop", "lsq", "ait")
NETWORK = '''
import torch
from torch import nn


def prelu():
    """A small network with PReLU and ELU, which some lists of activation functions lack."""
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.PReLU(8), nn.Conv2d(8, 16, 3, 2, 1),
        nn.BatchNorm2d(16), nn.ELU(), nn.Conv2d(16, 16, 3, padding=1, groups=4), nn.BatchNorm2d(16), nn.PReLU(),
        nn.Conv2d(16, 10, 1), nn.BatchNorm2d(10), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )


def relu6():
    """A chain whose clips equalization rescales."""
    torch.manual_seed(4)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU6(), nn.Conv2d(8, 8, 3, 2, 1, groups=8),
        nn.BatchNorm2d(8), nn.ReLU6(), nn.Conv2d(8, 10, 1), nn.BatchNorm2d(10), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )
'''
GRAY = ("--num-channels", "1", "--input-size", "16", "--mean", "0.3", "--std", "0.3")
DIGITS = ("--model", "digits_resnet")
SMALL = ("--n", "16", "--batch-size", "8", "--num-steps", "25")
STEPS = ("--num-steps", "130", "--batch-size", "8", "--weight-bits", "3")


RECORDS = ("num_bytes", "quantized_sha256")
"""Of figures: what depends on the options that a folder records."""


class Runs:
    """Commands of one source tree, in a folder of their own."""

    def __init__(self, tree: Path, folder: Path) -> None:
        """Use the sources in `tree`."""
        self.folder = folder
        self._environment = {**os.environ, "PYTHONPATH": str(tree.resolve()), "OMP_NUM_THREADS": "1"}
        self.results: dict[str, Any] = {}
        (folder / "network.py").write_text(NETWORK)

    def genie(self, *arguments: str, launcher: Sequence[str] = ("-m", "genie_cli")) -> None:
        """Run a command to its end."""
        done = subprocess.run(
            [sys.executable, *launcher, *arguments], cwd=self.folder, env=self._environment, capture_output=True
        )
        if done.returncode:
            raise SystemExit(f"{' '.join(arguments)}\n{done.stderr.decode()}")

    def killed(self, out: str, *arguments: str) -> None:
        """Kill a command once it has kept something, and run it again to its end."""
        command = [*arguments, "--out", out, "--checkpoint-interval", "0"]
        process = subprocess.Popen(
            [sys.executable, "-m", "genie_cli", *command],
            cwd=self.folder,
            env=self._environment,
            stderr=subprocess.DEVNULL,
        )
        while process.poll() is None and not self._has_kept(out):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if (self.folder / out).exists():
            raise SystemExit(f"{out} was written before the run could be killed")
        self.genie(*command)

    def _has_kept(self, out: str) -> bool:
        for about in self.folder.glob(".genie-work/*/about.json"):
            try:
                if json.loads(about.read_bytes())["out"] == out and any(about.parent.glob("*.checkpoint*")):
                    return True
            except (OSError, ValueError):
                continue
        return False

    def keep(self, name: str, out: str) -> None:
        """Record the hashes and figures of an output."""
        path = self.folder / out
        files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
        found: dict[str, Any] = {}
        for file in files:
            with safe_open(file, framework="pt") as opened:
                said = json.loads(opened.metadata()["genie"])
            found[file.name] = said["content_sha256"]
            config = json.dumps(said["config"], sort_keys=True).encode()
            found[f"{file.name} config"] = hashlib.sha256(config).hexdigest()
        if path.is_dir():
            found["metrics"] = json.loads((path / "metrics.json").read_bytes())
        self.results[name] = {key.replace(out, "images"): value for key, value in found.items()}

    def synthesize(self, name: str, *options: str) -> None:
        """Synthesize an image set and record it."""
        out = f"{name}.safetensors"
        self.genie("synthesize", *options, "--out", out)
        self.keep(f"images {name}", out)

    def quantize(self, name: str, *options: str, evaluated: Sequence[str] = ()) -> None:
        """Quantize and record the folder; where `evaluated` names a network and data, evaluate it too."""
        self.genie("quantize", *options, "--out", name)
        self.keep(f"quantized {name}", name)
        if evaluated:
            self.genie("evaluate", *evaluated, "--quantized", name, "--out", f"{name}.json")
            self.results[f"evaluated {name}"] = json.loads((self.folder / f"{name}.json").read_bytes())


def digits(runs: Runs, pool: ThreadPoolExecutor) -> None:
    """Run every preset, protocol and option on the embedded network."""
    exact = ("--precision", "fp32")
    runs.synthesize("genie", *DIGITS, *SMALL, *exact)
    data = (*DIGITS, "--data", "digits")
    first = ("--images", "genie.safetensors", *STEPS, *exact)
    runs.quantize("minmax", *DIGITS, *first, "--preset", "minmax", evaluated=data)
    jobs = [pool.submit(runs.synthesize, p, *DIGITS, *SMALL, *exact, "--preset", p) for p in SYNTHESIZERS[1:]]
    jobs.append(pool.submit(runs.synthesize, "mixmix", *DIGITS, *DIGITS, *SMALL, *exact, "--preset", "mixmix"))
    jobs.append(pool.submit(runs.synthesize, "zaq", *DIGITS, *SMALL, *exact, "--preset", "zaq", "--student", "minmax"))
    jobs.append(pool.submit(runs.synthesize, "genie-bf16", *DIGITS, *SMALL, "--precision", "bf16"))
    for preset in (p for p in QUANTIZERS if p != "minmax"):
        jobs.append(pool.submit(runs.quantize, preset, *DIGITS, *first, "--preset", preset, evaluated=data))
    for name, more in {
        "hardware": ("--protocol", "hardware"),
        "protocol-ait": ("--protocol", "ait"),
        "patience": ("--patience", "20"),
        "overrides": ("--bits-override", "layer1.*=8,8", "--bits-override", "fc=2,3"),
        "on-disk": ("--memory-limit", "40MiB"),
        "bits-8": ("--weight-bits", "8", "--activation-bits", "8"),
    }.items():
        jobs.append(pool.submit(runs.quantize, name, *DIGITS, *first, *more, evaluated=data))
    bf16 = ("--images", "genie.safetensors", *STEPS, "--precision", "bf16")
    jobs.append(pool.submit(runs.quantize, "genie-m-bf16", *DIGITS, *bf16, evaluated=data))
    real = ("--images", "digits", "--num-images", "20", *STEPS, *exact)
    jobs.append(pool.submit(runs.quantize, "real-images", *DIGITS, *real, evaluated=data))
    for job in jobs:
        job.result()


def other_networks(runs: Runs, pool: ThreadPoolExecutor) -> None:
    """Run a user's own network, at each granularity."""
    own = ("--model", "network.py:prelu", *GRAY)
    runs.synthesize("prelu", *own, *SMALL, "--precision", "fp32")
    first = ("--images", "prelu.safetensors", *STEPS, "--precision", "fp32")
    jobs = [
        pool.submit(
            runs.quantize, f"prelu-{preset}-{protocol}", *own, *first, "--preset", preset, "--protocol", protocol
        )
        for preset in ("genie-m", "adaround", "lsq")
        for protocol in ("genie", "hardware")
    ]
    clipped = ("--model", "network.py:relu6", *GRAY)
    for protocol in ("genie", "hardware"):
        options = ("--preset", "dfq", "--protocol", protocol)
        jobs.append(pool.submit(runs.quantize, f"relu6-dfq-{protocol}", *clipped, *options))
    for job in jobs:
        job.result()


def runs_apart(runs: Runs) -> None:
    """Run commands that go on after a kill, and commands of two processes."""
    exact = ("--precision", "fp32")
    budget = ("--n", "16", "--batch-size", "8", "--num-steps", "150")
    runs.killed("killed.safetensors", "synthesize", *DIGITS, *budget, *exact)
    runs.keep("images killed and gone on", "killed.safetensors")
    long = ("--images", "genie.safetensors", "--num-steps", "400", "--batch-size", "8", "--weight-bits", "3", *exact)
    runs.killed("killed", "quantize", *DIGITS, *long)
    runs.keep("quantized killed and gone on", "killed")
    two = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "--", "genie_cli")
    runs.genie("synthesize", *DIGITS, *SMALL, *exact, "--out", "two.safetensors", launcher=two)
    runs.keep("images of two processes", "two.safetensors")
    first = ("--images", "genie.safetensors", *STEPS, *exact)
    runs.genie("quantize", *DIGITS, *first, "--out", "two", launcher=two)
    runs.keep("quantized by two processes", "two")
    runs.genie("evaluate", *DIGITS, "--data", "digits", "--quantized", "two", "--out", "two.json", launcher=two)
    runs.results["evaluated by two processes"] = json.loads((runs.folder / "two.json").read_bytes())


def kit(runs: Runs, kits: Path, pool: ThreadPoolExecutor) -> None:
    """Run GENIE on CIFAR ResNet-20: 128 images, 50 steps."""
    network = ("--model", "cifar_resnet20", "--weights", str(kits / "cifar10" / "resnet20.safetensors"))
    data = (*network, "--data", str(kits / "cifar10" / "test.safetensors"), "--num-images", "2000")

    def one(precision: str) -> None:
        name = f"cifar-{precision}"
        runs.synthesize(name, *network, "--n", "128", "--num-steps", "50", "--precision", precision)
        for bits in ("2", "4"):
            out = f"{name}-w{bits}a4"
            options = ("--images", f"{name}.safetensors", "--num-steps", "50", "--weight-bits", bits)
            runs.quantize(out, *network, *options, "--precision", precision, evaluated=data)

    for job in [pool.submit(one, precision) for precision in ("fp32", "bf16")]:
        job.result()


def compare(before: dict[str, Any], after: dict[str, Any]) -> int:
    """Print one row per output; returns the number of outputs of which a tensor or a figure differs.

    ``config`` are those whose record of the options alone differs, as it does where an option was added.
    """
    counts = {"same": 0, "config": 0, "OTHER": 0}
    for name in sorted({*before, *after}):
        one, other = (of.get(name, {}) for of in (before, after))
        if one == other:
            verdict = "same"
        elif _without_records(one) == _without_records(other):
            verdict = "config"
        else:
            verdict = "OTHER"
        counts[verdict] += 1
        said = other or one
        shown = next((str(v)[:12] for k, v in said.items() if k in ("images", "weights.safetensors", "top1")), "")
        print(f"{verdict:6}  {name:34} {shown}")  # noqa: T201
    print(", ".join(f"{verdict} {count}" for verdict, count in counts.items()))  # noqa: T201
    return counts["OTHER"]


def _without_records(said: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in said.items() if not key.endswith(" config") and key not in RECORDS}


def main() -> None:
    """Run everything, and compare where a file is named."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tree", type=Path, default=Path(), help="source tree whose genie_cli runs")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--compare", type=Path, help="JSON file of another commit")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        runs = Runs(args.tree, Path(folder))
        digits(runs, pool)
        other_networks(runs, pool)
        runs_apart(runs)
        if kits := os.environ.get("GENIE_KITS"):
            kit(runs, Path(kits).resolve(), pool)
        results = runs.results
    args.out.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
    if args.compare is not None and compare(json.loads(args.compare.read_text()), results):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
