"""Operations, bytes and waits of the host per step on a GPU, counted on a pretended one: no GPU is needed.

    python benchmarks/step_cost.py --models digits_resnet:8,resnet18:2 --out step_cost.json

A step of a synthesis, and one of every reconstruction unit, are computed on the CPU as the CUDA branches compute them,
without recordings. Operations are those that move data, one kernel each or more. Bytes are the sizes of the tensors
that each operation reads and writes, as if no cache held them. Waits are those of the host from one step to the next.
A step is counted at the batch size behind the model's name and at twice that. Bytes and floating-point operations of
a larger batch are read off the line through both.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from measuring import DTYPES, finish, parser
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the pretended GPU belongs to the tests

from genie_cli.config import ModelConfig, QuantizeConfig, SynthesizeConfig
from genie_cli.models.teacher import Teacher
from genie_cli.models.zoo import load_untrained
from genie_cli.quantization.activations.budget import ActivationBudget
from genie_cli.quantization.plan import make_plan
from genie_cli.quantization.quantize import quantize_network
from genie_cli.runtime import cuda_graph
from genie_cli.runtime.context import RunContext
from genie_cli.runtime.progress import silent
from genie_cli.runtime.repeated_step import RepeatedStep
from genie_cli.runtime.settings import configure_process
from genie_cli.synthesis.synthesize import synthesize_images
from tests.support.pretended_gpu import CPU, GPU, Operation, PretendedGpu

BATCHES = {"synthesis": 128, "reconstruction": 32}
"""The default batch sizes, for which bytes are told."""
_WRITTEN_ALONE = {"copy_", "fill_", "random_", "zero_"}
"""Operations that do not read what they write."""
_NUM_STEPS = 3
_NEVER = 10**9


@dataclass
class Cost:
    """A step: operations and bytes by operator, floating-point operations, waits of the host since the step before."""

    operations: Counter[str] = field(default_factory=Counter)
    num_bytes: Counter[str] = field(default_factory=Counter)
    flops: float = 0.0
    waits: int = 0

    def add(self, operation: Operation) -> None:
        """Count an operation."""
        if operation.is_view or not (operation.inputs or operation.outputs):
            return
        tensors = [*operation.inputs, *operation.outputs]
        if operation.name in _WRITTEN_ALONE or operation.overload.endswith(("out", "grad_input")):
            tensors = [*operation.inputs]  # what is written stands among what is given
        self.operations[operation.name] += 1
        self.num_bytes[operation.name] += sum(tensor.num_bytes for tensor in tensors)


@contextmanager
def counted_steps() -> Iterator[dict[str, Cost]]:
    """A pretended GPU on which no step is recorded; name of a step -> the cost of its last call."""
    costs: dict[str, Cost] = {}
    before: dict[str, int] = {}
    take_step = RepeatedStep.__call__

    with PretendedGpu() as gpu, mock.patch.object(cuda_graph, "WARMUP_STEPS", _NEVER):

        def counted(step: RepeatedStep, *inputs: Tensor) -> None:
            waits = sum(gpu.synchronisations.values())
            cost = costs[step._name] = Cost(waits=waits - before.get(step._name, waits))
            before[step._name] = waits
            gpu.listeners.append(cost.add)
            with FlopCounterMode(display=False) as flops:
                take_step(step, *inputs)
            gpu.listeners.clear()
            cost.flops = float(flops.get_total_flops())

        configure_process(GPU, deterministic=True)
        with mock.patch.object(RepeatedStep, "__call__", counted):
            yield costs


def synthesis_costs(teacher: Teacher, batch_size: int, dtype: torch.dtype) -> dict[str, Cost]:
    """The cost of a step of a batch."""
    with counted_steps() as costs:
        config = SynthesizeConfig(num_images=batch_size, batch_size=batch_size, num_steps=_NUM_STEPS + 1)
        synthesize_images(teacher, config, _context(dtype))
    return {"batch": costs["batch 1"]}


def reconstruction_costs(teacher: Teacher, batch_size: int, dtype: torch.dtype) -> dict[str, Cost]:
    """The cost of a step of each unit, with the rounding regularizer, its activations on the device."""
    spec = teacher.input
    draws = torch.Generator().manual_seed(0)
    images = torch.randn(batch_size, *spec.shape, generator=draws)
    with counted_steps() as costs:
        config = QuantizeConfig(
            num_steps=_NUM_STEPS, batch_size=batch_size, warmup=0, weight_range="minmax", activation_range="minmax"
        )
        plan = replace(make_plan(teacher, config, GPU), budget=ActivationBudget(1 << 40, 0))
        quantize_network(plan, images, _context(dtype))
    return {name.removeprefix("unit ").strip("'"): cost for name, cost in costs.items()}


STAGES: dict[str, Callable[[Teacher, int, torch.dtype], dict[str, Cost]]] = {
    "synthesis": synthesis_costs,
    "reconstruction": reconstruction_costs,
}


def rows(name: str, batch_size: int, stage: str, dtype: torch.dtype) -> list[dict[str, Any]]:
    """One row per batch or unit, and for a reconstruction the sum of a step in each unit."""
    teacher = load_untrained(ModelConfig(name=name))
    small, large = (STAGES[stage](teacher, size, dtype) for size in (batch_size, 2 * batch_size))
    wanted = BATCHES[stage]

    def at_wanted(one: float, other: float) -> float:
        return one + (other - one) * (wanted - batch_size) / batch_size

    made = []
    for part, cost in small.items():
        other = large[part]
        num_bytes = {
            operator: at_wanted(count, other.num_bytes[operator]) for operator, count in cost.num_bytes.items()
        }
        made.append(
            {
                "model": name,
                "stage": stage,
                "part": part,
                "counted at": batch_size,
                "batch": wanted,
                "operations": cost.operations.total(),
                "GB": sum(num_bytes.values()) / 1e9,
                "GFLOP": at_wanted(cost.flops, other.flops) / 1e9,
                "waits": cost.waits,
                "by operator": {
                    operator: {"operations": cost.operations[operator], "GB": num_bytes[operator] / 1e9}
                    for operator in sorted(num_bytes, key=num_bytes.__getitem__, reverse=True)
                },
            }
        )
    if len(made) > 1:
        summed = {key: sum(row[key] for row in made) for key in ("operations", "GB", "GFLOP", "waits")}
        made.append({**made[0], "part": "all units", **summed, "by operator": {}})
    return made


def _context(dtype: torch.dtype) -> RunContext:
    return replace(RunContext.alone(torch.device("cuda"), dtype, silent), log_every=_NUM_STEPS + 1)


def main() -> None:
    """Count, print, write."""
    options = parser(__doc__)
    options.add_argument("--models", default="digits_resnet:8,resnet18:2", help="names with batch sizes to count at")
    options.add_argument("--stages", default="synthesis,reconstruction")
    options.add_argument("--precision", default="bf16", choices=DTYPES)
    args = options.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    found = []
    for model in args.models.split(","):
        name, _, batch_size = model.partition(":")
        for stage in args.stages.split(","):
            sys.stderr.write(f"{name}, {stage}\n")
            found += rows(name, int(batch_size or 2), stage, DTYPES[args.precision])
    finish(found, CPU, args.out)


if __name__ == "__main__":
    main()
