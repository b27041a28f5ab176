"""An upper bound of the disk that a synthesis takes at once."""

from __future__ import annotations

import math

import torch

from genie_cli.config import InputSpec, SynthesizeConfig
from genie_cli.synthesis.batches import batch_sizes
from genie_cli.synthesis.generator import Generator
from genie_cli.synthesis.image_source import new_conditioning
from genie_cli.work.room import KEPT_CHECKPOINTS, SMALL_FILE, DiskNeed

_VALUES = 4
"""Float32 values in a checkpoint for each element that learns, at most: itself, Adam's two moments, and buffers."""
_ROW_BYTES = 10
"""Of the loss curve per step, at most: a row of text every ten steps."""


def images_bytes(spec: InputSpec, config: SynthesizeConfig) -> int:
    """Bytes of the file of images, at most."""
    width = torch.uint8.itemsize if config.image_dtype == "uint8" else torch.float16.itemsize
    return width * config.num_images * math.prod(spec.shape) + SMALL_FILE


def synthesis_need(spec: InputSpec, num_classes: int, config: SynthesizeConfig, num_at_once: int) -> DiskNeed:
    """Finished batches, which stay until the output stands, and the output or the checkpoints of batches at work.

    Args:
        spec: the images.
        num_classes: classes of the teacher, which latents may be conditioned on.
        config: budget and recipe.
        num_at_once: batches at work at once, over all processes.
    """
    sizes = batch_sizes(config.num_images, config.batch_size)
    pixels = math.prod(spec.shape)
    learned = max(sizes) * pixels
    if config.generator:
        with torch.device("meta"):  # shapes alone
            networks = [Generator(config.latent_dim, spec), new_conditioning(num_classes, config)]
        state = [tensor for network in networks if network is not None for tensor in network.state_dict().values()]
        learned = max(sizes) * config.latent_dim + sum(tensor.numel() for tensor in state)
    curve = config.num_steps * _ROW_BYTES + SMALL_FILE
    kept = torch.float32.itemsize * config.num_images * pixels + len(sizes) * curve
    output = torch.float16.itemsize * config.num_images * pixels + len(sizes) * curve
    checkpoint = torch.float32.itemsize * _VALUES * learned + curve
    return DiskNeed(kept + max(output, KEPT_CHECKPOINTS * checkpoint * min(num_at_once, len(sizes))))
