"""Places of calibration activations: device, host and disk give the same results, at their own speeds."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from genie_cli.config import QuantizeConfig
from genie_cli.quantization.activations.budget import ActivationBudget
from genie_cli.quantization.activations.pool import ActivationPool
from genie_cli.quantization.plan import make_plan
from genie_cli.quantization.quantize import quantize_network
from genie_cli.runtime.progress import silent
from gpu.bench import Bench
from gpu.stages import context, digits, network_sha256, noise
from gpu.timing import both_clocks

_PLENTY = 1 << 40
BUDGETS = {
    "device": ActivationBudget(_PLENTY, 0),
    "host": ActivationBudget(0, _PLENTY),
    "disk": ActivationBudget(0, 0),
}
_ROWS = 32
"""Rows that a step reads."""


def stores(bench: Bench) -> None:
    """Rows through each place, then a quantization with all activations there."""
    places = {name: budget for name, budget in BUDGETS.items() if bench.is_cuda or name != "device"}
    with bench.part("rows"):
        read = [_rows(bench, name, budget) for name, budget in places.items()]
        bench.check("rows are the same from all places", all(read[0].equal(other) for other in read))
    with bench.part("quantization"):
        learned = {_quantized(bench, name, budget) for name, budget in places.items()}
        bench.check("networks are the same with activations in all places", len(learned) == 1)


def _rows(bench: Bench, name: str, budget: ActivationBudget) -> Tensor:
    """Write and read a tensor of ResNet-18's first blocks; some of its rows as they were read, on the CPU."""
    shape = bench.size((1024, 64, 56, 56), (64, 8, 8, 8))
    generator = torch.Generator().manual_seed(0)
    block = torch.randn(_ROWS, *shape[1:], generator=generator).to(bench.device, torch.bfloat16)
    batches = torch.randint(shape[0], (20, _ROWS), generator=generator)
    with ActivationPool(bench.device, budget.device, budget.host, silent) as pool:
        store = pool.allocate(shape, torch.bfloat16)
        bench.check(f"{name}: the rows are there", store.place == name)

        def write() -> None:
            for first in range(0, len(store), _ROWS):
                store.write(first, block * (1 + first / len(store)))

        def read() -> None:
            for rows in batches:
                store.gather(rows)

        write()
        written = store.num_bytes / both_clocks(bench, write, 1)["clock"] / 1e6
        bench.figure(f"{name}, writing, GB/s", written)
        gathered = batches.numel() * store.num_bytes / len(store) / both_clocks(bench, read, 2)["clock"] / 1e6
        bench.figure(f"{name}, reading {_ROWS} random rows at once, GB/s", gathered)
        return store.gather(batches[0]).cpu()


def _quantized(bench: Bench, name: str, budget: ActivationBudget) -> str:
    teacher = digits()
    config = QuantizeConfig(num_steps=bench.size(60, 10), batch_size=bench.size(32, 4))
    plan = replace(make_plan(teacher, config, bench.device), budget=budget)
    network = quantize_network(plan, noise(teacher, bench.size(128, 16)), context(bench))
    bench.check(f"{name}: all activations are there", [place for place, num in network.memory.items() if num] == [name])
    return network_sha256(network)
