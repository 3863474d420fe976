from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from streams.simulated_world import Ask, World
from streams.viewers import Mood, Visit, Watched
from tests.viewer_factories import ARMS, HOUR_MS, small_world
from workers.closed_loop import Answer, Asked
from workers.closed_loop_figures import Figures, figures_of

WINDOW_MS = 12 * HOUR_MS
WORLD = small_world()
OLD = [upload.video.video_id for upload in WORLD.past[:50]]
NEW = [upload.video.video_id for upload in WORLD.new]


def asked(
    number: int,
    arm: str,
    *shown: str,
    hours: float,
    watched: tuple[str, ...] = (),
    liked: bool = False,
    share: float = 0.5,
) -> Asked:
    """A request of a viewer, `hours` after the start."""
    user = next(user for user in WORLD.users if (user.number, user.arm) == (number, arm))
    watches = [Watched(shown.index(one), WORLD.uploads[one].video, share, liked) for one in watched]
    return Asked(
        Ask(0, WORLD.start_ms + round(hours * HOUR_MS), number, "home"),
        user,
        Answer(video_ids=shown, arm=arm, model_version=1),
        Visit(tuple(watches), len(shown), Mood(np.zeros(1))),
    )


def figures(*some: Asked, world: World = WORLD, threshold: int = 2, **fields: Any) -> Figures:
    known: dict[str, Any] = {"arms": ARMS, "baseline": ARMS[0], "window_ms": WINDOW_MS}
    return figures_of(some, world, threshold=threshold, **known | fields)


def test_coverage_counts_places_of_videos_within_the_window_after_their_upload() -> None:
    hours = (WORLD.new[0].time_ms - WORLD.start_ms) / HOUR_MS
    found = figures(
        asked(0, "lrm", NEW[0], *OLD[:3], hours=hours + 1),
        asked(1, "lrm", NEW[0], *OLD[:3], hours=hours + 13),
        asked(0, "two_tower_hash", *OLD[:4], hours=hours + 1),
    )
    assert found.arms["lrm"]["coverage"].value == 1 / 8
    assert found.arms["two_tower_hash"]["coverage"].value == 0
    assert math.isnan(found.over_baseline["lrm"]["coverage"].value)


def test_clicks_likes_and_seconds_are_per_impression_and_request() -> None:
    liked = asked(0, "lrm", *OLD[:4], hours=1, watched=(OLD[0], OLD[2]), liked=True, share=0.5)
    found = figures(liked, asked(1, "lrm", *OLD[:4], hours=2)).arms["lrm"]
    seconds = sum(0.5 * WORLD.uploads[OLD[at]].video.duration_s for at in (0, 2))
    assert found["clicks_per_impression"].value == 2 / 8
    assert found["likes_per_impression"].value == 2 / 8
    assert found["watched_s_per_impression"].value == pytest.approx(seconds / 8)
    assert found["watched_s_per_request"].value == pytest.approx(seconds / 2)


def test_time_to_threshold_is_within_one_arm_and_the_window() -> None:
    counted = [one for one in WORLD.new if one.time_ms + WINDOW_MS <= WORLD.start_ms + 48 * HOUR_MS]
    watches = []
    for upload in counted:
        video_id = upload.video.video_id
        at = (upload.time_ms - WORLD.start_ms) / HOUR_MS
        watches += [
            asked(0, "lrm", video_id, hours=at + 1, watched=(video_id,)),
            asked(1, "lrm", video_id, hours=at + 3, watched=(video_id,)),
            asked(0, "two_tower_hash", video_id, hours=at + 1, watched=(video_id,)),
            asked(2, "two_tower_hash", video_id, hours=at + 13, watched=(video_id,)),
        ]
    found = figures(*sorted(watches, key=lambda one: one.ask.time_ms))
    assert found.new_videos == len(counted) == 72
    for name, lrm, two_tower in (
        ("time_to_threshold_s", 3 * 3600, 12 * 3600),
        ("reached_share", 1, 0),
        ("shown_share", 1, 1),
    ):
        assert found.arms["lrm"][name].value == pytest.approx(lrm), name
        assert found.arms["two_tower_hash"][name].value == pytest.approx(two_tower), name
    assert found.over_baseline["lrm"]["time_to_threshold_s"].value == pytest.approx(4)


def test_median_time_is_of_all_new_videos_those_that_never_got_there_included() -> None:
    first = NEW[0]
    at = (WORLD.new[0].time_ms - WORLD.start_ms) / HOUR_MS
    found = figures(asked(0, "lrm", first, hours=at + 1, watched=(first,)), threshold=1).arms["lrm"]
    assert found["time_to_threshold_s"].value == 12 * 3600
    assert found["reached_share"].value == pytest.approx(1 / 72)


def test_vocabulary_is_of_the_most_shown_that_make_up_most_impressions() -> None:
    many = [asked(0, "lrm", OLD[0], OLD[1], hours=1) for _ in range(10)]
    found = figures(*many, asked(0, "lrm", OLD[2], hours=2))
    assert found.arms["lrm"]["effective_vocabulary"].value == 2


def test_intervals_hold_the_value_and_narrow_with_more_viewers_alike() -> None:
    rng = np.random.default_rng(0)
    some = [
        asked(number, arm, *OLD[:4], hours=1, watched=tuple(OLD[: rng.integers(0, 3)]))
        for number in range(6)
        for arm in ARMS
    ]
    found = figures(*some).arms["lrm"]["clicks_per_impression"]
    assert found.ci_low < found.value < found.ci_high
    alike = [asked(n, arm, *OLD[:4], hours=1, watched=(OLD[0],)) for n in range(6) for arm in ARMS]
    same = figures(*alike).arms["lrm"]["clicks_per_impression"]
    assert same.ci_low == same.value == same.ci_high == 0.25


def test_twins_are_drawn_together_so_that_what_they_share_cancels() -> None:
    rng = np.random.default_rng(0)
    some = []
    for number in range(6):
        watched = tuple(OLD[: rng.integers(1, 4)])
        some += [asked(number, arm, *OLD[:4], hours=1, watched=watched) for arm in ARMS]
    found = figures(*some)
    ratio = found.over_baseline["lrm"]["clicks_per_impression"]
    assert ratio.ci_low == ratio.value == ratio.ci_high == 1
    assert (
        found.arms["lrm"]["clicks_per_impression"].ci_low
        < found.arms["lrm"]["clicks_per_impression"].value
    )


def test_nothing_asked_is_no_figure_and_json_says_null() -> None:
    found = figures().arms["lrm"]["coverage"]
    assert found.as_json() == {"value": None, "ci_low": None, "ci_high": None}
