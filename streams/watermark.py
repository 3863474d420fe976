"""How far event time has come in a partition; knows nothing of Kafka and of what is done with late events."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


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

    def observe(
        self, event_times_ms: npt.NDArray[np.int64], append_times_ms: npt.NDArray[np.int64]
    ) -> npt.NDArray[Any]:
        """Take the next events in; return which were late, older than the newest one by more than the lateness."""
        seen_ms = np.concatenate([[self.newest_ms], np.minimum(event_times_ms, append_times_ms)])
        newest_ms = np.maximum.accumulate(seen_ms)
        self.newest_ms = int(newest_ms[-1])
        return event_times_ms < newest_ms[:-1] - self._lateness_ms
