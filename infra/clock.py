"""The wall clock in the two units we use, budgets and laps; knows nothing of event time, which travels on events."""

from __future__ import annotations

import time


def now_ms() -> int:
    """Return the wall clock as UTC epoch milliseconds."""
    return time.time_ns() // 1_000_000


class Deadline:
    """One monotonic budget, shared by every call it is passed to.

    Raises nothing by itself: callers ask `expired()` or pass `remaining_s()` on.
    """

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def remaining_s(self) -> float:
        """Return the seconds left, never below zero."""
        return max(0.0, self._end - time.monotonic())

    def expired(self) -> bool:
        """Return whether the budget is spent."""
        return self.remaining_s() == 0.0


class Laps:
    """Where the seconds of a job went: each lap is the time since the one before, and laps of a name add up."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._before = time.monotonic()

    def end(self, name: str) -> None:
        """Count the time since the last lap's end, or since the start, for this name."""
        now = time.monotonic()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._before
        self._before = now
