"""Random numbers that depend only on the seed and on the place of use."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

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
"""Values in a pool of masks."""
MASK_CUTS = 256
"""Number of masks that are cut out of a pool before it is drawn again."""
_PLACES = 1 << 40
"""Places are drawn below this bound, modulo the number of places: no place is favoured by more than 1e-6."""


class RandomMasks:
    """Masks as `random_mask` draws them; on a CPU they are cut out of a pool at random places.

    Every element of a mask is independent of the others, and masks that start at different places are
    independent of one another element by element. Drawing each mask anew would take a tenth of a step.
    """

    def __init__(self, prob: float, generator: torch.Generator) -> None:
        """Prepare masks whose elements are 1 with probability `prob`, else 0."""
        self._prob, self.generator = prob, generator
        self._pools: dict[torch.dtype, Tensor] = {}
        self._places: list[int] = []
        self._layouts: dict[tuple[torch.Size, tuple[int, ...]], tuple[int, ...]] = {}
        self._watcher: list[Tensor] | None = None
        self._given: Iterator[Tensor] | None = None

    @contextmanager
    def watched(self) -> Iterator[list[Tensor]]:
        """Give a list that fills with what is drawn inside: tensors without memory, in the shapes of the masks."""
        self._watcher = []
        try:
            yield self._watcher
        finally:
            self._watcher = None

    @contextmanager
    def given(self, masks: Sequence[Tensor]) -> Iterator[None]:
        """Hand out `masks`, which were drawn before, in their order, in place of new ones."""
        self._given = iter(masks)
        try:
            yield
        finally:
            self._given = None

    def state(self) -> dict[str, Tensor]:
        """The pool and the places that are still to be cut; the generator's state is saved by its owner."""
        pool = self._pools[torch.float32] == 1 if self._pools else torch.empty(0, dtype=torch.bool)
        return {"pool": pool, "places": torch.tensor(self._places, dtype=torch.int64)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state."""
        self._pools = {torch.float32: state["pool"].float()} if len(state["pool"]) else {}
        self._places = state["places"].tolist()

    def has_room_for(self, like: Tensor) -> bool:
        """True if a mask in the shape of `like` is a view of the pool."""
        return self.generator.device.type == "cpu" and like.numel() <= MASK_POOL // 2

    def draw(self, like: Tensor) -> Tensor:
        """A mask in the shape, memory layout and dtype of `like`; do not write to it."""
        if self._given is not None:
            return next(self._given)
        if self._watcher is not None:
            self._watcher.append(torch.empty_like(like, device="meta"))
        numel = like.numel()
        if not self.has_room_for(like):
            return random_mask(like, self._prob, self.generator)
        if not self._places:
            self._pools = {torch.float32: random_mask(torch.empty(MASK_POOL), self._prob, self.generator)}
            self._places = torch.randint(_PLACES, (MASK_CUTS,), generator=self.generator).tolist()
        if like.dtype not in self._pools:
            self._pools[like.dtype] = self._pools[torch.float32].to(like.dtype)
        first = self._places.pop() % (MASK_POOL - numel + 1)
        key = like.shape, like.stride()
        if key not in self._layouts:
            self._layouts[key] = torch.empty_like(like, device="meta").stride()
        return self._pools[like.dtype].as_strided(like.shape, self._layouts[key], first)


def random_mask(like: Tensor, prob: float, generator: torch.Generator) -> Tensor:
    """A tensor of 0 and 1 in the shape, memory layout and floating dtype of `like`, 1 with probability `prob`.

    The probability is rounded to 1/256: one random byte per element costs an eighth of a random float. A
    view with gaps or repeats, such as half of a tensor's channels, gets the dense layout nearest to it.
    """
    numel = like.numel()
    words = torch.empty((numel + 7) // 8, dtype=torch.int64, device=like.device)
    words.random_(-(2**63), None, generator=generator)
    mask = torch.empty_like(like, requires_grad=False)
    if (threshold := round(prob * 256)) == 0:
        return mask.zero_()
    # bytes compared as they are: 256 is no byte, so not "<"
    torch.le(words.view(torch.uint8)[:numel], threshold - 1, out=mask.as_strided((numel,), (1,)))
    return mask
