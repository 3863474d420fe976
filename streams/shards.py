"""Training shards as Parquet: one row per user, complete in itself; knows nothing of Kafka, stores or training.

A row holds the user's features, the history before the shard and the new watches in event-time order, so that
any trainer can read any shard alone. The schema only ever grows: readers ignore columns they do not know, and a field
added later comes last, with the default that older shards read as.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from operator import attrgetter
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
from msgspec import Struct

from infra.errors import DecodeError
from streams.events import OffsetRange, ShardSealed

SHARD_SCHEMA_VERSION = 1
ROW_GROUP_ROWS = 10_000
_METADATA_KEY = b"freshet.shard"


class PastWatch(Struct, frozen=True, gc=False):
    """A watch as later prompts show it; `semantic_id` and `channel` are None while the video has no SID."""

    video_id: str
    semantic_id: tuple[int, ...] | None
    channel: str | None
    percent: int
    watched_s: float
    event_time_ms: int
    surface: str
    context_video_id: str | None


class NewWatch(PastWatch, frozen=True, gc=False):
    """A watch to learn from, with where in the log it was and what was known when it began."""

    event_id: str
    partition: int
    offset: int
    duration_s: float
    liked: bool
    query: str | None
    append_time_ms: int
    late: bool = False


class ShardRow(Struct, frozen=True):
    """One user within one shard."""

    user_id: str
    region: str | None
    age: int | None
    gender: str | None
    device: str | None
    language: str | None
    history: list[PastWatch]
    watches: list[NewWatch]
    codebook_version: int


# How these are converted is found out at their first conversion; three training loops that do so at once crash in it.
msgspec.convert([], list[ShardRow])

PAST_FIELDS = [
    pa.field("video_id", pa.string(), nullable=False),
    pa.field("semantic_id", pa.list_(pa.int32())),
    pa.field("channel", pa.string()),
    pa.field("percent", pa.int16(), nullable=False),
    pa.field("watched_s", pa.float32(), nullable=False),
    pa.field("event_time_ms", pa.int64(), nullable=False),
    pa.field("surface", pa.string(), nullable=False),
    pa.field("context_video_id", pa.string()),
]
NEW_FIELDS = [
    *PAST_FIELDS,
    pa.field("event_id", pa.string(), nullable=False),
    pa.field("partition", pa.int32(), nullable=False),
    pa.field("offset", pa.int64(), nullable=False),
    pa.field("duration_s", pa.float32(), nullable=False),
    pa.field("liked", pa.bool_(), nullable=False),
    pa.field("query", pa.string()),
    pa.field("append_time_ms", pa.int64(), nullable=False),
    pa.field("late", pa.bool_(), nullable=False),
]
SHARD_SCHEMA = pa.schema(
    [
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("region", pa.string()),
        pa.field("age", pa.int16()),
        pa.field("gender", pa.string()),
        pa.field("device", pa.string()),
        pa.field("language", pa.string()),
        pa.field("history", pa.list_(pa.struct(PAST_FIELDS)), nullable=False),
        pa.field("watches", pa.list_(pa.struct(NEW_FIELDS)), nullable=False),
        pa.field("codebook_version", pa.int32(), nullable=False),
    ]
)


_REPEATING = [
    "region",
    "gender",
    "device",
    "language",
    *(
        f"{column}.list.element.{name}"
        for column in ("history", "watches")
        for name in (
            "video_id", "semantic_id.list.element", "channel", "percent", "surface", "context_video_id",
        )
    ),
]  # fmt: skip
"""Columns that are worth a dictionary; to find that others are not takes as long as to write them."""


class ShardWriter:
    """Writes a shard as a Parquet file in memory, compressed with zstd, row group by row group.

    A row group of `ROW_GROUP_ROWS` users with full histories takes some 50 MB as an Arrow table: Ray Data, which reads
    by row group, wants blocks between 1 and 128 MB.
    """

    def __init__(
        self, *, ranges: Iterable[OffsetRange] = (), erased_users: Iterable[str] = ()
    ) -> None:
        """Begin a shard of these offset ranges.

        `erased_users` are to be forgotten by who learned from the shards before. Both stand in the file's metadata.
        """
        metadata = {
            "schema_version": SHARD_SCHEMA_VERSION,
            "ranges": [found.model_dump() for found in ranges],
            "erased_users": sorted(erased_users),
        }
        self._metadata = {_METADATA_KEY: json.dumps(metadata)}
        self._sink = pa.BufferOutputStream()
        self._writer: pq.ParquetWriter | None = None

    def write(self, table: pa.Table) -> None:
        """Add rows of `SHARD_SCHEMA`; strings may be dictionary-encoded, alike in every table."""
        if self._writer is None:
            # Without the Arrow schema in the file, a dictionary-encoded column reads back as strings.
            self._writer = pq.ParquetWriter(
                self._sink,
                table.schema,
                compression="zstd",
                store_schema=False,
                use_dictionary=_REPEATING,
                write_statistics=["user_id"],
            )
            self._writer.add_key_value_metadata(self._metadata)
        self._writer.write_table(table, row_group_size=ROW_GROUP_ROWS)

    def close(self) -> bytes:
        """Return the file."""
        if self._writer is None:
            self.write(SHARD_SCHEMA.empty_table())
        assert self._writer is not None
        self._writer.close()
        return bytes(self._sink.getvalue())


def write_shard(
    rows: Sequence[ShardRow],
    *,
    ranges: Iterable[OffsetRange] = (),
    erased_users: Iterable[str] = (),
) -> bytes:
    """Return the rows as a shard."""
    columns = [
        _nested(field.type, [getattr(row, field.name) for row in rows])
        if pa.types.is_list(field.type)
        else _flat(field, rows)
        for field in SHARD_SCHEMA
    ]
    writer = ShardWriter(ranges=ranges, erased_users=erased_users)
    writer.write(pa.Table.from_arrays(columns, schema=SHARD_SCHEMA))
    return writer.close()


def _nested(kind: Any, lists: list[list[Struct]]) -> Any:
    """Return a list<struct> column; field by field, because a dict per watch costs ten times as much."""
    ends = [0]
    for found in lists:
        ends.append(ends[-1] + len(found))
    flat = [watch for found in lists for watch in found]
    fields = list(kind.value_type)
    structs = pa.StructArray.from_arrays([_flat(field, flat) for field in fields], fields=fields)
    return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), structs, type=kind)


def _flat(field: Any, owners: Sequence[Struct]) -> Any:
    return pa.array(list(map(attrgetter(field.name), owners)), type=field.type)


def read_shard(data: bytes) -> list[ShardRow]:
    """Return the rows of a shard.

    Raises:
        DecodeError: the bytes are no shard, or one of a newer schema version (`unknown_schema_version`).
    """
    try:
        table = pq.read_table(pa.BufferReader(data))
    except (pa.ArrowInvalid, OSError) as error:
        raise DecodeError(f"not a Parquet file: {error}", "invalid_shard") from error
    metadata = _metadata(table.schema)
    if metadata["schema_version"] > SHARD_SCHEMA_VERSION:
        raise DecodeError(
            f"shard schema_version is {metadata['schema_version']}; this reader knows up to "
            f"{SHARD_SCHEMA_VERSION}: update Freshet where the shard is read",
            "unknown_schema_version",
        )
    return msgspec.convert(table.to_pylist(), list[ShardRow])


def read_ranges(data: bytes) -> tuple[OffsetRange, ...]:
    """Return the offset ranges that a shard covers, from the file itself.

    Raises:
        DecodeError: the bytes are no shard.
    """
    return tuple(OffsetRange(**found) for found in _metadata(_schema(data))["ranges"])


def read_erased_users(data: bytes) -> frozenset[str]:
    """Return who was erased while the shard was filled: whatever was learned of them before is to be forgotten.

    Raises:
        DecodeError: the bytes are no shard.
    """
    return frozenset(_metadata(_schema(data)).get("erased_users", ()))


def _schema(data: bytes) -> Any:
    try:
        return pq.read_schema(pa.BufferReader(data))
    except (pa.ArrowInvalid, OSError) as error:
        raise DecodeError(f"not a Parquet file: {error}", "invalid_shard") from error


def _metadata(schema: Any) -> dict[str, Any]:
    found = (schema.metadata or {}).get(_METADATA_KEY)
    if found is None:
        raise DecodeError(
            "a Parquet file, but not a shard: its metadata is missing", "invalid_shard"
        )
    metadata: dict[str, Any] = json.loads(found)
    return metadata


def verify_shards(announced: Iterable[ShardSealed]) -> list[str]:
    """Return what contradicts "every offset exactly once", in words; nothing is the proof.

    Per partition the ranges must follow each other without gap or overlap from the first one on, and in every shard
    each offset must be a watch, a duplicate, a dead letter, erased, or an offset without a record.
    """
    problems = []
    next_offsets: dict[int, int] = {}
    seen: set[str] = set()
    for shard in announced:
        if shard.shard_id in seen:
            problems.append(f"{shard.shard_id} is announced twice")
        seen.add(shard.shard_id)
        problems += _uncounted(shard)
        for found in shard.ranges:
            expected = next_offsets.get(found.partition, found.first_offset)
            if found.first_offset != expected:
                fault = "overlaps" if found.first_offset < expected else "leaves a gap after"
                problems.append(
                    f"{shard.shard_id} {fault} what came before: partition {found.partition} "
                    f"begins at {found.first_offset}, expected {expected}"
                )
            next_offsets[found.partition] = max(expected, found.last_offset + 1)
    return problems


def _uncounted(shard: ShardSealed) -> list[str]:
    covered = sum(found.last_offset - found.first_offset + 1 for found in shard.ranges)
    counted = (
        shard.watches + shard.duplicates + shard.dead_letters + shard.erased + shard.empty_offsets
    )
    if covered == counted:
        return []
    return [f"{shard.shard_id} covers {covered} offsets and accounts for {counted}"]
