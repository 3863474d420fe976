"""A partition's new watches as columns: from structs to Arrow, ten thousand at a time; knows nothing of rows and files.

Columns take a quarter of the memory of the structs, and numpy sorts them. Users, videos, contexts, arms and surfaces
are numbers; -1 is none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from streams.counts import NO_ARM
from streams.history import MAX_PERCENT
from streams.packed_history import Names, Numbered, surface_number
from streams.watches import Watch

WATCHES_AT_ONCE = 10_000
NOBODY = -1


def watch_table(
    watches: Sequence[Watch],
    users: Sequence[int],
    offsets: Sequence[int],
    append_times_ms: Sequence[int],
    names: Names,
    arms: Numbered[str],
) -> pa.Table:
    """Return the watches as a table, in the same order, each with the number of its user."""
    videos = names.videos
    watched_s = np.array([watch.watched_s for watch in watches])
    duration_s = np.array([watch.duration_s for watch in watches])
    with np.errstate(over="ignore"):
        percent = np.rint(np.minimum(100 * watched_s / duration_s, MAX_PERCENT))
    return pa.table(
        {
            "user": np.array(users, np.int64),
            "video": np.array([videos[watch.video_id] for watch in watches], np.int32),
            "context": np.array(
                [
                    NOBODY if watch.context_video_id is None else videos[watch.context_video_id]
                    for watch in watches
                ],
                np.int32,
            ),
            "arm": np.array([arms[watch.arm or NO_ARM] for watch in watches], np.int32),
            "surface": np.array([surface_number(watch.surface) for watch in watches], np.int8),
            "event_time_ms": np.array([watch.event_time_ms for watch in watches], np.int64),
            "offset": np.array(offsets, np.int64),
            "append_time_ms": np.array(append_times_ms, np.int64),
            "percent": percent.astype(np.int16),
            "watched_s": watched_s,
            "duration_s": duration_s,
            "liked": np.array([watch.liked for watch in watches], bool),
            "event_id": pa.array([watch.event_id for watch in watches], pa.string()),
            "query": pa.array([watch.query for watch in watches], pa.string()),
        }
    )


def column(table: pa.Table, name: str) -> npt.NDArray[Any]:
    """Return a column of numbers."""
    found: npt.NDArray[Any] = table.column(name).to_numpy()
    return found
