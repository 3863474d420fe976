"""Follows the stages from outside, by their topics, the shards' files and the checkpoints; knows nothing of the load.

Live, because what is older than its retention, or than the newest few, is gone. A broker that is away is waited for.
"""

from __future__ import annotations

import threading
import time

from confluent_kafka import KafkaException, Message

from infra.errors import FreshetError
from infra.settings import KafkaSettings, Settings
from infra.storage import ObjectStore
from streams.catalogue import parse_semantic_id_key
from streams.client import TopicReader
from streams.codec import decode, decode_dead_letter
from streams.events import ShardSealed, SwapReported, VideoServable
from streams.shards import read_shard
from streams.topics import (
    DEAD_LETTERS,
    SEMANTIC_IDS,
    SERVABLE,
    SHARDS,
    SWAPS,
    UPLOADS,
    WATCHES,
    Topic,
)
from tests.soak.ledger import Seen
from tests.soak.threads import KeptThread
from workers.training_state import checkpoint_versions, read_record

LETTERS = (DEAD_LETTERS[UPLOADS.name], DEAD_LETTERS[WATCHES.name])
FOLLOWED = (SEMANTIC_IDS, SERVABLE, SHARDS, SWAPS, *LETTERS)
POLL_S = 0.2
LOOK_EVERY_S = 1.0
RETRY_S = 1.0


class Following:
    """Two threads, one for topics and one for checkpoints, that write down what they see."""

    def __init__(self, settings: Settings, seen: Seen) -> None:
        """Begin, with what is in the topics from now on."""
        self._kafka: KafkaSettings = settings.kafka
        self._store = ObjectStore(settings.storage.root)
        self._models = settings.training.models
        self._seen = seen
        with TopicReader(self._kafka, FOLLOWED, from_end=True) as ends:
            self._next_offsets = dict(ends.next_offsets)
        for name in self._models:
            seen.versions[name] = checkpoint_versions(self._store, name)
        self._stopping = threading.Event()
        self._threads = (
            KeptThread(self._follow_topics, name="topics"),
            KeptThread(self._follow_checkpoints, name="checkpoints"),
        )
        for one in self._threads:
            one.start()

    def check(self) -> None:
        """Raise what ended one of the threads."""
        for one in self._threads:
            one.check()

    def _follow_topics(self) -> None:
        while not self._stopping.is_set():
            try:
                with TopicReader(self._kafka, FOLLOWED, start=self._next_offsets) as reader:
                    while not self._stopping.is_set():
                        for topic, message in reader.poll(timeout_s=POLL_S):
                            self._take(topic, message)
                        self._next_offsets = dict(reader.next_offsets)
            except KafkaException:
                self._stopping.wait(RETRY_S)

    def _take(self, topic: Topic, message: Message) -> None:
        seen, value = self._seen, message.value()
        if topic is SEMANTIC_IDS:
            if value is None:
                seen.removed[parse_semantic_id_key(message.key())[0]] = time.time()
        elif topic is SERVABLE:
            servable = decode(VideoServable, value)
            seen.servable.setdefault(servable.video_id, servable.servable_time_ms)
        elif topic is SHARDS:
            self._take_shard(message.offset() or 0, decode(ShardSealed, value))
        elif topic is SWAPS:
            swap = decode(SwapReported, value)
            if swap.outcome == "succeeded":
                seen.refreshes[swap.model_name] += bool(swap.previous_version)
            else:
                seen.rejected[swap.model_name] += 1
        else:
            letter = decode_dead_letter(value)
            seen.letters[letter.topic][letter.partition, letter.offset].append(letter.reason)

    def _take_shard(self, offset: int, shard: ShardSealed) -> None:
        if offset in self._seen.shards:  # read again after the broker was away
            return
        try:
            data = self._store.get_bytes(shard.path, sha256=shard.sha256)
            rows = read_shard(data)
        except FreshetError as error:
            self._seen.unread.append(f"{shard.shard_id}: {error}")
        else:
            self._seen.shard_bytes += len(data)
            self._seen.in_shards.update(
                (watch.partition, watch.offset) for row in rows for watch in row.watches
            )
        self._seen.shards[offset] = shard

    def _follow_checkpoints(self) -> None:
        while not self._stopping.wait(LOOK_EVERY_S):
            for name in self._models:
                self._look(name)

    def _look(self, model_name: str) -> None:
        known = self._seen.versions[model_name]
        for version in checkpoint_versions(self._store, model_name):
            if version <= known[-1]:
                continue
            try:
                record = read_record(self._store, model_name, version)
            except FreshetError:  # removed since: the next one shows that it was missed
                continue
            self._seen.learned[model_name].update(record["record"]["shard_ids"])
            known.append(version)

    def stop(self) -> None:
        """Follow no longer."""
        self._stopping.set()
        for one in self._threads:
            one.join()
