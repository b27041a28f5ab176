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
MASK_CUTS = 256
"""Masks cut out of a pool before it is drawn anew."""
_PLACES = 1 << 40
"""Places are drawn below this and taken modulo the number that there are: none is favoured by more than 1e-6."""


class RandomMasks:
    """Masks as `random_mask` draws them, on a CPU cut out of a pool at random places.

    Every element of a mask is independent of the others, and masks that start at different places are
    independent of one another element by element; drawing each anew would take a tenth of a step.
    """

    def __init__(self, prob: float, generator: torch.Generator) -> None:
        """Masks of 1 by chance `prob`, else 0."""
        self._prob, self._generator = prob, generator
        self._pool: Tensor | None = None
        self._places: list[int] = []
        self._layouts: dict[tuple[torch.Size, tuple[int, ...]], tuple[int, ...]] = {}

    def state(self) -> dict[str, Tensor]:
        """The pool and the places still to be cut at, to go on from; the generator's state is its owner's."""
        pool = torch.empty(0, dtype=torch.bool) if self._pool is None else self._pool == 1
        return {"pool": pool, "places": torch.tensor(self._places, dtype=torch.int64)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state."""
        self._pool = state["pool"].float() if len(state["pool"]) else None
        self._places = state["places"].tolist()

    def draw(self, like: Tensor) -> Tensor:
        """A mask in the shape and memory layout of `like`; it is not to be written to."""
        numel = like.numel()
        if like.device.type != "cpu" or numel > MASK_POOL // 2:
            return random_mask(like, self._prob, self._generator)
        if not self._places:
            self._pool = random_mask(torch.empty(MASK_POOL), self._prob, self._generator)
            self._places = torch.randint(_PLACES, (MASK_CUTS,), generator=self._generator).tolist()
        assert self._pool is not None
        first = self._places.pop() % (MASK_POOL - numel + 1)
        key = like.shape, like.stride()
        if key not in self._layouts:
            self._layouts[key] = torch.empty_like(like, device="meta").stride()
        return self._pool.as_strided(like.shape, self._layouts[key], first)


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
