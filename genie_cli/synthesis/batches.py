"""The division of a set of images into batches, and the number of batches that advance together."""

from __future__ import annotations

import math

import torch

from genie_cli.config import InputSpec, SynthesizeConfig

_VALUES_THAT_FILL = 128 * 3 * 128 * 128
"""Values of images that are taken to keep a GPU busy (not measured); batches of fewer advance together."""
_MOST_AT_ONCE = 8


def batch_sizes(num_images: int, batch_size: int) -> list[int]:
    """Sizes that differ by one at most and never exceed `batch_size`, unless one image would be left alone.

    100 images in batches of 128 are one batch of 100; 130 are two of 65, since the statistics of a
    batch of 2 would say little.
    """
    count = max(1, min(-(-num_images // batch_size), num_images // 2))
    return [num_images // count + (i < num_images % count) for i in range(count)]


def batches_at_once(config: SynthesizeConfig, spec: InputSpec, device: torch.device) -> int:
    """Batches that advance together: more than one where a batch is small for a GPU, unless the number is given."""
    if config.batches_at_once is not None:
        return config.batches_at_once
    values = config.batch_size * math.prod(spec.shape)
    return min(_MOST_AT_ONCE, max(1, _VALUES_THAT_FILL // values)) if device.type == "cuda" else 1
