"""The same work done as the paper's public code does it: the baseline of the speed and accuracy figures.

It was written from a description of that code, not from its text. Synthesis: float32 in NCHW, statistics of
every batch norm by autograd in hooks, no parameter frozen, the whole network run, losses read on
the host each step. Quantization: batch norms stay, both networks are run over all images again
for each unit, three sets of activations are kept whole, and steps consist of ordinary autograd operations.

    python benchmarks/baseline.py --model cifar_resnet20 --synthesis-steps 20 --quantize-steps 50
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genie_cli.config import ModelConfig
from genie_cli.models.checkpoints import load_into, read_state
from genie_cli.models.zoo import load_architecture

_BLOCKS = {"BasicBlock", "Bottleneck", "InvertedResidual"}
_GAMMA, _ZETA = -0.1, 1.1
_FORWARD_BATCH = 64


def load_module(name: str, weights: Path | None = None) -> nn.Module:
    """A network as an ordinary module, in evaluation mode; random weights without a file."""
    module = load_architecture(ModelConfig(name=name))
    if weights is not None:
        load_into(module, read_state(weights), str(weights))
    return module.eval()


class _Swing(nn.Module):
    """A strided convolution behind reflection padding and a random crop."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        top, left = (int(torch.randint(3, ())) for _ in range(2))
        x = F.pad(x, (1, 1, 1, 1), mode="reflect")[:, :, top : top + height, left : left + width]
        return self.conv(x)  # type: ignore[no-any-return]


class _Generator(nn.Module):
    """Linear, BN, up, conv, BN, LeakyReLU, up, conv, tanh, BN without affine."""

    def __init__(self, num_channels: int, size: int) -> None:
        super().__init__()
        self.base = size // 4
        self.linear = nn.Linear(256, 128 * self.base**2)
        self.body = nn.Sequential(
            nn.BatchNorm2d(128),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(128, 64, 3, padding=1),
            nn.BatchNorm2d(64),
            nn.LeakyReLU(0.2),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(64, num_channels, 3, padding=1),
            nn.Tanh(),
            nn.BatchNorm2d(num_channels, affine=False),
        )

    def forward(self, latents: Tensor) -> Tensor:
        return self.body(self.linear(latents).view(len(latents), 128, self.base, self.base))  # type: ignore[no-any-return]


class BaselineSynthesis:
    """One batch of images that is being synthesized; `images` are those of the last step."""

    def __init__(self, model: nn.Module, num_channels: int, size: int, batch_size: int = 128, seed: int = 0) -> None:
        """Hook the batch norms of a copy of `model` and start a generator with its latents."""
        torch.manual_seed(seed)
        self._model = copy.deepcopy(model).eval()
        for parent in list(self._model.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, nn.Conv2d) and child.stride != (1, 1) and not isinstance(parent, _Swing):
                    setattr(parent, name, _Swing(child))
        self._norms = [m for m in self._model.modules() if isinstance(m, nn.BatchNorm2d)]
        self._inputs: dict[nn.Module, Tensor] = {}
        for norm in self._norms:
            norm.register_forward_hook(self._keep_input)
        self._generator = _Generator(num_channels, size).train()
        self._latents = nn.Parameter(torch.randn(batch_size, 256))
        self._latent_optimizer = torch.optim.Adam([self._latents], lr=0.1)
        self._generator_optimizer = torch.optim.Adam(self._generator.parameters(), lr=0.01)
        self._plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(self._latent_optimizer, patience=100, min_lr=1e-4)
        self._decay = torch.optim.lr_scheduler.ExponentialLR(self._generator_optimizer, 0.95)
        self._steps = 0
        self.images = torch.empty(0)

    def _keep_input(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self._inputs[module] = inputs[0]

    def step(self) -> float:
        """Take one optimisation step and return its loss."""
        images = self._generator(self._latents)
        self._model(images)
        loss = torch.zeros(())
        for norm in self._norms:
            std, mean = torch.std_mean(self._inputs[norm], (0, 2, 3))
            assert norm.running_mean is not None and norm.running_var is not None
            loss = loss + F.mse_loss(mean, norm.running_mean) + F.mse_loss(std, (norm.running_var + 1e-6).sqrt())
        std, mean = torch.std_mean(images, (2, 3))
        loss = loss + (mean.square().sum() + (std - 1).square().sum()) / len(images)
        self._latent_optimizer.zero_grad()
        self._generator_optimizer.zero_grad()
        loss.backward()
        self._latent_optimizer.step()
        self._generator_optimizer.step()
        self._plateau.step(loss.item())
        self._steps += 1
        if self._steps % 100 == 0:
            self._decay.step()
        self.images = images.detach()
        return loss.item()


def baseline_images(
    model: nn.Module, num_channels: int, size: int, num_images: int, num_steps: int, seed: int = 0
) -> Tensor:
    """``[num_images, C, S, S]`` in batches of 128 (the remainder is dropped)."""
    batches = []
    for index in range(num_images // 128):
        synthesis = BaselineSynthesis(model, num_channels, size, 128, 1000 * seed + index)
        for _ in range(num_steps):
            synthesis.step()
        batches.append(synthesis.images)
    return torch.cat(batches)


def _through(rounded: Tensor, x: Tensor) -> Tensor:
    """`rounded` with the gradient of `x`."""
    return (rounded - x).detach() + x


class _ActivationQuantizer(nn.Module):
    """A learned step size (LSQ) and random dropping (QDrop)."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits, self.active, self.learning = bits, False, False
        self.low, self.high = 0, 2**bits - 1
        self.step = nn.Parameter(torch.ones(()))

    def calibrate(self, x: Tensor) -> None:
        """Search the step of least |x - q(x)|^2.4 over 100 ratios."""
        if bool((x < 0).any()):
            self.low, self.high = -(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1
        full, best = float(x.abs().max()) / self.high, math.inf
        for i in range(100):
            step = max(full * (1 - i / 100), 1e-8)
            error = float((x - (x / step).round().clamp(self.low, self.high) * step).abs().pow(2.4).mean())
            if error < best:
                best = error
                self.step.data.fill_(step)
        self.active = True

    def forward(self, x: Tensor) -> Tensor:
        if not self.active:
            return x
        scaled = x / self.step
        quantized = torch.clamp(_through(scaled.round(), scaled), self.low, self.high) * self.step
        return torch.where(torch.rand_like(x) < 0.5, quantized, x) if self.learning else quantized


class _Layer(nn.Module):
    """A convolution or linear layer with a learned integer weight, and a quantizer of its input where it has one."""

    def __init__(self, layer: nn.Conv2d | nn.Linear, bits: int, input_bits: int | None) -> None:
        super().__init__()
        self.layer, self.bits = layer, bits
        self.input = _ActivationQuantizer(input_bits) if input_bits is not None else None
        self.mode = "full"
        self.weight: Tensor | None = None

    def start(self) -> None:
        """Search the range of each channel; softbits start at the fractional part."""
        weight, top = self.layer.weight.detach(), 2**self.bits - 1
        rows = weight.flatten(1)
        low, high = rows.amin(1, keepdim=True).clamp(max=0), rows.amax(1, keepdim=True).clamp(min=0)
        best = torch.full_like(low, math.inf)
        scale, zero = torch.ones_like(low), torch.zeros_like(low)
        for i in range(100):
            ratio = 1 - i / 100
            s = ((high - low) * ratio / top).clamp(min=1e-8)
            z = (-low * ratio / s).round()
            error = (rows - ((rows / s).round() + z).clamp(0, top).sub(z) * s).abs().pow(2.4).sum(1, keepdim=True)
            better = error < best
            best, scale, zero = (torch.where(better, a, b) for a, b in ((error, best), (s, scale), (z, zero)))
        shape = (-1, *[1] * (weight.dim() - 1))
        self.scale, self.zero = nn.Parameter(scale.view(shape)), zero.view(shape)
        self.floor = (weight / self.scale.detach()).floor()
        rest = (weight / self.scale.detach() - self.floor).clamp(1e-4, 1 - 1e-4)
        self.logits = nn.Parameter(-torch.log((_ZETA - _GAMMA) / (rest - _GAMMA) - 1))
        self.mode = "soft"

    def softbits(self) -> Tensor:
        """The softbits V in [0, 1]."""
        return (torch.sigmoid(self.logits) * (_ZETA - _GAMMA) + _GAMMA).clamp(0, 1)

    def finish(self) -> None:
        """Round the softbits."""
        bits = (self.logits >= 0).float()
        self.weight = self._dequantized(bits).detach()
        self.mode = "hard"

    def _dequantized(self, softbits: Tensor) -> Tensor:
        codes = (self.floor + softbits + self.zero).clamp(0, 2**self.bits - 1)
        return (codes - self.zero) * self.scale

    def forward(self, x: Tensor) -> Tensor:
        if self.input is not None:
            x = self.input(x)
        weight = self.layer.weight
        if self.mode == "soft":
            weight = self._dequantized(self.softbits())
        elif self.weight is not None:
            weight = self.weight
        if isinstance(self.layer, nn.Linear):
            return F.linear(x, weight, self.layer.bias)
        conv = self.layer
        return F.conv2d(x, weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups)


class _Block(nn.Module):
    """A residual block whose input is quantized once, for its layers and its skip."""

    def __init__(self, block: nn.Module, input_bits: int) -> None:
        super().__init__()
        self.block, self.input = block, _ActivationQuantizer(input_bits)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(self.input(x))  # type: ignore[no-any-return]


def _units(model: nn.Module, weight_bits: int, activation_bits: int) -> list[tuple[str, nn.Module]]:
    """Replace layers and blocks in place by quantized ones; the units in their order of registration."""
    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    order = {name: i for i, (name, _) in enumerate(layers)}
    last = len(layers) - 1

    def bits(name: str) -> tuple[int, int | None]:
        at = order[name]
        inputs = None if at == 0 else 8 if at in (1, last) else activation_bits
        return 8 if at in (0, last) else weight_bits, inputs

    def replace(parent: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
        for name, child in list(parent.named_children()):
            path = f"{prefix}{name}"
            if type(child).__name__ in _BLOCKS:
                inner = [n for n, m in child.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
                first_inputs = bits(f"{path}.{inner[0]}")[1]
                for at, key in enumerate(inner):
                    owner, _, leaf = key.rpartition(".")
                    weight, inputs = bits(f"{path}.{key}")
                    reads_block_input = at == 0 or "downsample" in key
                    layer = child.get_submodule(key)
                    assert isinstance(layer, nn.Conv2d | nn.Linear)
                    setattr(
                        child.get_submodule(owner), leaf, _Layer(layer, weight, None if reads_block_input else inputs)
                    )
                block = _Block(child, first_inputs or 8)
                setattr(parent, name, block)
                yield path, block
            elif isinstance(child, nn.Conv2d | nn.Linear):
                layer = _Layer(child, *bits(path))
                setattr(parent, name, layer)
                yield path, layer
            else:
                yield from replace(child, f"{path}.")

    return list(replace(model, ""))


@torch.no_grad()
def _record(model: nn.Module, module: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs and outputs of one module over all images, by running the whole network."""
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []

    def keep(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        inputs.append(args[0])
        outputs.append(output)

    handle = module.register_forward_hook(keep)
    for batch in images.split(_FORWARD_BATCH):
        model(batch)
    handle.remove()
    return torch.cat(inputs), torch.cat(outputs)


def quantize_baseline(
    model: nn.Module,
    images: Tensor,
    weight_bits: int,
    activation_bits: int,
    num_steps: int,
    batch_size: int = 32,
    seed: int = 0,
    on_unit: Callable[[str, float, float], None] | None = None,
) -> nn.Module:
    """A quantized copy of `model` (protocol ``genie``); `on_unit` gets name, fixed seconds, seconds of steps."""
    torch.manual_seed(seed)
    full, student = copy.deepcopy(model).eval(), copy.deepcopy(model).eval()
    for name, unit in _units(student, weight_bits, activation_bits):
        started = time.perf_counter()
        full_inputs, targets = _record(full, full.get_submodule(name), images)
        quantized_inputs, _ = _record(student, unit, images)
        layers = [m for m in unit.modules() if isinstance(m, _Layer)]
        sites = [m for m in unit.modules() if isinstance(m, _ActivationQuantizer)]
        for layer in layers:
            layer.start()
        _calibrate(unit, sites, quantized_inputs[:32])
        prepared = time.perf_counter()
        _learn(unit, layers, sites, full_inputs, quantized_inputs, targets, num_steps, batch_size)
        if on_unit is not None:
            on_unit(name, prepared - started, time.perf_counter() - prepared)
    return student


@torch.no_grad()
def _calibrate(unit: nn.Module, sites: list[_ActivationQuantizer], inputs: Tensor) -> None:
    def fit(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        assert isinstance(module, _ActivationQuantizer)
        module.calibrate(args[0])

    handles = [site.register_forward_pre_hook(fit) for site in sites]
    unit(inputs)
    for handle in handles:
        handle.remove()


def _learn(
    unit: nn.Module,
    layers: list[_Layer],
    sites: list[_ActivationQuantizer],
    full_inputs: Tensor,
    quantized_inputs: Tensor,
    targets: Tensor,
    num_steps: int,
    batch_size: int,
) -> None:
    rounding = torch.optim.Adam([layer.logits for layer in layers], lr=1e-3)
    steps = [torch.optim.Adam([layer.scale for layer in layers], lr=1e-4)]
    if sites:
        steps.append(torch.optim.Adam([site.step for site in sites], lr=4e-5))
    schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps) for optimizer in steps]
    for site in sites:
        site.learning = True
    warmup = 0.2 * num_steps
    for step in range(num_steps):
        rows = torch.randperm(len(targets))[:batch_size]
        full, quantized = full_inputs[rows], quantized_inputs[rows]
        mixed = torch.where(torch.rand_like(full) < 0.5, quantized, full)
        loss = (unit(mixed) - targets[rows]).abs().pow(2).sum(1).mean()
        if step >= warmup:
            beta = 2 + 18 * max(0.0, 1 - (step - warmup) / (num_steps - warmup))
            for layer in layers:
                loss = loss + (1 - (2 * layer.softbits() - 1).abs().pow(beta)).sum()
        for optimizer in (rounding, *steps):
            optimizer.zero_grad()
        loss.backward()
        for optimizer in (rounding, *steps):
            optimizer.step()
        for schedule in schedules:
            schedule.step()
    for layer in layers:
        layer.finish()
    for site in sites:
        site.learning = False


def main() -> None:
    """Measure the baseline alone and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="cifar_resnet20")
    parser.add_argument("--weights", type=Path, help="local file; random weights without it")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--synthesis-steps", type=int, default=20)
    parser.add_argument("--quantize-steps", type=int, default=50)
    parser.add_argument("--num-images", type=int, default=256)
    parser.add_argument("--threads", type=int, default=0)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    model = load_module(args.model, args.weights)
    synthesis = BaselineSynthesis(model, 3, args.size, args.batch_size)
    seconds = []
    for _ in range(args.synthesis_steps):
        started = time.perf_counter()
        synthesis.step()
        seconds.append(time.perf_counter() - started)
    sys.stdout.write(f"synthesis: {1e3 * statistics.median(seconds):.0f} ms per step of {args.batch_size}\n")

    def show(name: str, fixed: float, steps: float) -> None:
        sys.stdout.write(f"{name}: {fixed:.2f} s fixed, {1e3 * steps / args.quantize_steps:.2f} ms per step\n")

    images = torch.randn(args.num_images, 3, args.size, args.size)
    quantize_baseline(model, images, 4, 4, args.quantize_steps, on_unit=show)


if __name__ == "__main__":
    main()
