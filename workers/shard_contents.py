"""A shard's watches, sorted and merged into the histories of their users, as a Parquet file; knows nothing of Kafka.

Works by columns, on one row group of users after the other, so that what it needs beside the watches is bounded. Shape
suffixes: W watches of a partition, U users with any, E entries of histories.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from streams.counts import Viewed, video_counts
from streams.events import SURFACES, OffsetRange
from streams.history import MAX_WATCHED_S
from streams.packed_history import Entries, Names, merge, pack, unpack
from streams.shards import NEW_FIELDS, PAST_FIELDS, ROW_GROUP_ROWS, SHARD_SCHEMA, ShardWriter
from streams.watches import UserFeatures
from workers.video_labels import VideoLabel
from workers.watch_table import NOBODY, column

Numbers = npt.NDArray[Any]
UNLABELLED = VideoLabel(None, None)
_NO_FEATURES = UserFeatures()
_TIME_MS_BITS = 42
"""The contract's event times end before 2^42 ms."""


class PartitionWatches(NamedTuple):
    """What a partition has for a shard; a user's number is the index in `users`."""

    users: Sequence[str]
    features: Mapping[int, UserFeatures]
    erased: Mapping[str, int]
    histories: Mapping[str, bytes]
    tables: Sequence[pa.Table]


@dataclass(frozen=True)
class ShardContents:
    """A shard, ready to be stored, and what goes with it.

    Attributes:
        histories: by partition, the packed histories of the users with new watches.
    """

    file: bytes
    rows: int
    late: int
    unknown_videos: int
    event_times_ms: tuple[int, int]
    append_times_ms: Numbers
    histories: dict[int, dict[str, bytes]]
    viewed: Viewed

    def counts(
        self, video_ids: Sequence[str], arms: Sequence[str], *, window_s: int
    ) -> Iterator[tuple[str, bytes]]:
        """Yield video_id and `VideoCounts` in bytes of what was watched."""
        return video_counts(self.viewed, video_ids=video_ids, arms=arms, window_s=window_s)


def shard_contents(
    partitions: Mapping[int, PartitionWatches],
    names: Names,
    videos: Mapping[str, VideoLabel],
    codebook_version: int,
    *,
    ranges: Sequence[OffsetRange],
    history_length: int,
) -> ShardContents:
    """Return a row for every user with new watches, in the order of their first ones, partition by partition."""
    writer = ShardWriter(ranges=ranges)
    histories: dict[int, dict[str, bytes]] = {}
    tables, rows, unknown = [], 0, 0
    for number, part in partitions.items():
        watches = _kept(part)
        histories[number] = {}
        if not len(watches):
            continue
        tables.append(watches)
        for group in _groups(part, watches, names, history_length):
            histories[number].update(zip(group.user_ids, pack(group.after), strict=True))
            table, unknown_here = _Rows(names, videos, number, codebook_version).table(group)
            writer.write(table)
            rows += len(group.user_ids)
            unknown += unknown_here
    everything = {
        name: np.concatenate([column(table, name) for table in tables]) if tables else np.zeros(0)
        for name in (
            "video", "surface", "arm", "event_time_ms", "percent", "liked", "watched_s",
            "append_time_ms", "late",
        )
    }  # fmt: skip
    times_ms = everything["event_time_ms"]
    return ShardContents(
        writer.close(),
        rows,
        int(np.count_nonzero(everything["late"])),
        unknown,
        (int(times_ms.min()), int(times_ms.max())) if len(times_ms) else (0, 0),
        everything["append_time_ms"],
        histories,
        Viewed(*(everything[name] for name in list(everything)[:7])),
    )


def _kept(part: PartitionWatches) -> pa.Table:
    """Return the watches in the order of their offsets, without those before their user's erasure."""
    if not part.tables:
        return pa.table({})
    table = pa.concat_tables(part.tables).combine_chunks()
    if not part.erased:
        return table
    first_U = np.zeros(len(part.users), np.int64)
    for user, user_id in enumerate(part.users):
        first_U[user] = part.erased.get(user_id, 0)
    return table.filter(pa.array(np.arange(len(table)) >= first_U[column(table, "user")]))


@dataclass(frozen=True)
class _Group:
    """Users that are written together: their histories before and after, and their watches by event time."""

    user_ids: list[str]
    before: Entries
    after: Entries
    lengths_U: Numbers
    watches: pa.Table


def _groups(
    part: PartitionWatches, watches: pa.Table, names: Names, history_length: int
) -> Iterator[_Group]:
    user_W, time_ms_W = column(watches, "user"), column(watches, "event_time_ms")
    by_second_W = np.argsort(user_W << 32 | time_ms_W // 1000, kind="stable")
    time_key_W = (user_W << _TIME_MS_BITS | time_ms_W)[by_second_W]
    by_time_W = by_second_W[np.argsort(time_key_W, kind="stable")]
    lengths = np.bincount(user_W, minlength=len(part.users))
    active_U = np.flatnonzero(lengths)
    ends_U = np.cumsum(lengths[active_U])
    for first in range(0, len(active_U), ROW_GROUP_ROWS):
        users_U = active_U[first : first + ROW_GROUP_ROWS]
        start, end = ends_U[first] - lengths[users_U[0]], ends_U[first + len(users_U) - 1]
        numbers = users_U.tolist()
        user_ids = [part.users[number] for number in numbers]
        before = unpack([part.histories.get(user_id, b"") for user_id in user_ids])
        features_U = [names.features[part.features.get(number)] for number in numbers]
        new = _entries(
            watches, by_second_W[start:end], lengths[users_U], np.array(features_U, np.int64)
        )
        after = merge(before, new, length=history_length)
        yield _Group(
            user_ids, before, after, lengths[users_U], watches.take(pa.array(by_time_W[start:end]))
        )


def _entries(
    watches: pa.Table, which_W: Numbers, lengths_U: Numbers, features_U: Numbers
) -> Entries:
    def taken(name: str) -> Numbers:
        return column(watches, name)[which_W].astype(np.int64)

    watched_s = np.rint(column(watches, "watched_s")[which_W])
    return Entries(
        lengths_U,
        features_U,
        taken("event_time_ms") // 1000,
        taken("video"),
        taken("percent"),
        taken("surface"),
        np.minimum(watched_s, MAX_WATCHED_S).astype(np.int64),
    )


class _Rows:
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

    def table(self, group: _Group) -> tuple[pa.Table, int]:
        """Return a group's rows, and how many of its watches are of videos without a semantic ID."""
        before, watches = group.before, group.watches
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
            "event_time_ms": before.time_s_E * 1000,
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
        self._first = np.cumsum(self._lengths) - self._lengths
        self._codes = np.fromiter(chain.from_iterable(codes), np.int32)

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
        lengths = self._lengths[local]
        ends = np.cumsum(lengths, dtype=np.int64)
        starts = np.repeat(self._first[local] - (ends - lengths), lengths)
        codes = self._codes[starts + np.arange(len(starts))]
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
