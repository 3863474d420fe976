from __future__ import annotations

import pytest

from infra.clock import Deadline, Laps, now_ms


class FakeMonotonic:
    """A monotonic clock that stands still."""

    now_s = 50.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def monotonic(monkeypatch: pytest.MonkeyPatch) -> FakeMonotonic:
    clock = FakeMonotonic()
    monkeypatch.setattr("infra.clock.time.monotonic", clock)
    return clock


def test_deadline_counts_down_to_zero_and_not_below(monotonic: FakeMonotonic) -> None:
    deadline = Deadline(10)
    remaining = []
    for monotonic.now_s in (50.0, 53.0, 60.0, 99.0):
        remaining.append(deadline.remaining_s())
    assert remaining == [10.0, 7.0, 0.0, 0.0]


def test_deadline_is_expired_once_nothing_remains(monotonic: FakeMonotonic) -> None:
    deadline = Deadline(1)
    assert not deadline.expired()
    monotonic.now_s += 1
    assert deadline.expired()


def test_now_is_whole_milliseconds_since_the_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infra.clock.time.time_ns", lambda: 1_234_567_890_123)
    assert now_ms() == 1_234_567


def test_laps_of_one_name_add_up_and_leave_no_time_out(monotonic: FakeMonotonic) -> None:
    laps = Laps()
    for monotonic.now_s, name in ((51.0, "train"), (53.0, "save"), (57.0, "train")):
        laps.end(name)
    assert laps.seconds == {"train": 5.0, "save": 2.0}
