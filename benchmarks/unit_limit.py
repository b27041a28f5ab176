"""The output's error with units within `max_unit_layers`, beside that with the giant units of no limit.

    python benchmarks/unit_limit.py --threads 1 --out unit_limit.json
    python benchmarks/unit_limit.py --networks shufflenet_v2_x0_5 --seeds 0 --num-steps 10

Networks have random weights, and batch norms with the statistics of random images; the seed draws weights, images and
the quantization's random numbers. Names are torchvision's, or timm's behind ``timm:``. The ratio is that of the mean
errors over the seeds: 1.05 is the most that the limit may cost.
"""

from __future__ import annotations

import statistics
import sys
import time

import torch
import torchvision
from measuring import finish, parser, prepare
from torch import Tensor, nn
from torch.nn import functional as F

from genie_cli.config import InputSpec, QuantizeConfig
from genie_cli.models.teacher import Teacher, make_teacher
from genie_cli.quantization.plan import make_plan
from genie_cli.quantization.quantize import quantize_network
from genie_cli.runtime.context import RunContext
from genie_cli.runtime.progress import silent

NETWORKS = ("densenet121", "shufflenet_v2_x0_5", "timm:hrnet_w18_small")
NO_LIMIT = 1 << 20
_PASSES = 4
"""Batches of images in whose passes the batch norms take up their statistics."""


def _images(num_images: int, size: int, generator: torch.Generator) -> Tensor:
    """Images that differ in colour and contrast: plain noise looks the same to any network."""
    coarse = torch.randn(num_images, 3, 4, 4, generator=generator)
    contrast = torch.rand(num_images, 1, 1, 1, generator=generator) + 0.5
    fine = torch.randn(num_images, 3, size, size, generator=generator)
    return contrast * (F.interpolate(coarse, size=(size, size), mode="bilinear") + 0.3 * fine)


def _network(name: str) -> nn.Module:
    if name.startswith("timm:"):
        import timm

        network: nn.Module = timm.create_model(name.removeprefix("timm:"), pretrained=False)
        return network
    return torchvision.models.get_model(name, weights=None)


@torch.no_grad()
def _teacher(name: str, size: int, seed: int) -> Teacher:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = _network(name).train()
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.momentum = None  # statistics are the mean over all passes
                module.reset_running_stats()
        generator = torch.Generator().manual_seed(seed)
        for _ in range(_PASSES):
            network(_images(32, size, generator))
    return make_teacher(name, network.eval(), InputSpec(size=size, mean=[0.0] * 3, std=[1.0] * 3))


def main() -> None:
    """Measure and print."""
    options = parser(__doc__)
    options.add_argument("--networks", nargs="+", default=list(NETWORKS))
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options.add_argument("--limits", type=int, nargs="+", default=[12], help="values of max_unit_layers")
    options.add_argument("--size", type=int, default=64, help="pixels")
    options.add_argument("--num-images", type=int, default=64)
    options.add_argument("--num-steps", type=int, default=100)
    options.add_argument("--bits", type=int, default=4, help="of weights and activations")
    args = options.parse_args()
    device = prepare(args)
    rows = []
    for name in args.networks:
        errors: dict[int, list[float]] = {limit: [] for limit in (NO_LIMIT, *args.limits)}
        layers, seconds = dict.fromkeys(errors, 0), dict.fromkeys(errors, 0.0)
        for seed in args.seeds:
            teacher = _teacher(name, args.size, seed)
            images = _images(args.num_images, args.size, torch.Generator().manual_seed(seed + 1000))
            for limit, found in errors.items():
                bits = {"weight_bits": args.bits, "activation_bits": args.bits}
                config = QuantizeConfig(max_unit_layers=limit, num_steps=args.num_steps, seed=seed, **bits)
                started = time.monotonic()
                plan = make_plan(teacher, config, device)
                network = quantize_network(plan, images, RunContext.alone(device, torch.float32, silent))
                seconds[limit] += time.monotonic() - started
                layers[limit] = max(len(unit.layers) for unit in plan.units)
                found.append(sum(network.output_errors.values()))
                sys.stderr.write(
                    f"{name} seed {seed} limit {limit}: {found[-1]:.5f}, {layers[limit]} layers at most, "
                    f"{seconds[limit]:.0f} s\n"
                )
        for limit in args.limits:
            means = [statistics.mean(errors[key]) for key in (limit, NO_LIMIT)]
            rows.append(
                {
                    "network": name, "limit": limit, "most layers": layers[limit], "without": layers[NO_LIMIT],
                    "error": means[0], "error without": means[1], "ratio": means[0] / means[1],
                    "s": seconds[limit], "s without": seconds[NO_LIMIT], "errors": errors,
                }
            )  # fmt: skip
    finish(rows, device, args.out)


if __name__ == "__main__":
    main()
