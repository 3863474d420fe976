"""A shard's watches, sorted and merged into the histories of their users, as a Parquet file; knows nothing of Kafka.

Works by columns, on one row group of users after the other, so that what it needs beside the watches is bounded. Shape
suffixes: W watches of a partition, U users with any.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from infra.settings import WatchSettings
from streams.counts import NO_ARM, Viewed, video_counts
from streams.events import WatchEvent, to_json
from streams.history import MAX_WATCHED_S
from streams.packed_history import (
    USERS_AT_ONCE,
    Entries,
    Names,
    decode_histories,
    encode_histories,
    join,
    merge,
    new_names,
    pack,
    split,
)
from streams.shards import ROW_GROUP_ROWS, ShardWriter
from streams.watches import decode_features
from workers.shard_builder import FilledShard, NewWatches, Restored, ShardBuilder
from workers.shard_rows import NOBODY, WATCH_COLUMNS, RowGroup, ShardRows
from workers.video_labels import VideoLabel
from workers.watch_intake import Records
from workers.watch_table import column

Numbers = npt.NDArray[Any]
_TIME_MS_BITS = 42
"""The contract's event times end before 2^42 ms."""
NAMES_MIN = 1_000_000
"""So many names, some 150 MB, are not worth forgetting."""


class UserHistories:
    """The packed histories of all users, by partition, as of the last shard.

    Attributes:
        names: of the videos and features in them; those no longer in any are forgotten when they have become many.
    """

    def __init__(
        self, names: Names | None = None, by_partition: dict[int, dict[str, bytes]] | None = None
    ) -> None:
        self.names = names or new_names()
        self.by_partition = by_partition or {}
        self._names_max = NAMES_MIN

    def apply(self, contents: ShardContents) -> None:
        """Take over what a committed shard has made of them."""
        for number, written in contents.histories.items():
            held = self.by_partition.setdefault(number, {})
            for user_id in contents.erased[number]:
                held.pop(user_id, None)
            held.update(written)
        if len(self.names.videos) + len(self.names.features) > self._names_max:
            self.forget_names()

    def forget_names(self) -> None:
        """Number anew what is in a history, so that ids that came and went cost nothing."""
        names = new_names()
        for held in self.by_partition.values():
            user_ids = list(held)
            for first in range(0, len(user_ids), USERS_AT_ONCE):
                some = user_ids[first : first + USERS_AT_ONCE]
                spelled = encode_histories(some, [held[user_id] for user_id in some], self.names)
                held.update(zip(*decode_histories(spelled, names), strict=True))
        self.names = names
        self._names_max = max(NAMES_MIN, 2 * (len(names.videos) + len(names.features)))


@dataclass(frozen=True)
class ShardContents:
    """A shard, ready to be stored, and what goes with it.

    Attributes:
        watches: in rows; fewer than were taken in where a user was erased.
        histories: by partition, the packed histories of the users with new watches.
        erased: by partition, the users whose histories end.
    """

    file: bytes
    rows: int
    watches: int
    late: int
    unknown_videos: int
    event_times_ms: tuple[int, int]
    append_times_ms: Numbers
    histories: dict[int, dict[str, bytes]]
    erased: dict[int, set[str]]
    viewed: Viewed
    arms: list[str]
    names: Names

    def updated_histories(self) -> Iterator[tuple[int, str, bytes | None]]:
        """Yield partition, user and history in bytes for every user concerned.

        For an erased one it yields None, before the history of what was watched after it: views join histories.
        """
        for number, histories in self.histories.items():
            for user_id in self.erased[number]:
                yield number, user_id, None
            users = list(histories)
            encoded = encode_histories(users, list(histories.values()), self.names)
            for user_id, value in zip(users, encoded, strict=True):
                yield number, user_id, value

    def counts(self, *, window_s: int) -> Iterator[tuple[str, bytes]]:
        """Yield video_id and `VideoCounts` in bytes of what was watched."""
        return video_counts(
            self.viewed, video_ids=self.names.videos.things, arms=self.arms, window_s=window_s
        )


class _Watches(NamedTuple):
    """A partition's watches, and their users, videos and so on by number."""

    table: pa.Table
    user_ids: list[str]
    user_W: Numbers
    features_U: Numbers


def shard_contents(
    shard: FilledShard,
    users: UserHistories,
    videos: Mapping[str, VideoLabel],
    codebook_version: int,
    *,
    history_length: int,
) -> ShardContents:
    """Return a row for every user with new watches, in the order of their first ones, partition by partition.

    The histories stay as they are: the shard may not be committed.
    """
    erased = {number: set(new.erased) for number, new in shard.partitions.items()}
    writer = ShardWriter(ranges=shard.ranges, erased_users=set().union(*erased.values()))
    histories: dict[int, dict[str, bytes]] = {}
    tables, rows, unknown = [], 0, 0
    for number, new in shard.partitions.items():
        histories[number] = {}
        watches = _numbered(new, users.names)
        if watches is None:
            continue
        tables.append(watches.table)
        held = users.by_partition.get(number, {})
        for group in _groups(watches, held, new.erased.keys(), history_length):
            histories[number].update(zip(group.user_ids, split(group.after), strict=True))
            table, unknown_here = ShardRows(users.names, videos, number, codebook_version).table(
                group
            )
            writer.write(table)
            rows += len(group.user_ids)
            unknown += unknown_here
    everything = pa.concat_tables(tables) if tables else None
    return _contents(everything, erased, users.names, histories, writer.close(), rows, unknown)


def _contents(
    watches: pa.Table | None,
    erased: dict[int, set[str]],
    names: Names,
    histories: dict[int, dict[str, bytes]],
    file: bytes,
    rows: int,
    unknown: int,
) -> ShardContents:
    def numbers(name: str) -> Numbers:
        return np.zeros(0, np.int64) if watches is None else column(watches, name)

    times_ms = numbers("event_time_ms")
    arms, arm_W = _coded(watches, "arm", NO_ARM)
    viewed = Viewed(
        numbers("video"), numbers("surface"), arm_W, times_ms,
        numbers("percent"), numbers("liked"), numbers("watched_s"),
    )  # fmt: skip
    return ShardContents(
        file,
        rows,
        len(times_ms),
        int(np.count_nonzero(numbers("late"))),
        unknown,
        (int(times_ms.min()), int(times_ms.max())) if len(times_ms) else (0, 0),
        numbers("append_time_ms"),
        histories,
        erased,
        viewed,
        arms,
        names,
    )


def _coded(table: pa.Table | None, name: str, null: str) -> tuple[list[str], Numbers]:
    """Return the different strings of a column, and which of them each row has."""
    if table is None:
        return [], np.zeros(0, np.int64)
    coded = table.column(name).combine_chunks().fill_null(null).dictionary_encode()
    return coded.dictionary.to_pylist(), coded.indices.to_numpy()


def _numbered(new: NewWatches, names: Names) -> _Watches | None:
    """Return the watches in the order of their offsets, without those before their user's erasure."""
    if not new.tables:
        return None
    table = pa.concat_tables(new.tables).combine_chunks()
    user_ids, user_W = _coded(table, "user_id", "")
    if new.erased:
        from_U = np.array([new.erased.get(user_id, -1) for user_id in user_ids])
        table = table.filter(pa.array(column(table, "offset") > from_U[user_W]))
        user_ids, user_W = _coded(table, "user_id", "")
    if not len(table):
        return None
    for name, text in (("video", "video_id"), ("context", "context_video_id")):
        ids, id_W = _coded(table, text, "")
        numbers = np.array([names.videos[each] if each else NOBODY for each in ids], np.int32)
        table = table.append_column(name, pa.array(numbers[id_W]))
    return _Watches(table, user_ids, user_W, _features(table, user_W, len(user_ids), names))


def _features(table: pa.Table, user_W: Numbers, num_users: int, names: Names) -> Numbers:
    """Return the number of each user's newest features, 0 for none."""
    texts, text_W = _coded(table, "user", "")
    numbers = np.array([names.features[decode_features(each)] if each else 0 for each in texts])
    said_W = numbers[text_W] > 0
    found = np.zeros(num_users, np.int64)
    found[user_W[said_W]] = numbers[text_W[said_W]]  # of several the last one stays
    return found


def _groups(
    watches: _Watches, histories: Mapping[str, bytes], erased: Set[str], history_length: int
) -> Iterator[RowGroup]:
    table, user_W = watches.table, watches.user_W.astype(np.int64)
    time_ms_W = column(table, "event_time_ms")
    by_second_W = np.argsort(user_W << 32 | time_ms_W // 1000, kind="stable")
    time_key_W = (user_W << _TIME_MS_BITS | time_ms_W)[by_second_W]
    by_time_W = by_second_W[np.argsort(time_key_W, kind="stable")]
    written = table.select([name for name in table.column_names if name in WATCH_COLUMNS])
    lengths = np.bincount(user_W, minlength=len(watches.user_ids))
    ends = np.cumsum(lengths)
    for first in range(0, len(lengths), ROW_GROUP_ROWS):
        last = min(first + ROW_GROUP_ROWS, len(lengths))
        start, end = ends[first] - lengths[first], ends[last - 1]
        user_ids = watches.user_ids[first:last]
        before = join([b"" if each in erased else histories.get(each, b"") for each in user_ids])
        new = _entries(
            table, by_second_W[start:end], lengths[first:last], watches.features_U[first:last]
        )
        after = merge(before, pack(new), length=history_length)
        sorted_watches = written.take(pa.array(by_time_W[start:end]))
        yield RowGroup(user_ids, before, after, lengths[first:last], sorted_watches)


def _entries(
    watches: pa.Table, which_W: Numbers, lengths_U: Numbers, features_U: Numbers
) -> Entries:
    def taken(name: str) -> Numbers:
        return column(watches, name)[which_W]

    return Entries(
        lengths_U,
        features_U,
        (taken("event_time_ms") // 1000).astype(np.uint32),
        taken("video"),
        taken("percent").astype(np.uint8),
        taken("surface").astype(np.uint8),
        np.minimum(np.rint(taken("watched_s")), MAX_WATCHED_S).astype(np.uint16),
    )


def compile_sealing(settings: WatchSettings) -> None:
    """Compile what runs for every watch, or load it from the cache, so that no record has to wait for it.

    Blocks: some ten seconds the first time on a machine.
    """
    watch = WatchEvent(
        event_time_ms=0, user_id="u", video_id="v", surface="home", watched_s=0, duration_s=1
    )
    zero = np.zeros(1, np.int64)
    builder = ShardBuilder({0: Restored(0)}, settings=settings)
    builder.add(Records(zero, zero, zero, [b"u"], [to_json(watch)]))
    shard_contents(builder.take_shard(), UserHistories(), {}, 0, history_length=1)
