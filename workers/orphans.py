"""Collecting shard files that nobody announced; knows nothing of how they are written."""

from __future__ import annotations

from infra.errors import DecodeError
from infra.log import get_logger
from infra.settings import KafkaSettings
from infra.storage import ObjectStore
from streams.client import TopicReader
from streams.codec import decode
from streams.events import ShardSealed
from streams.topics import SHARDS
from workers.sealing import shards_folder

log = get_logger()


def collect_orphans(settings: KafkaSettings, store: ObjectStore, *, grace_s: float) -> list[str]:
    """Remove the files of shards, half-written ones too, that are older than `grace_s` and not announced.

    That must be longer than from a file to its announcement, which the broker bounds by the 60 s of a transaction.
    Files are listed before announcements are read, so one announced in between is found. A shard whose announcement has
    outlived its topic's retention counts as not announced. While the topic holds an announcement that this version
    cannot read, its shard is unknown and nothing is removed. Returns the removed keys.
    """
    candidates = store.unchanged_for(shards_folder(settings), grace_s)
    if not candidates:
        return []
    with TopicReader(settings, [SHARDS]) as reader:
        values = [message.value() for _, message in reader.read_to_end()]
    try:
        announced = {decode(ShardSealed, value).path for value in values if value is not None}
    except DecodeError as error:
        log.warning("orphans_kept", reason=error.reason, error=str(error))
        return []
    orphans = [key for key in candidates if key not in announced]
    for key in orphans:
        store.remove(key)
        log.info("orphan_removed", path=key)
    return orphans
