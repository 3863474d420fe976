from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.errors import DecodeError
from models.allocation import Allocator

CODES = (3, 1)
# Few codes and few videos, so that replays and collisions are the rule.
requests = st.lists(st.tuples(st.integers(0, 2), st.sampled_from("abcdef"), st.booleans()))


@given(requests)
def test_allocator_over_replays_and_restarts_gives_each_video_one_code_nobody_else_has(
    requests: list[tuple[int, str, bool]],
) -> None:
    allocator = Allocator()
    stored: dict[tuple[int, ...], tuple[str, ...]] = {}
    held: dict[tuple[int, str], int] = {}
    for code, video_id, restarts in requests:
        if restarts:
            allocator = Allocator()
            for codes, row in stored.items():
                allocator.restore(1, codes, row)
        found, grew = allocator.allocate(1, (code,), video_id, capacity=6)
        assert held.setdefault((code, video_id), found) == found
        if grew:
            stored[(code,)] = allocator.row(1, (code,))
    semantic_ids = [(code, found) for (code, _), found in held.items()]
    assert len(set(semantic_ids)) == len(semantic_ids)


def test_allocator_counts_from_zero_in_the_order_of_arrival() -> None:
    allocator = Allocator()
    found = [allocator.allocate(1, CODES, video_id, capacity=8) for video_id in "cabc"]
    assert found == [(0, True), (1, True), (2, True), (0, False)]
    assert allocator.row(1, CODES) == ("c", "a", "b")


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
