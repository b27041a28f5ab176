"""Random numbers that depend on the seed and the place of use alone."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor


def derive_seed(seed: int, *path: int | str) -> int:
    """A 63-bit seed for one place, e.g. ``derive_seed(0, "batch", 3)``; places are independent."""
    text = "\0".join(str(part) for part in (seed, *path))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def make_generator(device: torch.device, seed: int, *path: int | str) -> torch.Generator:
    """A generator on `device`, seeded for one place."""
    return torch.Generator(device).manual_seed(derive_seed(seed, *path))


MASK_POOL = 1 << 20
"""Values of a pool of masks."""
_CUTS = 64
"""Masks cut out of a pool before it is drawn anew."""


class RandomMasks:
    """Masks as `random_mask` draws them, on a CPU cut out of a pool at random places.

    Every element of a mask is independent of the others, and masks that start at different places are
    independent of one another element by element; drawing each anew would take a tenth of a step.
    """

    def __init__(self, prob: float, generator: torch.Generator, otherwise: float = 0.0) -> None:
        """Masks of 1 by chance `prob`, else `otherwise`, which is below 1."""
        self._prob, self._generator, self._otherwise = prob, generator, otherwise
        self._pool: Tensor | None = None
        self._cuts = 0

    def state(self) -> dict[str, Tensor]:
        """The pool and the masks cut out of it, to go on from; the generator's state is its owner's."""
        pool = torch.empty(0, dtype=torch.bool) if self._pool is None else self._pool == 1
        return {"pool": pool, "cuts": torch.tensor(self._cuts)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state."""
        self._pool = self._filled(state["pool"].float()) if len(state["pool"]) else None
        self._cuts = int(state["cuts"])

    def draw(self, like: Tensor) -> Tensor:
        """A mask in the shape and memory layout of `like`; it is not to be written to."""
        numel, shape = like.numel(), torch.empty_like(like, device="meta")
        if like.device.type != "cpu" or numel > MASK_POOL // 2:
            return self._filled(random_mask(like, self._prob, self._generator))
        if self._pool is None or self._cuts == _CUTS:
            self._pool = self._filled(random_mask(torch.empty(MASK_POOL), self._prob, self._generator))
            self._cuts = 0
        self._cuts += 1
        first = int(torch.randint(MASK_POOL - numel + 1, (), generator=self._generator))
        return self._pool.as_strided(shape.shape, shape.stride(), first)

    def _filled(self, mask: Tensor) -> Tensor:
        return mask.clamp_(min=self._otherwise) if self._otherwise else mask


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
