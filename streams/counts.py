"""Views, completed views, likes and watch seconds of a shard's watches; knows nothing of Kafka.

What one shard adds to `video.counts`: written in its transaction, so a watch is counted exactly as often as it is in a
row. Consumers add up.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec
from msgspec import Struct

from streams.history import percent_watched
from streams.watches import Watch

COMPLETED_PERCENT = 90
"""A view that got so far is a completed one: few sit through the credits."""
NO_ARM = ""


class _Counts(Struct):
    """The mirror of the contract's `VideoCounts`."""

    video_id: str
    surface: str
    arm: str
    window_start_ms: int
    window_s: int
    views: int = 0
    completed_views: int = 0
    likes: int = 0
    watched_s: float = 0.0


_encode = msgspec.json.Encoder().encode


def video_counts(watches: Iterable[Watch], *, window_s: int) -> Iterator[tuple[str, bytes]]:
    """Yield video_id and `VideoCounts` in bytes, for each video, surface, arm and window of event time."""
    window_ms = window_s * 1000
    found: dict[tuple[str, str, str, int], _Counts] = {}
    for watch in watches:
        start_ms = watch.event_time_ms - watch.event_time_ms % window_ms
        key = (watch.video_id, watch.surface, watch.arm or NO_ARM, start_ms)
        counts = found.get(key)
        if counts is None:
            counts = found[key] = _Counts(*key, window_s)
        counts.views += 1
        counts.completed_views += percent_watched(watch) >= COMPLETED_PERCENT
        counts.likes += watch.liked
        counts.watched_s += watch.watched_s
    for counts in found.values():
        counts.watched_s = round(counts.watched_s, 1)
        yield counts.video_id, _encode(counts)
