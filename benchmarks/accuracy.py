"""Accuracy of a recipe on CIFAR-10 ResNet-20 at a small budget, beside the authors' code.

    GENIE_KITS=FOLDER python benchmarks/accuracy.py --seeds 0 --out accuracy.json

Runs the real command line: one image set per seed, then quantize and evaluate per setting. With `--real`, the images
are real ones, drawn under the seed. The authors' figures are single runs (seed 0) of their public code at the same
budget on the same network: 1024 images, 250 steps per batch of 128, 1000 steps per unit, protocol `genie`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

AUTHORS = {"w4a4": 87.49, "w2a4": 83.70, "w3a3": 84.94, "w2a2": 72.60}
AUTHORS_REAL = {"w4a4": 87.79, "w2a4": 84.86, "w3a3": 85.64, "w2a2": 76.62}


def _genie(*arguments: str | Path) -> str:
    command = [sys.executable, "-m", "genie_cli", *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def _one_seed(kit: Path, seed: int, args: argparse.Namespace, folder: Path) -> dict[str, dict[str, float]]:
    model = ("--model", "cifar_resnet20", "--weights", kit / "resnet20.safetensors", "--precision", args.precision)
    images, figures = kit / "train5120.safetensors", {}
    if not args.real:
        images, started = folder / f"images-{seed}.safetensors", time.monotonic()
        recipe = ("--preset", args.preset, "--n", "1024", "--num-steps", "250", "--seed", str(seed))
        _genie("synthesize", *model, *recipe, "--out", images)
        figures["synthesis"] = {"seconds": round(time.monotonic() - started, 1)}
    authors = AUTHORS_REAL if args.real else AUTHORS
    for setting in args.settings:
        weight_bits, activation_bits = setting[1], setting[3]
        out = folder / f"{setting}-{seed}"
        started = time.monotonic()
        options = [word for pair in args.set for word in ("--set", pair)]
        _genie(
            "quantize", *model, "--images", images, "--num-images", "1024", "--num-steps", "1000", "--seed", str(seed),
            "--weight-bits", weight_bits, "--activation-bits", activation_bits, "--preset", args.quantizer, *options,
            "--out", out,
        )  # fmt: skip
        seconds = time.monotonic() - started
        text = _genie("evaluate", *model[:4], "--quantized", out, "--data", kit / "test.safetensors", "--json")
        figures[setting] = {"top1": json.loads(text)["top1"], "seconds": round(seconds, 1)}
        sys.stdout.write(f"seed {seed} {setting}: {figures[setting]} (authors' code, seed 0: {authors[setting]})\n")
        sys.stdout.flush()
    return figures


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--settings", nargs="+", default=list(AUTHORS), choices=list(AUTHORS))
    parser.add_argument("--real", action="store_true", help="real images instead of synthetic ones")
    parser.add_argument("--preset", default="genie-fast", help="for synthesize")
    parser.add_argument("--quantizer", default="genie-m", help="preset for quantize")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="keys for quantize")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args()
    kits = os.environ.get("GENIE_KITS")
    if not kits:
        parser.error("GENIE_KITS must name the folder that holds cifar10/")
    with tempfile.TemporaryDirectory() as folder:
        runs = {seed: _one_seed(Path(kits) / "cifar10", seed, args, Path(folder)) for seed in args.seeds}
    summary: dict[str, Any] = {}
    for setting in args.settings:
        values = [run[setting]["top1"] for run in runs.values()]
        spread = statistics.stdev(values) if len(values) > 1 else None
        summary[setting] = {
            "mean": round(statistics.mean(values), 2),
            "stdev": spread,
            "authors": (AUTHORS_REAL if args.real else AUTHORS)[setting],
        }
        sys.stdout.write(f"{setting}: {summary[setting]}\n")
    if args.out:
        args.out.write_text(json.dumps({"runs": runs, "summary": summary}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
