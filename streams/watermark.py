"""How far event time has come in a partition; knows nothing of Kafka and of what is done with late events."""

from __future__ import annotations


class Watermark:
    """Falls behind the newest event by a fixed lateness, and never goes back.

    A player whose clock runs ahead moves it no further than the time at which the record was appended. It is a function
    of the partition's accepted records in the order of their offsets.

    Attributes:
        newest_ms: the newest event so far; what a restart has to know.
    """

    __slots__ = ("_lateness_ms", "newest_ms")

    def __init__(self, *, lateness_ms: int, newest_ms: int = 0) -> None:
        self._lateness_ms = lateness_ms
        self.newest_ms = newest_ms

    def observe(self, event_time_ms: int, append_time_ms: int) -> bool:
        """Take an event in; return whether it was late, older than the newest one by more than the lateness."""
        late = event_time_ms < self.newest_ms - self._lateness_ms
        seen_ms = min(event_time_ms, append_time_ms)
        if seen_ms > self.newest_ms:
            self.newest_ms = seen_ms
        return late
