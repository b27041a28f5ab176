"""Wall time and accuracy of synthesis and quantization together, per budget, on labelled data.

    python benchmarks/end_to_end.py --weights resnet20.safetensors --data test.safetensors \
        --budgets 60:250,125:500,250:1000 --target 86.5 --out end_to_end.json

A budget is ``steps per batch : steps per unit``. The time to reach an accuracy is that of the smallest
budget that reaches `--target`. With `--baseline`, each budget is also run as the paper's public code works.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from baseline import baseline_images, load_module, quantize_baseline
from measuring import DTYPES, finish, parser, prepare
from torch import Tensor, nn

from genie_cli.config import ModelConfig, QuantizeConfig, SynthesizeConfig
from genie_cli.data.sources import open_data
from genie_cli.evaluation.evaluate import evaluate
from genie_cli.evaluation.metrics.choose import Wanted, choose_metrics
from genie_cli.evaluation.metrics.network_outputs import NetworkOutputs
from genie_cli.models.graph.placement import move
from genie_cli.models.teacher import Teacher
from genie_cli.models.zoo import load_teacher
from genie_cli.quantization.plan import make_plan
from genie_cli.quantization.quantize import quantize_network
from genie_cli.runtime.context import RunContext
from genie_cli.runtime.progress import silent
from genie_cli.synthesis.synthesize import synthesize_images


def main() -> None:
    """Measure, print, write."""
    options = parser(__doc__)
    options.add_argument("--model", default="cifar_resnet20")
    options.add_argument("--weights", type=Path, required=True)
    options.add_argument("--data", required=True, help="as `genie evaluate --data`")
    options.add_argument("--num-images", type=int, default=1024)
    options.add_argument("--budgets", default="250:1000")
    options.add_argument("--scheme", default="4:4", help="weight bits : activation bits")
    options.add_argument("--precision", choices=sorted(DTYPES), default="bf16")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--target", type=float, help="accuracy whose time is wanted, %%")
    options.add_argument("--baseline", action="store_true")
    args = options.parse_args()
    device = prepare(args)
    teacher = load_teacher(ModelConfig(name=args.model, weights=str(args.weights)))
    bits = tuple(map(int, args.scheme.split(":")))
    rows = []
    for budget in args.budgets.split(","):
        steps = tuple(map(int, budget.split(":")))
        rows.append(_product(teacher, steps, bits, args, device))
        if args.baseline:
            rows.append(_baseline(teacher, steps, bits, args, device))
    if args.target is not None:
        for system in ("genie", "baseline"):
            reached = [row["total s"] for row in rows if row["system"] == system and row["top1"] >= args.target]
            if reached:
                rows.append({"system": system, "budget": f"to reach {args.target} %", "total s": min(reached)})
    finish(rows, device, args.out)


def _product(
    teacher: Teacher, steps: tuple[int, ...], bits: tuple[int, ...], args: argparse.Namespace, device: torch.device
) -> dict[str, Any]:
    dtype = DTYPES[args.precision]
    started = time.perf_counter()
    synthesis = SynthesizeConfig(num_images=args.num_images, num_steps=steps[0], seed=args.seed)
    context = RunContext.alone(device, dtype, silent)
    images = synthesize_images(teacher, synthesis, context).images
    synthesized = time.perf_counter()
    config = QuantizeConfig(weight_bits=bits[0], activation_bits=bits[1], num_steps=steps[1], seed=args.seed)
    network = quantize_network(make_plan(teacher, config, device), images, context)
    quantized = time.perf_counter()
    top1 = _top1(move(network.student(), device), teacher, args, device)
    return _row("genie", args.precision, steps, synthesized - started, quantized - synthesized, top1)


def _baseline(
    teacher: Teacher, steps: tuple[int, ...], bits: tuple[int, ...], args: argparse.Namespace, device: torch.device
) -> dict[str, Any]:
    model = load_module(args.model, args.weights)
    spec = teacher.input
    started = time.perf_counter()
    images: Tensor = baseline_images(model, spec.num_channels, spec.size, args.num_images, steps[0], args.seed)
    synthesized = time.perf_counter()
    student = quantize_baseline(model, images, bits[0], bits[1], steps[1], seed=args.seed)
    quantized = time.perf_counter()
    top1 = _top1(student, teacher, args, device)
    return _row("baseline", "fp32", steps, synthesized - started, quantized - synthesized, top1)


def _top1(network: nn.Module, teacher: Teacher, args: argparse.Namespace, device: torch.device) -> float:
    data = open_data(args.data, teacher.input)
    metrics = choose_metrics(Wanted("classification"), data, NetworkOutputs.of(teacher), has_teacher=False)
    context = RunContext.alone(device, torch.float32, silent)
    return float(evaluate(network, data, metrics, 128, context).own["top1"])


def _row(
    system: str, precision: str, steps: tuple[int, ...], synthesis: float, quantization: float, top1: float
) -> dict[str, Any]:
    return {
        "system": system,
        "precision": precision,
        "budget": ":".join(map(str, steps)),
        "synthesis s": synthesis,
        "quantization s": quantization,
        "total s": synthesis + quantization,
        "top1": top1,
    }


if __name__ == "__main__":
    main()
