"""Duplicates within a window of offsets."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from streams.recent_ids import RecentIds


def test_event_is_a_duplicate_for_at_least_a_window_and_at_most_two() -> None:
    recent = RecentIds(10)
    assert [recent.take(offset, "a") for offset in (0, 9, 19)] == [False, True, True]
    assert not recent.take(40, "a")


@given(st.lists(st.sampled_from("abcdef"), max_size=60), st.integers(1, 9), st.integers(0, 60))
def test_one_that_starts_anywhere_answers_as_one_that_never_stopped(
    event_ids: list[str], window: int, stop: int
) -> None:
    whole = RecentIds(window)
    expected = [whole.take(offset, event_id) for offset, event_id in enumerate(event_ids)]
    restarted = RecentIds(window)
    begin = restarted.begin_of(stop)
    for offset, event_id in enumerate(event_ids[begin:stop], start=begin):
        restarted.take(offset, event_id)
    assert [
        restarted.take(offset, event_id)
        for offset, event_id in enumerate(event_ids[stop:], start=stop)
    ] == expected[stop:]
    for offset, found in enumerate(expected):
        if event_ids[offset] in event_ids[max(0, offset - window) : offset]:
            assert found
        if event_ids[offset] not in event_ids[max(0, offset - 2 * window) : offset]:
            assert not found
