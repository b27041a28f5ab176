"""Train the embedded digits teacher and write its weights.

    python benchmarks/train_digits.py --out genie_cli/models/assets/digits_resnet.safetensors

The same options on the same machine write the same bytes. After training, the batch-norm statistics are
set to those of the whole clean training split, in one pass. Synthesis then matches statistics of real
images, and not those of the last augmented batches.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from genie_cli.data.digits import split
from genie_cli.data.normalize import normalize_pixels
from genie_cli.models.digits import INPUT_SPEC, DigitsResNet, digits_resnet

NUM_THREADS = 1
"""Fixed, because the order of sums and so the last bits depend on it; more would not help so small a network."""
BATCH_SIZE = 64
LEARNING_RATE = 0.1
WARMUP = 0.15
WEIGHT_DECAY = 5e-4
LABEL_SMOOTHING = 0.1
MAX_ROTATION = math.radians(12)
MAX_SCALE = 0.12
MAX_SHEAR = 0.15
MAX_SHIFT = 0.15
"""Share of half the image's side: 0.15 is 1.2 pixels of 16."""


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Rotate, scale, shear and shift each image at random; pixels from outside the image are black.

    Args:
        images: float32 [B, 1, S, S], black is 0.
        generator: source of the random numbers.

    Returns:
        float32 [B, 1, S, S].
    """

    def uniform(bound: float) -> Tensor:
        return (torch.rand(len(images), generator=generator) * 2 - 1) * bound

    angle, scale = uniform(MAX_ROTATION), 1 + uniform(MAX_SCALE)
    shear, shift_x, shift_y = uniform(MAX_SHEAR), uniform(MAX_SHIFT), uniform(MAX_SHIFT)
    cos, sin = angle.cos() / scale, angle.sin() / scale
    rows = [torch.stack([cos, shear - sin, shift_x], 1), torch.stack([sin, cos, shift_y], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def train(images: Tensor, labels: Tensor, seed: int, num_epochs: int) -> DigitsResNet:
    """A trained network in evaluation mode.

    Args:
        images: pixels, uint8 [n, 1, S, S].
        labels: int64 [n].
        seed: seed of the initial weights, the order of the images and the augmentation.
        num_epochs: passes over the images.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    network = digits_resnet()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    optimizer = torch.optim.SGD(
        network.parameters(), LEARNING_RATE, momentum=0.9, weight_decay=WEIGHT_DECAY, nesterov=True
    )
    num_batches = len(images) // BATCH_SIZE
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, total_steps=num_batches * num_epochs, pct_start=WARMUP
    )
    for epoch in range(num_epochs):
        order = torch.randperm(len(images), generator=generator)
        total = 0.0
        for chosen in order[: num_batches * BATCH_SIZE].view(num_batches, BATCH_SIZE):
            distorted = augment(images[chosen] / 255, generator) * 255
            logits = network(normalize_pixels(distorted, INPUT_SPEC))
            loss = F.cross_entropy(logits, labels[chosen], label_smoothing=LABEL_SMOOTHING)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
            total += loss.item()
        if (epoch + 1) % 10 == 0:
            sys.stdout.write(f"epoch {epoch + 1}/{num_epochs}: loss {total / num_batches:.4f}\n")
    estimate_statistics(network, images)
    return network.eval()


@torch.no_grad()
def estimate_statistics(network: DigitsResNet, images: Tensor) -> None:
    """Set every batch norm's running statistics to those of `images`, uint8 [n, 1, S, S]."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    usual = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    network.train()(normalize_pixels(images, INPUT_SPEC))
    for norm, momentum in zip(norms, usual, strict=True):
        norm.momentum = momentum


@torch.no_grad()
def accuracy(network: DigitsResNet, images: Tensor, labels: Tensor) -> float:
    """Top-1 in percent on pixels uint8 [n, 1, S, S]."""
    predicted = network(normalize_pixels(images, INPUT_SPEC)).argmax(1)
    return 100 * int((predicted == labels).sum()) / len(labels)


def main() -> None:
    """Train, report, save."""
    parser = argparse.ArgumentParser(description="Train the embedded digits teacher.")
    parser.add_argument("--out", type=Path, required=True, help="safetensors file to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=50)
    options = parser.parse_args()

    torch.set_num_threads(NUM_THREADS)
    torch.use_deterministic_algorithms(True)
    start = time.perf_counter()
    images, labels = split(train=True)
    network = train(images, labels, options.seed, options.epochs)
    seconds = time.perf_counter() - start
    test_images, test_labels = split(train=False)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_bytes(save(network.state_dict()))
    sys.stdout.write(
        f"train {accuracy(network, images, labels):.2f} % (n {len(labels)}), "
        f"test {accuracy(network, test_images, test_labels):.2f} % (n {len(test_labels)}), "
        f"{seconds:.0f} s, seed {options.seed}, {options.epochs} epochs, "
        f"{NUM_THREADS} thread, torch {torch.__version__}\n"
    )


if __name__ == "__main__":
    main()
