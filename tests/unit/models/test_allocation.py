from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.errors import DecodeError
from models.allocation import Allocator

CODES = (3, 1)
# Few codes and few videos, so that replays and collisions are the rule.
requests = st.lists(st.tuples(st.integers(0, 2), st.sampled_from("abcdef"), st.booleans()))


@given(requests)
def test_allocator_over_replays_and_restarts_gives_the_place_of_the_first_appearance(
    requests: list[tuple[int, str, bool]],
) -> None:
    allocator = Allocator()
    rows: dict[int, list[str]] = {}
    for code, video_id, restarts in requests:
        if restarts:
            allocator = Allocator()
            for stored, row in rows.items():
                for place, holder in enumerate(row):
                    allocator.restore(1, (stored,), place, holder)
        row = rows.setdefault(code, [])
        new = video_id not in row
        if new:
            row.append(video_id)
        found = allocator.allocate(1, (code,), video_id, capacity=6)
        assert found == (row.index(video_id), new)


@given(st.permutations("abcdef"), st.sets(st.sampled_from("abcdef")), st.data())
def test_allocator_that_has_only_some_later_places_fills_the_lower_ones_in_order(
    order: list[str], stored: set[str], data: st.DataObject
) -> None:
    allocator = Allocator()
    for video_id in data.draw(st.permutations(sorted(stored))):
        allocator.restore(1, CODES, order.index(video_id), video_id)
    found = [allocator.allocate(1, CODES, video_id, capacity=6) for video_id in order]
    assert found == [(place, each not in stored) for place, each in enumerate(order)]


def test_allocator_with_all_codes_taken_refuses_only_newcomers() -> None:
    allocator = Allocator()
    for video_id in "ab":
        allocator.allocate(1, CODES, video_id, capacity=2)
    with pytest.raises(DecodeError) as refusal:
        allocator.allocate(1, CODES, "c", capacity=2)
    assert refusal.value.reason == "codes_full"
    assert allocator.allocate(1, CODES, "b", capacity=2) == (1, False)


def test_allocator_keeps_codebook_versions_apart() -> None:
    allocator = Allocator()
    assert allocator.allocate(1, CODES, "a", capacity=2)[0] == 0
    assert allocator.allocate(2, CODES, "b", capacity=2)[0] == 0


def test_allocator_refuses_a_place_that_is_stored_for_two_videos() -> None:
    allocator = Allocator()
    for _ in range(2):
        allocator.restore(1, CODES, 1, "a")
    with pytest.raises(DecodeError) as refusal:
        allocator.restore(1, CODES, 1, "b")
    assert refusal.value.reason == "place_taken"


def test_video_under_codes_of_its_own_takes_some_150_bytes() -> None:
    allocator = Allocator()
    tracemalloc.start()
    for number in range(10_000):
        allocator.allocate(1, (number % 256, number // 256, 7), f"video-{number:020d}", capacity=8)
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert used / 10_000 < 180
