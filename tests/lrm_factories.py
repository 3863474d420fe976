"""Small LRMs, videos and watches for tests, each with defaults for what a test does not care about."""

from __future__ import annotations

import random
from typing import NamedTuple

from models.examples import Example, text_examples
from models.lrm import TINY, Lrm, build_lrm
from models.semantic_id import SemanticId, SemanticIdSpace
from models.tasks import Recipe, video_texts
from streams.shards import NewWatch, ShardRow
from workers.training_actor import Video

SPACE = SemanticIdSpace(codebook_version=1, codebook_sizes=(8, 4, 2), disambiguation_size=4)


class SeenWatch(NamedTuple):
    video_id: str
    percent: int = 100
    watched_s: float = 60.0
    surface: str = "home"
    context_video_id: str | None = None
    event_time_ms: int = 0


def some_videos(count: int = 24) -> dict[str, Video]:
    """Return videos v0, v1, … with distinct semantic IDs and titles of their own words."""
    videos = {}
    for number in range(count):
        semantic_id: SemanticId = (number % 8, number // 8 % 4, 0, 0)
        title = f"{('storm', 'river', 'castle')[number % 3]} number {number}"
        videos[f"v{number}"] = Video(semantic_id, title, "", ("Drama",))
    return videos


def tiny_lrm(seed: int = 0) -> Lrm:
    """Return an untrained LRM over `some_videos`."""
    texts = [f"{video.title} Drama 100% 60s\nhome: watch_next:" for video in some_videos().values()]
    return build_lrm(texts * 4, SPACE, config=TINY, seed=seed)


def video_examples(lrm: Lrm, count: int | None = None) -> list[Example]:
    """Return the first texts about `some_videos`, or all of them."""
    texts = video_texts(some_videos().values(), Recipe(), random.Random(0))
    return text_examples(lrm, texts)[:count]


def new_watch(video_id: str, *, at_ms: int = 0, surface: str = "home") -> NewWatch:
    return NewWatch(
        video_id=video_id,
        semantic_id=None,
        channel=None,
        percent=100,
        watched_s=60.0,
        event_time_ms=at_ms,
        surface=surface,
        context_video_id=None,
        event_id=f"e-{video_id}-{at_ms}",
        partition=0,
        offset=at_ms,
        duration_s=60.0,
        liked=False,
        query=None,
        append_time_ms=at_ms,
    )


def shard_row(user_id: str, video_ids: list[str], *, history: list[str] | None = None) -> ShardRow:
    watches = [new_watch(video_id, at_ms=1000 + place) for place, video_id in enumerate(video_ids)]
    before = [new_watch(video_id, at_ms=place) for place, video_id in enumerate(history or [])]
    return ShardRow(user_id, None, None, None, None, None, list(before), watches, 1)
