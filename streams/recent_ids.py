"""Whether an event was delivered before, within a bounded window of a partition's offsets; knows nothing of Kafka."""

from __future__ import annotations


class RecentIds:
    """The event ids of the last `window` to twice `window` offsets, in two generations.

    What it answers is a function of the records from `begin_of(offset)` on, so a sealer that starts at an offset reads
    those once more and answers as one that never stopped. It holds hashes of 61 bits: an event is taken for another
    one once in some 1e13.
    """

    __slots__ = ("_begin", "_new", "_old", "window")

    def __init__(self, window: int) -> None:
        self.window = window
        self._begin = 0
        self._old: set[int] = set()
        self._new: set[int] = set()

    def begin_of(self, offset: int) -> int:
        """Return the first offset that decides what is a duplicate at `offset`."""
        return max(0, offset // self.window - 1) * self.window

    def take(self, offset: int, event_id: str) -> bool:
        """Remember an event; return whether it is a duplicate of one in the window. Offsets only grow."""
        if offset >= self._begin + self.window:
            begin = offset - offset % self.window
            self._old = self._new if begin == self._begin + self.window else set()
            self._new = set()
            self._begin = begin
        hashed = hash(event_id)
        if hashed in self._new:
            return True
        self._new.add(hashed)
        return hashed in self._old
