"""How far event time has come."""

from __future__ import annotations

import numpy as np

from streams.watermark import Watermark


def observed(watermark: Watermark, event_times_ms: list[int], append_time_ms: int) -> list[bool]:
    times = np.array(event_times_ms, np.int64)
    late: list[bool] = watermark.observe(times, np.full_like(times, append_time_ms)).tolist()
    return late


def test_event_is_late_when_it_is_older_than_the_newest_by_more_than_the_lateness() -> None:
    watermark = Watermark(lateness_ms=10)
    assert observed(watermark, [5, 100, 90], 1_000) == [False, False, False]
    assert observed(watermark, [89, 95], 1_000) == [True, False]
    assert watermark.newest_ms == 100


def test_clock_that_runs_ahead_makes_nobody_late() -> None:
    watermark = Watermark(lateness_ms=10)
    assert observed(watermark, [9_999], 100) == [False]
    assert watermark.newest_ms == 100
    assert observed(watermark, [95], 101) == [False]
