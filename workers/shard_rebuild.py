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
from streams.packed_history import new_names
from streams.ranges import Offsets
from streams.topics import WATCHES
from workers.sealing import announcement
from workers.shard_builder import Restored, ShardBuilder
from workers.video_labels import VideoLabels

Progress = Callable[[str, int, int | None], None]
INDEX_FILE = "shards.jsonl"
FOLDER = "rebuilt"


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
    builder, labels = _builder(settings, start, progress), VideoLabels(settings.kafka)
    labels.close()
    shards: list[ShardSealed] = []

    def write() -> None:
        contents = builder.contents(labels.by_video, labels.codebook_version)
        shard_id = f"{name}-{len(shards):06d}"
        path = f"{folder}/{shard_id}.parquet"
        sha256 = store.put_bytes(path, contents.file)
        shards.append(announcement(builder, contents, shard_id=shard_id, path=path, sha256=sha256))
        builder.begin_next()

    total = sum(ends[at] - first for at, first in start.items())
    for done, message in enumerate(_records(settings, start, ends), start=1):
        _add(builder, message)
        if builder.watches >= settings.watches.shard_max_rows:
            write()
        if done % 1000 == 0 or done == total:
            progress("rebuild", done, total)
    if builder.records:
        write()
    store.put_bytes(index, b"".join(to_json(shard) + b"\n" for shard in shards))
    return Rebuilt(folder, shards)


def _builder(settings: Settings, start: Offsets, progress: Progress) -> ShardBuilder:
    """Return a builder at the start of the range, with the histories of the records before it."""
    with TopicReader(settings.kafka, [WATCHES]) as reader:
        first = dict(reader.next_offsets)
    builder = ShardBuilder(
        {partition: Restored(first[name, partition], {}) for name, partition in start},
        names=new_names(),
        settings=settings.watches,
    )
    before = sum(start[at] - first[at] for at in start)
    for done, message in enumerate(_records(settings, first, start), start=1):
        _add(builder, message)
        if done % 10_000 == 0 or done == before:
            builder.begin_next()
            progress("histories before", done, before)
    builder.skip_to({partition: offset for (_, partition), offset in start.items()})
    return builder


def _records(settings: Settings, start: Offsets, ends: Offsets) -> Iterator[Message]:
    """Yield the records of a range, each partition's in order."""
    with TopicReader(settings.kafka, [WATCHES], start=start) as reader:
        while any(reader.next_offsets[at] < end for at, end in ends.items()):
            for topic, message in reader.poll(timeout_s=0.2, max_records=10_000):
                if message.offset() < ends[topic.name, message.partition()]:
                    yield message


def _add(builder: ShardBuilder, message: Message) -> None:
    builder.add(
        message.partition(),
        message.offset(),
        message.key(),
        message.value(),
        message.timestamp()[1],
    )


def rebuilt_name() -> str:
    """Return a folder's name that no earlier rebuild has."""
    return str(now_ms())
