"""The most disk space that a synthesis takes at once."""

from __future__ import annotations

import torch

from genie_cli.artifacts.disk import TENSOR_BYTES, DiskNeed
from genie_cli.config import InputSpec, SynthesizeConfig
from genie_cli.synthesis.distill import LOG_EVERY, batch_sizes
from genie_cli.synthesis.generator import Generator
from genie_cli.synthesis.image_source import new_conditioning

_KEPT = torch.float32.itemsize
_IMAGE_BYTES = {"float16": 2, "uint8": 1}
_ROW_BYTES = 80
"""Of the loss curve, as text."""
_VALUES_LEARNED = 3
"""Of a parameter in a checkpoint: itself and Adam's two moments."""

_SMALL_TENSORS = 10
"""In a checkpoint: counters, rates, and what the schedule remembers."""


def synthesis_need(spec: InputSpec, num_classes: int, config: SynthesizeConfig, num_at_once: int = 1) -> DiskNeed:
    """Bytes that `synthesize_images` keeps, and those of its output.

    All finished batches stay until the output stands, and each of those at work, of all processes, replaces one of
    its two checkpoints, of which three exist while it does so.
    """
    sizes = batch_sizes(config.num_images, config.batch_size)
    rows = (config.num_steps // LOG_EVERY + 2) * _ROW_BYTES
    image = spec.num_channels * spec.size**2
    parts = config.num_images * image * _KEPT + len(sizes) * rows
    output = config.num_images * image * _IMAGE_BYTES[config.image_dtype] + len(sizes) * rows
    checkpoint = checkpoint_bytes(spec, num_classes, max(sizes), config) + rows
    return DiskNeed(parts + max(output, 3 * checkpoint * min(num_at_once, len(sizes))))


def checkpoint_bytes(spec: InputSpec, num_classes: int, batch_size: int, config: SynthesizeConfig) -> int:
    """The state inside a batch: what the source holds, and the optimizers' moments."""
    if not config.generator:
        pixels = batch_size * spec.num_channels * spec.size**2
        return _VALUES_LEARNED * pixels * _KEPT + (_VALUES_LEARNED + _SMALL_TENSORS) * TENSOR_BYTES
    with torch.device("meta"):  # shapes alone
        networks = [Generator(config.latent_dim, spec), new_conditioning(num_classes, config)]
    weights = [weight for network in networks if network is not None for weight in network.parameters()]
    buffers = [buffer for network in networks if network is not None for buffer in network.buffers()]
    noise = batch_size * config.latent_dim
    learned = sum(weight.numel() for weight in weights) + (noise if config.learns_latents else 0)
    other = sum(buffer.numel() * buffer.itemsize for buffer in buffers) + len(torch.random.get_rng_state())
    values = _VALUES_LEARNED * learned + (0 if config.learns_latents else noise)
    num_tensors = _VALUES_LEARNED * (len(weights) + 1) + len(buffers) + _SMALL_TENSORS
    return values * _KEPT + other + num_tensors * TENSOR_BYTES
