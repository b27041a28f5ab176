"""Streams of the pretended GPU: who waits for whom, and accesses to memory that nothing has put in order.

Each stream counts its operations, and knows how far it has waited for the others (a vector clock). An access to
memory must come behind all accesses of other streams that it could disturb. What is freed goes back to the stream
that took it, as in PyTorch's allocator, and must not be taken again while another stream may still use it.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

Clock = dict[int, int]
"""Stream -> the last of its operations that is known to be over."""


def join(clock: Clock, other: Clock) -> None:
    """Know what `other` knows."""
    for stream, tick in other.items():
        if clock.get(stream, 0) < tick:
            clock[stream] = tick


@dataclass
class Accesses:
    """The last accesses to one piece of memory.

    Attributes:
        home: the stream that took it.
        written: the last operation that wrote, by stream: one entry, or none.
        read: the last operations that read since then, by stream.
    """

    home: int
    written: Clock = field(default_factory=dict)
    read: Clock = field(default_factory=dict)


class Stream:
    """A stream: an order of operations, of which the pretended GPU computes each at once."""

    def __init__(self, streams: Streams, device: Any = None, priority: int = 0) -> None:
        self._streams = streams
        self.cuda_stream = next(streams.numbers)
        self.clock: Clock = {self.cuda_stream: 0}

    def wait_stream(self, other: Stream) -> None:
        """What comes is behind all that `other` has been given."""
        join(self.clock, other.clock)

    def wait_event(self, event: Event) -> None:
        """What comes is behind `event`."""
        join(self.clock, event.clock)

    def record_event(self, event: Event | None = None) -> Event:
        """Put an event behind all that this stream has been given."""
        event = event or Event(self._streams)
        event.record(self)
        return event

    def synchronize(self) -> None:
        """Let the host wait for all that this stream has been given."""
        self._streams.host_waits("for a stream", self.clock)

    def is_capturing(self) -> bool:
        """True inside a recording."""
        return self._streams.is_capturing()


class Event:
    """A place in the order of a stream."""

    def __init__(self, streams: Streams, **options: Any) -> None:
        self._streams = streams
        self.clock: Clock = {}

    def record(self, stream: Stream | None = None) -> None:
        """Be the place behind all that the stream has been given."""
        self.clock = dict((stream or self._streams.current).clock)

    def synchronize(self) -> None:
        """Let the host wait for this place."""
        self._streams.host_waits("for an event", self.clock)


class Streams:
    """All streams, the host among those that wait, and the accesses that were in no order.

    Attributes:
        current: the stream that operations go to.
        disorders: accesses that nothing has put in order, in words.
    """

    def __init__(self) -> None:
        self.numbers = itertools.count()
        self.current = Stream(self)
        self.disorders: list[str] = []
        self._host: Clock = {}
        self._freed: dict[int, Clock] = defaultdict(dict)

    def is_capturing(self) -> bool:
        """True inside a recording."""
        return False

    def host_waits(self, kind: str, clock: Clock | None = None) -> None:
        """The host waits, for the current stream unless another order is given: what it gives out later is behind."""
        join(self._host, self.current.clock if clock is None else clock)

    def take(self) -> Accesses:
        """Memory for the current stream."""
        stream = self.current
        join(stream.clock, self._host)
        self._check(self._freed[stream.cuda_stream], "memory is taken that was freed and may still be used")
        return Accesses(stream.cuda_stream)

    def free(self, accesses: Accesses) -> None:
        """Give memory back to the stream that took it."""
        for clock in (accesses.written, accesses.read):
            join(self._freed[accesses.home], clock)

    def operate(self, reads: list[Accesses], writes: list[Accesses], what: str) -> None:
        """Give the current stream an operation."""
        stream = self.current
        join(stream.clock, self._host)
        number = stream.cuda_stream
        stream.clock[number] += 1
        for accesses in reads:
            self._check(accesses.written, f"{what} reads what may not be written yet")
            accesses.read[number] = stream.clock[number]
        for accesses in writes:
            self._check(accesses.written, f"{what} writes what may not be written yet")
            self._check(accesses.read, f"{what} writes what may still be read")
            accesses.written, accesses.read = {number: stream.clock[number]}, {}

    def _check(self, earlier: Clock, what: str) -> None:
        own = self.current
        for stream, tick in earlier.items():
            if stream != own.cuda_stream and own.clock.get(stream, 0) < tick:
                self.disorders.append(f"{what}: stream {own.cuda_stream} has not waited for stream {stream}")
                return
