"""Single operations of a step, alone: whether they repeat bit for bit, and how long they take beside others."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genie_cli.models.graph import pooling
from genie_cli.runtime.cuda_graph import WARMUP_STEPS, GraphedStep
from genie_cli.runtime.determinism import RandomMasks, make_generator
from genie_cli.synthesis.generator import _standardized, _upsampled_convolution
from genie_cli.synthesis.statistics import channel_statistics
from gpu.bench import Bench
from gpu.timing import milliseconds

LAYOUTS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}
_ADAM_BYTES = 28
"""Per weight: the weight, its gradient and two moments are read, all but the gradient are written."""


def primitives(bench: Bench) -> None:
    """Each operation by itself."""
    parts = (_max_pooling, _batch_norm, _statistics, _transposed_convolution, _adam, _masks)
    for part in parts:
        with bench.part(part.__name__.strip("_").replace("_", " ")):
            part(bench)


def _max_pooling(bench: Bench) -> None:
    """The gradient of ResNet's pooling of maps with many equal values (zeros behind a ReLU)."""
    shape = bench.size((128, 64, 112, 112), (2, 4, 16, 16))
    for name, layout in LAYOUTS.items():
        x = torch.randn(shape, device=bench.device).relu().to(bench.dtype, memory_format=layout).requires_grad_()
        pooled = pooling.max_pool2d(x, (3, 3), (2, 2), (1, 1))
        gradient = torch.randn_like(pooled)

        def backward(y: Tensor = pooled, x: Tensor = x, gradient: Tensor = gradient) -> Tensor:
            return torch.autograd.grad(y, x, gradient, retain_graph=True)[0]

        first = backward()
        bench.check(f"max pooling {name}: 20 equal gradients", all(first.equal(backward()) for _ in range(19)))
        bench.figure(f"max pooling {name}, gradient, ms", milliseconds(bench, backward))
        if bench.is_cuda:
            ordered = pooling._MaxPool.apply(x, (3, 3), (2, 2), (1, 1), (1, 1), False)
            found = backward(ordered)
            bench.figure(f"max pooling {name}, own gradient, ms", milliseconds(bench, lambda y=ordered: backward(y)))
            bench.figure(f"max pooling {name}, difference of the two", _difference(first, found))


def _batch_norm(bench: Bench) -> None:
    """The generator's last batch norm, of three channels, both ways."""
    x = torch.randn(bench.size((128, 3, 224, 224), (2, 3, 16, 16)), device=bench.device, requires_grad=True)
    gradient = torch.randn_like(x)
    norm = nn.BatchNorm2d(3, affine=False).to(bench.device)

    def own(x: Tensor) -> Tensor:
        return _standardized(x, norm.eps)

    bench.check("BatchNorm2d(3) and var_mean agree", _difference(norm(x), own(x)) < 1e-3)
    for name, function in (("BatchNorm2d(3)", norm), ("var_mean in its place", own)):
        bench.figure(f"{name}, both ways, ms", milliseconds(bench, _both_ways(function, x, gradient)))


def _statistics(bench: Bench) -> None:
    """Mean and variance per channel of bf16 activations."""
    shape = bench.size((128, 64, 112, 112), (2, 4, 16, 16))
    x = torch.randn(shape, device=bench.device).to(torch.bfloat16, memory_format=torch.channels_last)

    def reduced() -> tuple[Tensor, Tensor]:
        var, mean = torch.var_mean(x.float(), (0, 2, 3), correction=0)
        return mean, var

    difference = max(_difference(a, b) for a, b in zip(channel_statistics(x), reduced(), strict=True))
    bench.check("batch_norm_update_stats and var_mean agree", difference < 1e-3)
    for name, work in (("batch_norm_update_stats", lambda: channel_statistics(x)), ("var_mean", reduced)):
        took = milliseconds(bench, work)
        bench.figure(f"{name} of bf16, ms", took)
        bench.figure(f"{name} of bf16, GB/s of its input", x.nbytes / took / 1e6)


def _transposed_convolution(bench: Bench) -> None:
    """The generator's second convolution, of a map that is upsampled by 2."""
    num_images, side = bench.size((128, 56), (2, 8))
    conv = nn.Conv2d(128, 64, 3, padding=1).to(bench.device, memory_format=torch.channels_last)
    x = torch.randn(num_images, 128, side, side, device=bench.device).to(memory_format=torch.channels_last)
    x.requires_grad_()
    gradient = torch.randn(num_images, 64, 2 * side, 2 * side, device=bench.device).to(bench.dtype)

    def transposed(x: Tensor) -> Tensor:
        with torch.autocast(bench.device.type, bench.dtype, enabled=bench.dtype != torch.float32):
            return _upsampled_convolution(x, conv)

    def upsampled(x: Tensor) -> Tensor:
        with torch.autocast(bench.device.type, bench.dtype, enabled=bench.dtype != torch.float32):
            return F.conv2d(x.repeat_interleave(2, 2).repeat_interleave(2, 3), conv.weight, conv.bias, padding=1)

    both_ways = _both_ways(transposed, x, gradient)
    first = both_ways()
    bench.check("transposed convolution: 5 equal gradients", all(first.equal(both_ways()) for _ in range(4)))
    took = milliseconds(bench, both_ways)
    operations = 3 * 2 * gradient.numel() * 128 * 4  # forward, and two products backward, of four taps per value
    bench.figure("transposed convolution, both ways, ms", took)
    bench.figure("transposed convolution, both ways, TFLOP/s", operations / took / 1e9)
    bench.figure("upsampling and convolution, both ways, ms", milliseconds(bench, _both_ways(upsampled, x, gradient)))
    bench.figure("the two differ by at most", _difference(transposed(x), upsampled(x)))


def _adam(bench: Bench) -> None:
    """Adam of the generator's linear layer for 224 x 224 pixels."""
    weights = nn.Parameter(torch.zeros(bench.size(256 * 128 * 56 * 56, 1 << 12), device=bench.device))
    weights.grad = torch.ones_like(weights)
    rate = torch.tensor(0.01, device=bench.device)
    optimizer = torch.optim.Adam([weights], lr=rate, fused=True, capturable=bench.is_cuda)
    took = milliseconds(bench, optimizer.step)
    bench.figure(f"Adam of {weights.numel() / 1e6:.3g} million, ms", took)
    bench.figure("Adam, GB/s", _ADAM_BYTES * weights.numel() / took / 1e6)


def _masks(bench: Bench) -> None:
    """Random masks of a recorded step against those of an eager one."""
    bench.require_cuda()
    like = torch.empty(bench.size((32, 64, 56, 56), (2, 4, 8, 8)), device=bench.device, dtype=bench.dtype)
    eager, recorded = (RandomMasks(0.5, make_generator(bench.device, 0, "masks")) for _ in range(2))
    out = torch.empty_like(like)
    step = GraphedStep(lambda: out.copy_(recorded.draw(like)), bench.device, (recorded.generator,))
    equal = []
    for _ in range(2 * WARMUP_STEPS):
        step()
        equal.append(out.equal(eager.draw(like)))
    bench.check("random masks: recorded are the eager ones", all(equal))
    bench.figure("masks that are equal, in their order", equal)
    bench.figure(
        f"a mask of {like.numel() / 1e6:.2g} million values, eager, ms", milliseconds(bench, lambda: eager.draw(like))
    )
    bench.figure("the same recorded, ms", milliseconds(bench, step))
    step.close()


def _both_ways(function: Callable[[Tensor], Tensor], x: Tensor, gradient: Tensor) -> Callable[[], Tensor]:
    return lambda: torch.autograd.grad(function(x), x, gradient)[0]


def _difference(a: Tensor, b: Tensor) -> float:
    return float((a.float() - b.float()).abs().max())
