"""Sealing without a broker: records in, a shard out, committed at once."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from infra.settings import WatchSettings
from streams.shards import ShardRow, read_shard
from workers.shard_builder import FilledShard, Restored, ShardBuilder
from workers.shard_contents import ShardContents, UserHistories, shard_contents
from workers.video_labels import VideoLabel
from workers.watch_intake import Records

NOW_MS = 1_700_000_000_000


class Sealing:
    """A builder and the histories that its shards are merged into, one record at a time."""

    def __init__(
        self,
        restored: Restored | None = None,
        *,
        users: UserHistories | None = None,
        length: int = 100,
    ) -> None:
        settings = WatchSettings(history_length=length, future_slack_s=60, lateness_s=10)
        self.builder = ShardBuilder({0: restored or Restored(0), 1: Restored(0)}, settings=settings)
        self.users = users or UserHistories()
        self._length = length

    def add(
        self,
        offset: int,
        value: bytes | None,
        *,
        key: bytes | None = b"u",
        append_time_ms: int = NOW_MS,
    ) -> None:
        self.builder.add(records((offset, key, value), append_time_ms=append_time_ms))

    def shard(
        self, videos: dict[str, VideoLabel] | None = None, codebook_version: int = 0
    ) -> tuple[FilledShard, ShardContents]:
        """Return the shard and what becomes of it, which is then committed."""
        filled = self.builder.take_shard()
        contents = shard_contents(
            filled, self.users, videos or {}, codebook_version, history_length=self._length
        )
        self.users.apply(contents)
        return filled, contents


def records(
    *found: tuple[int, bytes | None, bytes | None], append_time_ms: int = NOW_MS
) -> Records:
    """Return records of partition 0: offset, key and value."""
    offsets, keys, values = zip(*found, strict=True)
    num = len(found)
    return Records(
        np.zeros(num, np.int64), np.array(offsets), np.full(num, append_time_ms), keys, values
    )


def rows_of(contents: ShardContents) -> list[ShardRow]:
    return read_shard(contents.file)


def record(event_id: str, **changed: Any) -> bytes:
    event = {
        "event_id": event_id,
        "event_time_ms": NOW_MS,
        "user_id": "u",
        "video_id": "v",
        "surface": "home",
        "watched_s": 15,
        "duration_s": 60,
    }
    return json.dumps(event | changed).encode()


def erasure(event_id: str, user_id: str = "u") -> bytes:
    event = {"type": "erased", "event_id": event_id, "event_time_ms": NOW_MS, "user_id": user_id}
    return json.dumps(event).encode()
