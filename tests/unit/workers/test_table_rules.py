"""Which videos have a row, and which rows are computed again."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.offline_table import OfflineTable, build_table
from models.related import Question
from streams.events import VideoCounts
from tests.table_factories import some_row
from workers.table_rules import (
    DAY_MS,
    SAMPLE_ROWS,
    BuildPlan,
    HeadViews,
    mean_overlap,
    plan_build,
)

HOUR_MS = 3_600_000
WINDOWS = st.integers(0, 20 * 24)


def counts(video_id: str, hour: int, views: int = 1) -> VideoCounts:
    return VideoCounts(
        video_id=video_id, surface="home", arm="", window_start_ms=hour * HOUR_MS, window_s=3600,
        views=views, completed_views=0, likes=0, watched_s=1.0,
    )  # fmt: skip


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("abcde"), WINDOWS, st.integers(0, 3)), max_size=40),
    st.integers(1, 6),
    st.integers(0, 48),
    st.sets(st.sampled_from("abcde")),
)
def test_head_is_that_of_a_plain_count_in_any_order(
    found: list[tuple[str, int, int]], k: int, hours_later: int, live: set[str]
) -> None:
    views = HeadViews()
    for each in found:
        views.add(counts(*each))
    now_ms = (max((hour for _, hour, _ in found), default=0) + hours_later) * HOUR_MS
    expected: Counter[str] = Counter()
    for video_id, hour, number in found:
        if video_id in live and hour * HOUR_MS > now_ms - 7 * DAY_MS:
            expected[video_id] += number
    ranked = sorted(
        (one for one in expected if expected[one]), key=lambda one: (-expected[one], one)
    )
    assert views.top(k, now_ms=now_ms, live=live) == ranked[:k]


def questions(fingerprints: dict[str, int]) -> dict[str, Question]:
    return {video_id: Question(video_id, "", found) for video_id, found in fingerprints.items()}


def before(rows: dict[str, list[str]]) -> OfflineTable:
    return build_table([some_row(*each) for each in rows.items()], codebook_version=1)


def plan(asked: dict[str, int], table: OfflineTable | None, live: str = "abcdefgh") -> BuildPlan:
    return plan_build(questions(asked), table, live=live, kept_overlap=0.8, seed=0)


def test_everything_is_computed_without_a_table_before() -> None:
    found = plan({"a": 1, "b": 1}, None)
    assert [one.video_id for one in found.computed] == ["a", "b"]
    assert (found.sample, found.kept) == ([], [])


def test_new_videos_and_changed_questions_are_computed_and_the_rest_may_stay() -> None:
    found = plan({"a": 1, "b": 2, "c": 1}, before({"a": ["b"], "b": ["a"]}))
    assert [one.video_id for one in found.computed] == ["b", "c"]
    assert [row.video_id for row in found.sample] == ["a"]


def test_removed_videos_leave_a_row_and_too_many_of_them_have_it_computed() -> None:
    table = before({"a": ["b", "c", "d", "e", "f"]})
    (row,) = plan({"a": 1}, table, live="abcdf").sample
    assert [video_id for video_id, _ in row.related] == ["b", "c", "d", "f"]
    assert [one.video_id for one in plan({"a": 1}, table, live="abdf").computed] == ["a"]


def test_sample_is_drawn_from_the_seed_and_the_others_are_kept() -> None:
    videos = {f"v{number}": ["a"] for number in range(SAMPLE_ROWS + 30)}
    table = before(videos)
    asked = questions(dict.fromkeys(videos, 1))
    found, again, other = (
        plan_build(asked, table, live="a", kept_overlap=0.8, seed=seed) for seed in (0, 0, 1)
    )
    sampled = {row.video_id for row in found.sample}
    assert len(sampled) == SAMPLE_ROWS
    assert sampled | {row.video_id for row in found.kept} == set(videos)
    assert len(found.kept) == 30
    assert sampled == {row.video_id for row in again.sample}
    assert sampled != {row.video_id for row in other.sample}


@pytest.mark.parametrize(
    ("rows", "answers", "expected"),
    [
        ({}, {}, 1.0),
        ({"a": "bcd"}, {"a": "dcb"}, 1.0),
        ({"a": "bcd"}, {"a": "bxy"}, 1 / 3),
        ({"a": "bc", "b": "cd"}, {"a": "bc", "b": "xy"}, 0.5),
        ({"a": "b"}, {"a": "bcde"}, 0.25),
        ({"a": ""}, {"a": ""}, 1.0),
        ({"a": "bcdefghijkL"}, {"a": "bcdefghijkM"}, 1.0),
    ],
)
def test_overlap_is_of_the_first_ten(
    rows: dict[str, str], answers: dict[str, str], expected: float
) -> None:
    found = [some_row(video_id, list(related)) for video_id, related in rows.items()]
    today = {video_id: [(one, -1.0) for one in related] for video_id, related in answers.items()}
    assert mean_overlap(found, today) == pytest.approx(expected)
