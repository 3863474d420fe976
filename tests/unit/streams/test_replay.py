from __future__ import annotations

import itertools
import math

import pytest

from streams.events import VideoUploaded
from streams.replay import ReplayClock, pace
from streams.timeline import TimelineEvent, on_timeline


class FakeClock:
    """A clock that only sleep and the test itself move."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.slept: list[float] = []

    def now(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now_s += seconds


def events(count: int) -> list[TimelineEvent]:
    return [
        on_timeline(VideoUploaded(event_time_ms=i, video_id=f"v-{i}", title=""))
        for i in range(count)
    ]


def due_times(count: int, events_per_s: float, stalls: dict[int, float]) -> list[float]:
    """Return when each event came, where the consumer stalls after the given ones."""
    clock = FakeClock()
    came = []
    for number, _ in enumerate(pace(events(count), events_per_s, now=clock.now, sleep=clock.sleep)):
        came.append(clock.now_s - 100.0)
        clock.now_s += stalls.get(number, 0.0)
    return came


def test_events_come_at_a_steady_rate() -> None:
    assert due_times(5, 4.0, {}) == [0.0, 0.25, 0.5, 0.75, 1.0]


def test_stall_delays_only_what_was_due_in_it() -> None:
    assert due_times(6, 4.0, {1: 0.6}) == pytest.approx([0.0, 0.25, 0.85, 0.85, 1.0, 1.25])


def test_slow_consumption_does_not_accumulate_drift() -> None:
    came = due_times(1001, 10.0, dict.fromkeys(range(1001), 0.09))
    assert came[-1] == pytest.approx(100.0)


def test_infinite_rate_never_sleeps() -> None:
    clock = FakeClock()
    assert len(list(pace(events(10), math.inf, now=clock.now, sleep=clock.sleep))) == 10
    assert clock.slept == []


@pytest.mark.parametrize("rate", [0.0, -1.0, math.nan])
def test_rate_that_is_not_positive_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="expected a positive number"):
        list(pace(events(1), rate))


def test_events_are_taken_one_by_one_so_that_a_stream_may_be_endless() -> None:
    clock = FakeClock()
    paced = pace(itertools.repeat(events(1)[0]), 1.0, now=clock.now, sleep=clock.sleep)
    assert [next(paced).key for _ in range(3)] == ["v-0"] * 3


def test_replay_clock_never_goes_back() -> None:
    clock = ReplayClock(5)
    for event_time_ms in (10, 7, 12):
        clock.advance_to(event_time_ms)
    assert clock.now_ms() == 12
    clock.advance_to(3)
    assert clock.now_ms() == 12
