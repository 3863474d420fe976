"""Views, completed views, likes and watch seconds of a shard's watches; knows nothing of Kafka.

What one shard adds to `video.counts`: written in its transaction, so a watch is counted exactly as often as it is in a
row. Consumers add up. Shape suffixes: W watches, G groups of them that are counted together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Struct

from streams.events import SURFACES

COMPLETED_PERCENT = 90
"""A view that got so far is a completed one: few sit through the credits."""
NO_ARM = ""


class Viewed(NamedTuple):
    """Watches as columns; videos, surfaces and arms as numbers."""

    video_W: npt.NDArray[Any]
    surface_W: npt.NDArray[Any]
    arm_W: npt.NDArray[Any]
    event_time_ms_W: npt.NDArray[Any]
    percent_W: npt.NDArray[Any]
    liked_W: npt.NDArray[Any]
    watched_s_W: npt.NDArray[Any]


class _Counts(Struct):
    """The mirror of the contract's `VideoCounts`."""

    video_id: str
    surface: str
    arm: str
    window_start_ms: int
    window_s: int
    views: int
    completed_views: int
    likes: int
    watched_s: float


_encode = msgspec.json.Encoder().encode


def video_counts(
    viewed: Viewed, *, video_ids: Sequence[str], arms: Sequence[str], window_s: int
) -> Iterator[tuple[str, bytes]]:
    """Yield video_id and `VideoCounts` in bytes, for each video, surface, arm and window of event time."""
    window_W = viewed.event_time_ms_W // (window_s * 1000)
    keys = (viewed.video_W, window_W, viewed.arm_W, viewed.surface_W)
    order_W = np.lexsort(keys[::-1])
    if not len(order_W):
        return
    changes = np.zeros(len(order_W), bool)
    changes[0] = True
    for key in keys:
        changes[1:] |= np.diff(key[order_W]) != 0
    begin_G = np.flatnonzero(changes)
    views_G = np.diff(begin_G, append=len(order_W))
    sums = [
        np.add.reduceat(column[order_W], begin_G)
        for column in (
            (viewed.percent_W >= COMPLETED_PERCENT).astype(np.int64),
            viewed.liked_W.astype(np.int64),
            viewed.watched_s_W,
        )
    ]
    groups = [key[order_W[begin_G]].tolist() for key in keys]
    for video, window, arm, surface, views, completed, likes, watched_s in zip(
        *groups, views_G.tolist(), *(total.tolist() for total in sums), strict=True
    ):
        video_id = video_ids[video]
        counts = _Counts(
            video_id,
            SURFACES[surface],
            arms[arm],
            window * window_s * 1000,
            window_s,
            views,
            completed,
            likes,
            round(watched_s, 1),
        )
        yield video_id, _encode(counts)
