"""Duplicates within a window of offsets."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.recent_ids import RecentIds
from streams.watch_scan import event_fingerprint


def take(recent: RecentIds, events: list[tuple[int, str]]) -> list[bool]:
    """Return which events, an offset and an id each, are duplicates."""
    offsets = np.array([offset for offset, _ in events], np.int64)
    fingerprints = np.array([event_fingerprint("u", event_id) for _, event_id in events], np.uint64)
    return recent.take(offsets, fingerprints).tolist()


def test_event_is_a_duplicate_for_at_least_a_window_and_at_most_two() -> None:
    recent = RecentIds(10)
    assert take(recent, [(0, "a"), (9, "a"), (19, "a")]) == [False, True, True]
    assert take(recent, [(40, "a")]) == [False]


def test_window_that_is_full_of_ids_still_tells_them_apart() -> None:
    recent = RecentIds(1_000)
    first = [(offset, f"e{offset}") for offset in range(1_000)]
    assert not any(take(recent, first))
    assert all(take(recent, [(1_000 + offset, event_id) for offset, event_id in first]))


batches = st.lists(st.lists(st.sampled_from("abcdef"), max_size=20), max_size=6)


@settings(deadline=None)
@given(batches, st.integers(1, 9), st.integers(0, 60))
def test_one_that_starts_anywhere_answers_as_one_that_never_stopped(
    polled: list[list[str]], window: int, stop: int
) -> None:
    event_ids = [event_id for batch in polled for event_id in batch]
    events = list(enumerate(event_ids))
    whole, expected = RecentIds(window), list[bool]()
    for batch in polled:
        expected += take(whole, events[len(expected) : len(expected) + len(batch)])
    restarted = RecentIds(window)
    begin = restarted.begin_of(stop)
    take(restarted, events[begin:stop])
    assert take(restarted, events[stop:]) == expected[stop:]
    for offset, found in enumerate(expected):
        if event_ids[offset] in event_ids[max(0, offset - window) : offset]:
            assert found
        if event_ids[offset] not in event_ids[max(0, offset - 2 * window) : offset]:
            assert not found
