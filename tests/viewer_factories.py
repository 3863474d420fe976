"""Small pools, viewers and worlds, as the tests of the closed loop need them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from infra.settings import ExperimentSettings
from streams.events import UserFeatures, VideoUploaded
from streams.simulated_world import World, WorldSize, make_world
from streams.video_pool import PooledVideo, VideoPool, pool_of
from streams.viewers import Mood, Sight, Viewer

NOON_MS = 1_700_000_000_000
HOUR_MS = 3_600_000
TOPICS = ("art", "ball", "cars", "dogs")
NOTHING = Mood(np.zeros(len(TOPICS)), NOON_MS)
ARMS = ("two_tower_hash", "lrm")


def shares(*of: float) -> NDArray[np.float64]:
    """Shares of the topics, those not named 0."""
    return np.array([*of, *[0.0] * (len(TOPICS) - len(of))])


def video(
    number: int, topics: NDArray[np.float64] | None = None, quality: float = 0
) -> PooledVideo:
    """Video `v-<number>`, of art alone."""
    upload = VideoUploaded(
        event_time_ms=0, video_id=f"v-{number}", title=f"Video {number}", duration_s=100.0
    )
    return PooledVideo(upload, shares(1) if topics is None else topics, quality)


def sight(one: PooledVideo, *, age_h: float = 1000, views: int = 0) -> Sight:
    """A video uploaded `age_h` hours before noon."""
    return Sight(one, NOON_MS - round(age_h * HOUR_MS), views)


def viewer(name: str = "ann", **fields: Any) -> Viewer:
    """Somebody who likes art and balls alike and is moved by nothing else."""
    known: dict[str, Any] = {
        "tastes": shares(0.5, 0.5), "novelty": 0.0, "popularity": 0.0, "fatigue": 0.0,
        "patience": 0.9, "reserve": 7.0, "features": UserFeatures(age=30),
    }  # fmt: skip
    return Viewer(name=name, **known | fields)


def small_pool(count: int = 400) -> VideoPool:
    """Videos that go round the topics."""
    uploads = [
        VideoUploaded(event_time_ms=0, video_id=f"v-{number}", title=f"Video {number}")
        for number in range(count)
    ]
    named = {one.video_id: (TOPICS[at % len(TOPICS)],) for at, one in enumerate(uploads)}
    return pool_of(uploads, named, dict.fromkeys(named, 0.0))


def small_world(seed: int = 1, **sizes: float) -> World:
    """Six viewers in two arms over two days, two uploads an hour."""
    known: dict[str, Any] = {
        "viewers": 6, "past_videos": 200, "uploads_per_h": 2.0, "hours": 48.0, "asks_per_day": 6.0,
    }  # fmt: skip
    size = WorldSize(**known | sizes)
    return make_world(
        small_pool(), ExperimentSettings(arms=ARMS), size, start_ms=NOON_MS, seed=seed
    )
