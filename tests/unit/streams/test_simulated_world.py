from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from infra.errors import ConfigError
from infra.settings import ExperimentSettings
from streams.arms import arm_of
from streams.simulated_world import past_of
from tests.viewer_factories import ARMS, HOUR_MS, NOON_MS, small_world


def test_each_viewer_is_once_in_every_arm_as_the_experiment_deals_it() -> None:
    users = small_world().users
    assert len({user.user_id for user in users}) == len(users) == 12
    assert Counter((user.number, user.arm) for user in users) == Counter(
        {(number, arm): 1 for number in range(6) for arm in ARMS}
    )
    for user in users:
        assert arm_of(user.user_id, ExperimentSettings(arms=ARMS)) == user.arm
    assert {user.viewer.name for user in users if user.number == 3} == {"1-3"}


def test_uploads_come_at_a_steady_rate_and_none_twice() -> None:
    world = small_world()
    assert len(world.new) == 96
    assert {b.time_ms - a.time_ms for a, b in zip(world.new, world.new[1:], strict=False)} == {
        HOUR_MS // 2
    }
    assert len(world.uploads) == len(world.past) + len(world.new)
    assert max(upload.time_ms for upload in world.past) < NOON_MS <= world.new[0].time_ms
    assert world.new[0].event.event_time_ms == world.new[0].time_ms


def test_another_seed_is_another_world_and_the_same_one_the_same() -> None:
    one, again, other = small_world(1), small_world(1), small_world(2)
    assert one.asks() == again.asks() != other.asks()
    assert past_of(one) == past_of(again) != past_of(other)
    assert list(one.uploads) == list(again.uploads) != list(other.uploads)


def test_past_has_both_surfaces_as_often_as_the_loop_and_names_what_was_watched_last() -> None:
    watches = past_of(small_world(viewers=40)).watches()
    beside = [watch for watch in watches if watch.surface == "watch_next"]
    assert len(beside) / len(watches) == pytest.approx(0.3, abs=0.08)
    assert {watch.surface for watch in watches} == {"home", "watch_next"}
    of_user: dict[str, list[str]] = {}
    for watch in watches:
        known = of_user.setdefault(watch.user_id, [])
        assert (watch.surface == "watch_next") == (watch.context_video_id is not None)
        assert watch.context_video_id is None or watch.context_video_id in known
        known.append(watch.video_id)


def test_asks_are_in_order_within_the_loop_and_beside_a_video_now_and_then() -> None:
    asks = small_world(viewers=40).asks()
    times = [ask.time_ms for ask in asks]
    assert times == sorted(times)
    assert NOON_MS <= times[0] <= times[-1] < NOON_MS + 48 * HOUR_MS
    assert len(asks) / 40 == pytest.approx(12, rel=0.15)
    beside = sum(ask.surface == "watch_next" for ask in asks) / len(asks)
    assert beside == pytest.approx(0.3, abs=0.08)


def test_twins_meet_the_same_chances_and_other_moments_others() -> None:
    world = small_world()
    first, second = world.asks()[:2]
    assert np.array_equal(world.chances(first, 10), world.chances(first, 10))
    assert np.array_equal(world.chances(first, 10)[:4], world.chances(first, 4))
    assert not np.array_equal(world.chances(first, 10), world.chances(second, 10))


def test_past_watches_nothing_before_it_is_uploaded_nor_twice() -> None:
    past = past_of(small_world())
    uploaded = {one.video_id: one.event_time_ms for one in past.uploads()}
    watches = past.watches()
    assert len(watches) > 100
    assert all(one.event_time_ms >= uploaded[one.video_id] for one in watches)
    assert len({(one.user_id, one.video_id) for one in watches}) == len(watches)
    assert max(one.event_time_ms for one in watches) < NOON_MS + 60_000
    assert all(one.user is not None for one in watches)


def test_past_viewers_watch_to_their_taste() -> None:
    world = small_world(viewers=20)
    viewers = {user.user_id: user.viewer for user in world.users}
    watches = past_of(world).watches()
    tastes = [
        float(viewers[one.user_id].tastes @ world.uploads[one.video_id].video.topic_shares)
        for one in watches
    ]
    at_random = [
        float(viewer.tastes @ upload.video.topic_shares)
        for viewer in viewers.values()
        for upload in world.past
    ]
    assert np.mean(tastes) > 1.3 * np.mean(at_random)


def test_a_pool_too_small_is_named() -> None:
    with pytest.raises(ConfigError, match="the pool has 400"):
        small_world(past_videos=350)
