"""The bytes of a page: what it stays under, and what charts may take of them."""

from __future__ import annotations

LIMIT = 5_000_000
"""Bytes that a page stays under."""
DRAWN = 4_200_000
"""Bytes of charts and pictures; the rest is for tables."""
MOST_RUNS = 60
"""Runs with a section of their own; more stand in the table alone."""
MOST_ROWS = 400
"""Rows of a table."""


class Room:
    """The bytes that charts may still take."""

    def __init__(self, num_bytes: int) -> None:
        """Start with so many bytes."""
        self.left = num_bytes

    def take(self, drawing: str) -> bool:
        """True if there is room for a drawing, which then takes it."""
        size = len(drawing.encode())
        if size > self.left:
            return False
        self.left -= size
        return True
