"""Announcements of shards, with zeros for what a test or a benchmark does not care about."""

from __future__ import annotations

from typing import Any

from streams.events import OffsetRange, ShardSealed


def sealed_shard(shard_id: str, *ranges: tuple[int, int, int], **fields: Any) -> ShardSealed:
    """Return the announcement of a shard of these ranges: partition, first and last offset."""
    counts = dict.fromkeys(("rows", "watches", "duplicates", "dead_letters"), 0)
    times = dict.fromkeys(
        (
            "first_event_time_ms", "last_event_time_ms", "first_append_time_ms", "last_append_time_ms",
            "sealed_time_ms",
        ),
        0,
    )  # fmt: skip
    covered = tuple(
        OffsetRange(partition=partition, first_offset=first, last_offset=last)
        for partition, first, last in ranges
    )
    return ShardSealed(
        **{"shard_id": shard_id, "path": "", "sha256": "", "ranges": covered}
        | counts
        | times
        | fields
    )
