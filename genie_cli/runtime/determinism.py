"""Random numbers that depend on the seed and the place of use alone."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def derive_seed(seed: int, *path: int | str) -> int:
    """A 63-bit seed for one place, e.g. ``derive_seed(0, "batch", 3)``; places are independent."""
    text = "\0".join(str(part) for part in (seed, *path))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def make_generator(device: torch.device, seed: int, *path: int | str) -> torch.Generator:
    """A generator on `device`, seeded for one place."""
    return torch.Generator(device).manual_seed(derive_seed(seed, *path))


def random_mask(like: Tensor, prob: float, generator: torch.Generator) -> Tensor:
    """A float32 tensor of 0 and 1 in the shape and memory layout of `like`, 1 by chance `prob`.

    The chance is rounded to 1/256: one random byte an element costs an eighth of a random float. A
    view with gaps or repeats, such as half of a tensor's channels, gets the dense layout nearest to it.
    """
    numel = like.numel()
    words = torch.empty((numel + 7) // 8, dtype=torch.int64, device=like.device)
    words.random_(-(2**63), None, generator=generator)
    mask = torch.empty_like(like, dtype=torch.float32, requires_grad=False)
    flat = mask.as_strided((numel,), (1,))
    torch.lt(words.view(torch.uint8)[:numel].float(), round(prob * 256), out=flat)
    return mask
