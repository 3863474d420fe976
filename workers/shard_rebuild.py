"""Shards made once more from a range of `watch.events`, beside the announced ones; knows nothing of the command line.

Nothing is announced or committed: the shards are for other trainers, for a look, or for when files were lost. Records
before the range are read first, as far as the topic still has them, for the histories before it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from confluent_kafka import Message

from infra.clock import now_ms
from infra.errors import ConfigError
from infra.settings import Settings
from infra.storage import ObjectStore
from streams.client import TopicReader
from streams.events import ShardSealed, to_json
from streams.ranges import Offsets
from streams.topics import WATCHES
from workers.sealing import announcement
from workers.shard_builder import FilledShard, Restored, ShardBuilder
from workers.shard_contents import ShardContents, UserHistories, shard_contents
from workers.video_labels import VideoLabels
from workers.watch_intake import records_of

Progress = Callable[[str, int, int | None], None]
INDEX_FILE = "shards.jsonl"
FOLDER = "rebuilt"
RECORDS_AT_ONCE = 1_000
"""So many records at most does a shard have more than its limit."""


@dataclass(frozen=True)
class Rebuilt:
    """What was written: `folder` holds the shards and, as its last file, an announcement for each in `INDEX_FILE`."""

    folder: str
    shards: list[ShardSealed]


def rebuild_shards(
    settings: Settings,
    store: ObjectStore,
    start: Offsets,
    ends: Offsets,
    *,
    name: str,
    progress: Progress = lambda what, done, total: None,
) -> Rebuilt:
    """Write the shards of a range of offsets into a folder of the store.

    Delivery: killed before it returns, the folder has no index and the next call begins anew.
    Blocks: while the topic is read from its beginning to the end of the range.

    Raises:
        ConfigError: the range is empty, the name is none, or the folder is there already.
    """
    if not re.fullmatch(r"[\w.-]{1,100}", name) or name.startswith("."):
        raise ConfigError(
            f"{name!r} is no folder's name: use letters, digits, dots, hyphens and underscores"
        )
    if not any(ends[at] > first for at, first in start.items()):
        raise ConfigError(
            f"the range holds no record of {WATCHES.name}: widen it, or see `freshet status`"
        )
    folder = f"{settings.kafka.topic_prefix}{FOLDER}/{name}"
    index = f"{folder}/{INDEX_FILE}"
    if store.exists(index):
        raise ConfigError(f"{folder} holds rebuilt shards already: give another --name")
    (builder, users), labels = _builder(settings, start, progress), VideoLabels(settings.kafka)
    labels.close()
    shards: list[ShardSealed] = []

    def write() -> None:
        shard = builder.take_shard()
        contents = _contents(shard, users, settings, labels)
        shard_id = f"{name}-{len(shards):06d}"
        path = f"{folder}/{shard_id}.parquet"
        sha256 = store.put_bytes(path, contents.file)
        shards.append(announcement(shard, contents, shard_id=shard_id, path=path, sha256=sha256))

    done, total = 0, sum(ends[at] - first for at, first in start.items())
    for records in _records(settings, start, ends):
        for first in range(0, len(records), RECORDS_AT_ONCE):
            builder.add(records_of(records[first : first + RECORDS_AT_ONCE]))
            if builder.watches >= settings.watches.shard_max_rows:
                write()
        done += len(records)
        progress("rebuild", done, total)
    if builder.records:
        write()
    store.put_bytes(index, b"".join(to_json(shard) + b"\n" for shard in shards))
    return Rebuilt(folder, shards)


def _builder(
    settings: Settings, start: Offsets, progress: Progress
) -> tuple[ShardBuilder, UserHistories]:
    """Return a builder at the start of the range, and the histories of the records before it."""
    with TopicReader(settings.kafka, [WATCHES]) as reader:
        begin = dict(reader.next_offsets)
    builder = ShardBuilder(
        {partition: Restored(begin[name, partition]) for name, partition in start},
        settings=settings.watches,
    )
    users = UserHistories()
    done, before = 0, sum(start[at] - begin[at] for at in start)
    for records in _records(settings, begin, start):
        builder.add(records_of(records))
        _contents(builder.take_shard(), users, settings)
        done += len(records)
        progress("histories before", done, before)
    builder.skip_to({partition: offset for (_, partition), offset in start.items()})
    return builder, users


def _contents(
    shard: FilledShard, users: UserHistories, settings: Settings, labels: VideoLabels | None = None
) -> ShardContents:
    """Return what becomes of a shard, which is then part of the histories."""
    contents = shard_contents(
        shard,
        users,
        labels.by_video if labels else {},
        labels.codebook_version if labels else 0,
        history_length=settings.watches.history_length,
    )
    users.apply(contents)
    return contents


def _records(settings: Settings, start: Offsets, ends: Offsets) -> Iterator[list[Message]]:
    """Yield the records of a range, each partition's in order."""
    with TopicReader(settings.kafka, [WATCHES], start=start) as reader:
        while any(reader.next_offsets[at] < end for at, end in ends.items()):
            polled = reader.poll(timeout_s=0.2, max_records=10_000)
            found = [
                message
                for topic, message in polled
                if message.offset() < ends[topic.name, message.partition()]
            ]
            if found:
                yield found


def rebuilt_name() -> str:
    """Return a folder's name that no earlier rebuild has."""
    return str(now_ms())
