"""How far event time has come."""

from __future__ import annotations

from streams.watermark import Watermark


def test_event_is_late_when_it_is_older_than_the_newest_by_more_than_the_lateness() -> None:
    watermark = Watermark(lateness_ms=10)
    assert [watermark.observe(time_ms, 1_000) for time_ms in (5, 100, 90, 89, 95)] == [
        False, False, False, True, False,
    ]  # fmt: skip
    assert watermark.newest_ms == 100


def test_clock_that_runs_ahead_makes_nobody_late() -> None:
    watermark = Watermark(lateness_ms=10)
    assert not watermark.observe(9_999, 100)
    assert watermark.newest_ms == 100
    assert not watermark.observe(95, 101)
