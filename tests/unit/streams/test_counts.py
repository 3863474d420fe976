"""Watches summed up, against the contract and against counting one by one."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.codec import decode
from streams.counts import Viewed, video_counts
from streams.events import SURFACES, VideoCounts
from streams.history import percent_watched
from streams.watches import Watch

watches = st.builds(
    Watch,
    event_id=st.text(min_size=1, max_size=3),
    event_time_ms=st.integers(0, 200_000),
    user_id=st.just("u"),
    video_id=st.sampled_from(["a", "b"]),
    surface=st.sampled_from(SURFACES[:2]),
    watched_s=st.floats(0, 120, width=32),
    duration_s=st.just(100.0),
    liked=st.booleans(),
    arm=st.sampled_from([None, "x"]),
)


def viewed(given_watches: list[Watch]) -> Viewed:
    return Viewed(
        np.array([["a", "b"].index(each.video_id) for each in given_watches], np.int32),
        np.array([SURFACES.index(each.surface) for each in given_watches], np.int8),
        np.array([int(each.arm == "x") for each in given_watches], np.int32),
        np.array([each.event_time_ms for each in given_watches], np.int64),
        np.array([percent_watched(each) for each in given_watches], np.int16),
        np.array([each.liked for each in given_watches], bool),
        np.array([each.watched_s for each in given_watches], np.float64),
    )


@settings(max_examples=50, deadline=None)
@given(st.lists(watches))
def test_counts_are_those_of_counting_one_by_one(given_watches: list[Watch]) -> None:
    views: Counter[tuple[str, str, str, int]] = Counter()
    completed, likes = Counter[str](), Counter[str]()
    for each in given_watches:
        views[each.video_id, each.surface, each.arm or "", each.event_time_ms // 60_000] += 1
        completed[each.video_id] += round(100 * each.watched_s / each.duration_s) >= 90
        likes[each.video_id] += each.liked
    found = [
        (key, decode(VideoCounts, value))
        for key, value in video_counts(
            viewed(given_watches), video_ids=["a", "b"], arms=["", "x"], window_s=60
        )
    ]
    assert {
        (c.video_id, c.surface, c.arm, c.window_start_ms // 60_000): c.views for _, c in found
    } == views
    assert len(found) == len(views)
    for video_id in ("a", "b"):
        of_video = [counts for key, counts in found if key == video_id]
        assert all(counts.video_id == video_id and counts.window_s == 60 for counts in of_video)
        assert sum(counts.completed_views for counts in of_video) == completed[video_id]
        assert sum(counts.likes for counts in of_video) == likes[video_id]
        watched_s = sum(each.watched_s for each in given_watches if each.video_id == video_id)
        assert abs(sum(counts.watched_s for counts in of_video) - watched_s) <= 0.051 * len(
            of_video
        )


def test_groups_that_are_far_apart_are_counted_apart() -> None:
    far = Viewed(
        np.array([0, 1 << 22], np.int32),
        np.array([0, 0], np.int8),
        np.array([0, 1023], np.int32),
        np.array([0, 1000 << 30], np.int64),
        *(np.array([1, 1], kind) for kind in (np.int16, bool, np.float64)),
    )
    ids, arms = {0: "a", 1 << 22: "b"}, {0: "", 1023: "x"}
    found = dict(video_counts(far, video_ids=ids, arms=arms, window_s=1))  # type: ignore[arg-type]
    assert {video: decode(VideoCounts, value).views for video, value in found.items()} == {
        "a": 1,
        "b": 1,
    }
