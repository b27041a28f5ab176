"""Damaged copies of a file: flipped bits, and ends that are cut off."""

from __future__ import annotations

import random
from collections.abc import Iterator


def damaged_copies(whole: bytes, count: int, seed: int | str) -> Iterator[bytes]:
    """`count` copies of `whole`, each with one to three flipped bits; a quarter of them are cut off besides."""
    rng = random.Random(seed)
    for _ in range(count):
        damaged = bytearray(whole)
        for _ in range(rng.randint(1, 3)):
            damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        if rng.random() < 0.25:
            del damaged[rng.randrange(len(damaged)) :]
        yield bytes(damaged)
