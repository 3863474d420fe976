"""A shard's rows as Arrow tables, video ids with their labels and strings by dictionary; knows nothing of Kafka.

Shape suffixes: W watches, U users with any, E entries of their histories.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from streams.events import SURFACES
from streams.packed_history import Names, Packed, unpack
from streams.shards import NEW_FIELDS, PAST_FIELDS, SHARD_SCHEMA
from streams.watches import UserFeatures
from workers.video_labels import VideoLabel
from workers.watch_table import column

Numbers = npt.NDArray[Any]
NOBODY = -1
UNLABELLED = VideoLabel(None, None)
_NO_FEATURES = UserFeatures()
WATCH_COLUMNS = (
    "video", "context", "surface", "event_time_ms", "percent", "watched_s", "event_id", "offset", "duration_s", "liked",
    "query", "append_time_ms", "late",
)  # fmt: skip
"""Of a watch, for its row; video and context by their numbers in `Names.videos`, `NOBODY` for no context."""


@dataclass(frozen=True)
class RowGroup:
    """Users that are written together: histories before and after, and watches by event time, in `WATCH_COLUMNS`."""

    user_ids: list[str]
    before: Packed
    after: Packed
    lengths_U: Numbers
    watches: pa.Table


class ShardRows:
    """Makes Arrow rows of groups."""

    def __init__(
        self,
        names: Names,
        videos: Mapping[str, VideoLabel],
        partition: int,
        codebook_version: int,
    ) -> None:
        self._names = names
        self._videos = videos
        self._partition = partition
        self._codebook_version = codebook_version

    def table(self, group: RowGroup) -> tuple[pa.Table, int]:
        """Return a group's rows, and how many of its watches are of videos without a semantic ID."""
        before, watches = unpack(group.before), group.watches
        context_W = column(watches, "context")
        labels = _Labels(
            self._names.videos.things,
            self._videos,
            (before.video_E, column(watches, "video"), context_W[context_W != NOBODY]),
        )
        past = {
            **labels.of(before.video_E),
            "percent": before.percent_E,
            "watched_s": before.watched_s_E,
            "event_time_ms": before.time_s_E.astype(np.int64) * 1000,
            "surface": _surfaces(before.surface_E),
            "context_video_id": labels.ids(np.full(len(before.video_E), NOBODY)),
        }
        new = {name: watches.column(name) for name in watches.column_names}
        new |= labels.of(column(watches, "video"))
        new["surface"] = _surfaces(column(watches, "surface"))
        new["context_video_id"] = labels.ids(context_W)
        new["partition"] = np.full(len(watches), self._partition)
        features = [
            self._names.features.things[number] or _NO_FEATURES
            for number in group.after.features_U.tolist()
        ]
        columns = {
            "user_id": group.user_ids,
            **{
                name: [getattr(each, name) for each in features]
                for name in ("region", "age", "gender", "device", "language")
            },
            "history": _nested(PAST_FIELDS, past, before.lengths_U),
            "watches": _nested(NEW_FIELDS, new, group.lengths_U),
            "codebook_version": np.full(len(features), self._codebook_version),
        }
        arrays, fields = _arrays(list(SHARD_SCHEMA), columns)
        unknown = new["semantic_id"].null_count
        return pa.Table.from_arrays(arrays, schema=pa.schema(fields)), unknown


class _Labels:
    """What is written beside some videos, as Arrow columns with a dictionary of just these videos."""

    def __init__(
        self, ids: Sequence[str], videos: Mapping[str, VideoLabel], numbers: Sequence[Numbers]
    ) -> None:
        is_used = np.zeros(len(ids) + 1, bool)
        for found in numbers:
            is_used[found] = True
        used = np.flatnonzero(is_used)
        self._local = np.full(len(ids) + 1, 0, np.int32)
        self._local[used] = np.arange(len(used), dtype=np.int32)
        names = [ids[number] for number in used.tolist()]
        labels = [videos.get(name, UNLABELLED) for name in names]
        self._ids = pa.array(names, pa.string())
        channels = sorted({label.channel for label in labels if label.channel is not None})
        places = {channel: place for place, channel in enumerate(channels)}
        self._channels = pa.array(channels, pa.string())
        self._channel_of = np.array(
            [NOBODY if each.channel is None else places[each.channel] for each in labels], np.int32
        )
        codes = [label.semantic_id or () for label in labels]
        self._known = np.array([label.semantic_id is not None for label in labels], bool)
        self._lengths = np.fromiter(map(len, codes), np.int32, len(codes))
        levels = max(map(len, codes), default=0)
        self._is_code = np.arange(levels) < self._lengths[:, None]
        self._codes = np.zeros(self._is_code.shape, np.int32)
        self._codes[self._is_code] = np.fromiter(chain.from_iterable(codes), np.int32)

    def of(self, numbers: Numbers) -> dict[str, Any]:
        """Return the columns video_id, semantic_id and channel of videos."""
        local = self._local[numbers]
        return {
            "video_id": pa.DictionaryArray.from_arrays(local, self._ids),
            "semantic_id": self._semantic_ids(local),
            "channel": _coded(self._channel_of[local], self._channels),
        }

    def ids(self, numbers: Numbers) -> Any:
        """Return the ids of videos, null for `NOBODY`."""
        return _coded(np.where(numbers == NOBODY, NOBODY, self._local[numbers]), self._ids)

    def _semantic_ids(self, local: Numbers) -> Any:
        codes = self._codes[local]
        codes = codes.ravel() if self._is_code.all() else codes[self._is_code[local]]
        ends = np.cumsum(self._lengths[local], dtype=np.int64)
        offsets = np.concatenate([[0], ends]).astype(np.int32)
        return pa.ListArray.from_arrays(
            pa.array(offsets), pa.array(codes, pa.int32()), mask=pa.array(~self._known[local])
        )


def _surfaces(numbers: Numbers) -> Any:
    return pa.DictionaryArray.from_arrays(numbers.astype(np.int32), pa.array(SURFACES))


def _coded(numbers: Numbers, values: Any) -> Any:
    """Return a dictionary-encoded column, null where the number is negative."""
    indices = pa.array(numbers.astype(np.int32), mask=numbers < 0)
    return pa.DictionaryArray.from_arrays(indices, values)


def _nested(fields: Sequence[Any], columns: Mapping[str, Any], lengths: Numbers) -> Any:
    """Return a list<struct> column, `lengths` structs to each list."""
    arrays, kinds = _arrays(fields, columns)
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    return pa.ListArray.from_arrays(offsets, pa.StructArray.from_arrays(arrays, fields=kinds))


def _arrays(fields: Sequence[Any], columns: Mapping[str, Any]) -> tuple[list[Any], list[Any]]:
    """Return the fields' columns and the fields, which differ where a column is dictionary-encoded."""
    arrays = [_array(columns[field.name], field.type) for field in fields]
    return arrays, [
        field.with_type(found.type) for field, found in zip(fields, arrays, strict=True)
    ]


def _array(values: Any, kind: Any) -> Any:
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    if not isinstance(values, pa.Array):
        return pa.array(values, kind)
    if pa.types.is_primitive(kind) and values.type != kind:
        return values.cast(kind, safe=False)
    return values
