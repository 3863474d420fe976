"""One filled shard into the log, exactly once; knows nothing of where records come from.

Who may commit. Three things keep a sealer that lost its partitions (a zombie) from committing:

1. The offsets are sent with the group metadata captured when the partitions were assigned. The group coordinator
   refuses an older generation or another member, so at most one member can commit a partition's offsets; histories and
   announcements become visible only together with them. This alone makes any two live members safe, whatever their
   transactional ids.
2. The metadata are never read again later: a client that was thrown out of the group reports an empty member, which the
   coordinator would let pass.
3. The transactional id is the member's slot, which one live process holds at a time. A restarted process has its
   predecessor's id, so starting it ends the transaction that its predecessor left open, at once instead of after a
   minute. Were two live processes ever to have one id (a cloned disk), the older would be fenced at its next step and
   stop: nothing is lost, and its log says so.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from enum import IntEnum
from typing import Any, NamedTuple

from confluent_kafka import KafkaException, Producer, TopicPartition

from infra import metrics
from infra.clock import Deadline, now_ms
from infra.errors import TransientError
from infra.log import get_logger
from infra.settings import KafkaSettings, WatchSettings
from infra.storage import ObjectStore
from streams.events import ShardSealed, to_json
from streams.topics import COUNTS, DEAD_LETTERS, HISTORIES, SHARDS, WATCHES, Topic
from workers.shard_builder import FilledShard
from workers.shard_contents import ShardContents, UserHistories, shard_contents
from workers.video_labels import VideoLabels

CALL_TIMEOUT_S = 10.0
HANGING_S = 30.0
"""Three times as long as a call may take."""
STORE_BUDGET_S = 60.0
"""How long a store may fail, a full disk for example; the member is still in its group by then."""
STORE_PAUSE_S = 1.0
SETTLE_TIMEOUT_S = 90.0
"""Longer than the 60 s in which the broker itself settles a transaction."""


log = get_logger()


class SealStep(IntEnum):
    """The order in which a shard is committed; the number is of the step that has just been done.

    ENCODED -> FILE_WRITTEN -> TRANSACTION_BEGUN -> RESULTS_PRODUCED -> OFFSETS_SENT -> COMMITTED

    Delivery: dying anywhere before COMMITTED leaves at most a file that nobody announced, which is collected later; the
    records are read again. From COMMITTED on the shard is announced and its records are never read again.
    """

    ENCODED = 0
    FILE_WRITTEN = 1
    TRANSACTION_BEGUN = 2
    RESULTS_PRODUCED = 3
    OFFSETS_SENT = 4
    COMMITTED = 5


StepHook = Callable[[SealStep], None]


class _Outgoing(NamedTuple):
    topic: Topic
    key: bytes | None
    value: bytes | None
    partition: int = -1
    """-1: by the key."""


class Committed(NamedTuple):
    """A shard that is announced."""

    sealed: ShardSealed
    contents: ShardContents


class ShardCommitter:
    """Takes a filled shard through the steps."""

    def __init__(
        self,
        settings: KafkaSettings,
        watches: WatchSettings,
        producer: Producer,
        store: ObjectStore,
        *,
        writer: str,
        on_step: StepHook,
    ) -> None:
        self._settings = settings
        self._watches = watches
        self._producer = producer
        self._store = store
        self._writer = writer
        self._on_step = on_step
        self._attempts = 0

    def commit(
        self, shard: FilledShard, users: UserHistories, labels: VideoLabels, group_metadata: Any
    ) -> Committed:
        """Write, announce and commit a shard; then it is part of the users' histories.

        Delivery: see `SealStep`. After an exception nothing is visible, and `abort` must be called.
        Blocks: until the brokers have all of it, at most `SETTLE_TIMEOUT_S`.

        Raises:
            KafkaException: the transaction must be aborted, or (fatal) this producer was fenced.
            TransientError: the store has not taken the file for `STORE_BUDGET_S`; nothing was begun.
        """
        labels.poll()
        contents = shard_contents(
            shard,
            users,
            labels.by_video,
            labels.codebook_version,
            history_length=self._watches.history_length,
        )
        self._on_step(SealStep.ENCODED)

        # Step 1. Write the file, under a name that no other attempt has: nothing announced is ever overwritten.
        self._attempts += 1
        first = shard.ranges[0]
        shard_id = (
            f"{first.partition:05d}-{first.first_offset:019d}-{self._writer}-{self._attempts}"
        )
        path = f"{shards_folder(self._settings)}/{shard_id}.parquet"
        sha256 = self._store_file(path, contents.file)
        self._on_step(SealStep.FILE_WRITTEN)

        # Step 2. Begin the transaction.
        self._producer.begin_transaction()
        self._on_step(SealStep.TRANSACTION_BEGUN)

        # Step 3. Produce the histories, the counts, the dead letters and the announcement.
        sealed = announcement(shard, contents, shard_id=shard_id, path=path, sha256=sha256)
        for outgoing in _results(shard, contents, sealed, self._watches.counts_window_s):
            self._produce(outgoing)
        self._on_step(SealStep.RESULTS_PRODUCED)

        # Step 4. Send the offsets, each with the newest event time, as the member that was assigned them.
        name, newest_ms = WATCHES.in_cluster(self._settings), shard.newest_event_times_ms
        offsets = [
            TopicPartition(name, number, offset, metadata=str(newest_ms[number]))
            for number, offset in shard.next_offsets.items()
        ]
        send = self._producer.send_offsets_to_transaction
        settle(lambda timeout_s: send(offsets, group_metadata, timeout_s))
        self._on_step(SealStep.OFFSETS_SENT)

        # Step 5. Commit: all of it becomes visible, or none.
        settle(self._producer.commit_transaction)
        self._on_step(SealStep.COMMITTED)
        users.apply(contents)
        return Committed(sealed, contents)

    def _store_file(self, path: str, data: bytes) -> str:
        deadline = Deadline(STORE_BUDGET_S)
        while True:
            try:
                return self._store.put_bytes(path, data)
            except OSError as error:
                metrics.SHARDS.labels(outcome="not_stored").inc()
                if deadline.expired():
                    raise TransientError(
                        f"{path} could not be stored for {STORE_BUDGET_S} s: {error}; is the disk full?"
                    ) from error
                log.warning("shard_not_stored", path=path, error=str(error))
            time.sleep(STORE_PAUSE_S)

    def abort(self) -> None:
        """End the transaction without a trace; the file stays for the collection of orphans.

        Raises:
            KafkaException: fatal; this producer was fenced.
        """
        settle(self._producer.abort_transaction)

    def _produce(self, outgoing: _Outgoing) -> None:
        while True:
            try:
                self._producer.produce(
                    outgoing.topic.in_cluster(self._settings),
                    key=outgoing.key,
                    value=outgoing.value,
                    partition=outgoing.partition,
                )
            except BufferError:
                self._producer.poll(0.1)
            else:
                return


def shards_folder(settings: KafkaSettings) -> str:
    """Return the key under which this deployment's shards are stored; deployments may share a store."""
    return f"{settings.topic_prefix}shards"


def announcement(
    shard: FilledShard, contents: ShardContents, *, shard_id: str, path: str, sha256: str
) -> ShardSealed:
    """Return what is to be said of a shard with these contents."""
    first_append_ms, last_append_ms = shard.append_times_ms
    return ShardSealed(
        shard_id=shard_id,
        path=path,
        sha256=sha256,
        ranges=shard.ranges,
        rows=contents.rows,
        watches=contents.watches,
        duplicates=shard.duplicates,
        dead_letters=len(shard.dead_letters),
        erased=shard.erasures + shard.watches - contents.watches,
        late=contents.late,
        unknown_videos=contents.unknown_videos,
        empty_offsets=shard.empty_offsets,
        first_event_time_ms=contents.event_times_ms[0],
        last_event_time_ms=contents.event_times_ms[1],
        first_append_time_ms=first_append_ms,
        last_append_time_ms=last_append_ms,
        sealed_time_ms=now_ms(),
    )


def _results(
    shard: FilledShard, contents: ShardContents, sealed: ShardSealed, counts_window_s: int
) -> Iterator[_Outgoing]:
    # A history goes to the number of the partition that its watches came from, whatever partitioner players use:
    # it is restored with that partition.
    for partition, user_id, history in contents.updated_histories():
        yield _Outgoing(HISTORIES, user_id.encode(), history, partition)
    for video_id, counts in contents.counts(window_s=counts_window_s):
        yield _Outgoing(COUNTS, video_id.encode(), counts)
    for key, letter in shard.dead_letters:
        yield _Outgoing(DEAD_LETTERS[WATCHES.name], key or b"", to_json(letter))
    yield _Outgoing(SHARDS, str(sealed.ranges[0].partition).encode(), to_json(sealed))


def settle(call: Callable[[float], Any]) -> None:
    """Repeat a transactional call, with its timeout, while its outcome is open; such a call resumes where it was.

    A call that does not return long after its timeout ends the process: `send_offsets_to_transaction` may wait for ever
    for a coordinator that was restarted (librdkafka's issues 5456 and 5511). Nothing is lost with the process.

    Raises:
        KafkaException: it failed for good.
        TransientError: its outcome is still open after `SETTLE_TIMEOUT_S`.
    """
    deadline = Deadline(SETTLE_TIMEOUT_S)
    while True:
        hanging = threading.Timer(HANGING_S, _end_process)
        hanging.daemon = True
        hanging.start()
        try:
            call(CALL_TIMEOUT_S)
        except KafkaException as error:
            if not error.args[0].retriable():
                raise
            if deadline.expired():
                raise TransientError(
                    f"Kafka did not settle a transaction within {SETTLE_TIMEOUT_S} s: {error.args[0]}"
                ) from error
        else:
            return
        finally:
            hanging.cancel()


def _end_process() -> None:
    log.error("transaction_hangs", seconds=HANGING_S)
    os._exit(1)
