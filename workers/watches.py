"""The sealer process: `watch.events` in, sealed training shards out; knows nothing of training.

| loop | consumes | waits for | produces |
| --- | --- | --- | --- |
| take | watch.events, up to 10,000 records | 0.1 s, or as many; a full shard that cannot be sealed yet | columns |
| seal | a full, or old enough, shard; video.semantic_ids | the store, then Kafka | see `ShardCommitter` |

They are two threads: the next shard is filled while one is sealed. One waits at the most, so memory is bounded by two
shards and the histories. The histories belong to the seal loop, the positions to the take loop.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from infra import metrics
from infra.clock import now_ms
from infra.errors import TransientError
from infra.log import configure, get_logger
from infra.memory import release_freed_memory
from infra.settings import Settings
from infra.storage import ObjectStore
from streams.client import consumer, producer
from streams.topics import WATCHES
from workers.member_slot import MemberSlot
from workers.orphans import collect_orphans
from workers.restoring import restore
from workers.sealing import Committed, ShardCommitter, StepHook, settle
from workers.shard_builder import FilledShard, ShardBuilder
from workers.shard_contents import UserHistories, compile_sealing
from workers.video_labels import VideoLabels
from workers.watch_intake import records_of

GROUP = "freshet-watches"
POLL_S = 0.1
POLL_RECORDS = 10_000
SESSION_TIMEOUT_MS = 10_000
"""How long a dead member keeps its partitions from the others; one restarted in that time has them back at once."""
LAG_EVERY_S = 5.0
DELAYS_PER_SHARD = 1_000
"""Observed delays of one shard at most: every n-th watch, because observing 50,000 takes longer than writing them."""

log = get_logger()


class Sealer:
    """One member of the consumer group of sealers.

    A rebalance gives all partitions back (the eager protocol), so that every change of generation passes through the
    callbacks and the group metadata are always those of the partitions in hand. A shard that is being sealed is waited
    for, what was not sealed is dropped, and read again by whoever has the partition next.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        member: str,
        store: ObjectStore,
        on_step: StepHook = lambda step: None,
    ) -> None:
        """Join the group; `member` is the same after a restart and no other living member's.

        Blocks: until the transaction that a predecessor of the same name left open is aborted.
        """
        compile_sealing(settings.watches)
        kafka = settings.kafka
        self._settings = settings
        self._store = store
        transactional = producer(kafka, transactional_id=f"{GROUP}-{member}")
        settle(transactional.init_transactions)
        self._committer = ShardCommitter(
            kafka,
            settings.watches,
            transactional,
            store,
            writer=member[:8],
            on_step=on_step,
        )
        self._labels = VideoLabels(kafka)
        self._builder: ShardBuilder | None = None
        self._users = UserHistories()
        self._sealing: Future[Committed] | None = None
        self._seal_thread = ThreadPoolExecutor(1, thread_name_prefix="seal")
        self._assigned: tuple[int, ...] = ()
        self._group_metadata: Any = None
        self._must_restore = False
        self._consumer = consumer(
            kafka,
            group=GROUP,
            overrides={
                "group.instance.id": member,
                "partition.assignment.strategy": "range",
                "session.timeout.ms": SESSION_TIMEOUT_MS,
            },
        )
        self._consumer.subscribe(
            [WATCHES.in_cluster(kafka)], on_assign=self._on_assign, on_revoke=self._on_revoke
        )

    def _on_assign(self, client: Consumer, partitions: list[TopicPartition]) -> None:
        self._on_revoke(client, partitions)
        metadata = client.consumer_group_metadata()
        if not client.memberid():
            return  # thrown out again meanwhile: the metadata name nobody, and a revocation follows
        self._group_metadata = metadata
        self._assigned = tuple(sorted(found.partition for found in partitions))
        self._must_restore = True

    def _on_revoke(self, client: Consumer, partitions: list[TopicPartition]) -> None:
        if self._sealing is not None:
            wait([self._sealing])  # how it ended is seen to at the next step
        self._assigned = ()
        self._builder = None
        self._must_restore = False

    def run(self, stopping: threading.Event) -> None:
        """Seal shard after shard until `stopping` is set, then what is there; collect orphans now and then.

        Raises:
            TransientError: this member was fenced, or Kafka does not answer; start again.
        """
        collected = lag_shown = -math.inf
        orphan_age_s = self._settings.watches.orphan_age_s
        while not stopping.is_set():
            if time.monotonic() - collected >= orphan_age_s:
                collect_orphans(self._settings.kafka, self._store, grace_s=orphan_age_s)
                collected = time.monotonic()
            if time.monotonic() - lag_shown >= LAG_EVERY_S:
                self._expose_lag()
                lag_shown = time.monotonic()
            self.step()
        self._finish_sealing()
        if self._builder is not None and self._builder.records:
            self._start_sealing(self._builder.take_shard())
            self._finish_sealing()

    def _expose_lag(self) -> None:
        """Say how many records are not taken in, by what the client knows without asking the brokers."""
        name = WATCHES.in_cluster(self._settings.kafka)
        behind = 0
        for position in self._consumer.position(
            [TopicPartition(name, at) for at in self._assigned]
        ):
            if position.offset >= 0:  # none yet, right after an assignment
                _, end = self._consumer.get_watermark_offsets(position, cached=True)
                behind += max(0, end - position.offset)
        metrics.CONSUMER_LAG.labels(WATCHES.name).set(behind)

    def step(self) -> None:
        """Take in the records that are there, and begin to seal when it is time.

        Delivery: what was taken in and not sealed is read again after a crash.
        Blocks: while the shard before is still being sealed and another one is full.

        Raises:
            TransientError: this member was fenced, or Kafka does not answer; start again.
        """
        if self._sealing is not None and self._sealing.done():
            self._finish_sealing()
        messages = self._consumer.consume(self._room(), POLL_S)
        if any(
            map(Message.error, messages)
        ):  # also without partitions: that this member is out is said once
            messages = [message for message in messages if not _failed(message)]
        if self._must_restore:
            # What was just consumed may be from before the assignment; it is read again from the restored offsets.
            self._finish_sealing()
            self._restore()
            return
        builder = self._builder
        if builder is None:
            return
        builder.add(records_of(messages))
        if self._is_time(builder):
            self._finish_sealing()
            if self._builder is builder:
                self._start_sealing(builder.take_shard())

    def _room(self) -> int:
        if self._builder is None:
            return POLL_RECORDS
        room = self._settings.watches.shard_max_rows - self._builder.watches
        return max(1, min(POLL_RECORDS, room))

    def _restore(self) -> None:
        kafka = self._settings.kafka
        restored, self._users = restore(
            kafka, self._consumer, self._assigned, watches=self._settings.watches
        )
        name = WATCHES.in_cluster(kafka)
        self._consumer.assign(
            [TopicPartition(name, number, found.next_offset) for number, found in restored.items()]
        )
        self._builder = ShardBuilder(restored, settings=self._settings.watches)
        self._must_restore = False
        release_freed_memory()
        log.info(
            "partitions_restored",
            next_offsets={number: found.next_offset for number, found in restored.items()},
            users=sum(map(len, self._users.by_partition.values())),
        )

    def _is_time(self, builder: ShardBuilder) -> bool:
        if builder.started is None:
            return False
        limits = self._settings.watches
        return (
            builder.watches >= limits.shard_max_rows
            or builder.num_bytes >= limits.shard_max_bytes
            or time.monotonic() - builder.started >= limits.shard_max_age_s
        )

    def _start_sealing(self, shard: FilledShard) -> None:
        self._sealing = self._seal_thread.submit(
            self._seal, shard, self._users, self._group_metadata
        )

    def _seal(self, shard: FilledShard, users: UserHistories, group_metadata: Any) -> Committed:
        started = time.monotonic()
        committed = self._committer.commit(shard, users, self._labels, group_metadata)
        _report(committed, shard, seconds=time.monotonic() - started)
        release_freed_memory()
        return committed

    def _finish_sealing(self) -> None:
        """Wait for the shard that is being sealed, if one is; undo what could not be committed."""
        sealing, self._sealing = self._sealing, None
        if sealing is None:
            return
        try:
            sealing.result()
        except KafkaException as error:
            self._abort(error)

    def _abort(self, error: KafkaException) -> None:
        """Drop all that was not committed; its records are read again, if they are still ours."""
        metrics.SHARDS.labels(outcome="aborted").inc()
        if error.args[0].fatal():
            raise TransientError(
                f"this sealer was fenced: {error.args[0]}; another process has its transactional id"
            ) from error
        log.warning("shard_aborted", error=str(error.args[0]))
        self._committer.abort()
        self._builder = None
        self._must_restore = bool(self._assigned)

    def close(self) -> None:
        """Leave Kafka; the group keeps the partitions for this member for `SESSION_TIMEOUT_MS`."""
        self._seal_thread.shutdown()
        self._consumer.close()
        self._labels.close()


def _failed(message: Message) -> bool:
    """Return whether a message is an error that passes by itself; raise one that does not."""
    error = message.error()
    if error is None:
        return False
    # A message that says so has the code, and does not call itself fatal.
    if error.fatal() or error.code() == KafkaError._FATAL:  # noqa: SLF001 - its public name
        raise TransientError(
            f"this sealer was put out of its group: {error}; another process has its member name"
        )
    log.warning("consume_failed", error=str(error))
    return True


def _report(committed: Committed, shard: FilledShard, *, seconds: float) -> None:
    now, sealed = now_ms(), committed.sealed
    append_times_ms = committed.contents.append_times_ms
    delay = metrics.STAGE_DELAYS["watch_to_shard"]
    sample = append_times_ms[:: 1 + len(append_times_ms) // DELAYS_PER_SHARD]
    for append_time_ms in sample.tolist():
        delay.observe((now - append_time_ms) / 1000)
    for outcome, count in (
        ("accepted", sealed.watches),
        ("duplicate", sealed.duplicates),
        ("dead_letter", sealed.dead_letters),
        ("erased", sealed.erased),
    ):
        metrics.RECORDS.labels(topic=WATCHES.name, outcome=outcome).inc(count)
    for reason, count in Counter(letter.reason for _, letter in shard.dead_letters).items():
        metrics.DEAD_LETTERS.labels(topic=WATCHES.name, reason=reason).inc(count)
    metrics.LATE_WATCHES.inc(sealed.late)
    metrics.UNLABELLED_WATCHES.inc(sealed.unknown_videos)
    metrics.SHARDS.labels(outcome="sealed").inc()
    metrics.LAST_SUCCESS.labels(stage="watch_to_shard").set_to_current_time()
    log.info(
        "shard_sealed",
        shard_id=sealed.shard_id,
        ranges=[(at.partition, at.first_offset, at.last_offset) for at in sealed.ranges],
        rows=sealed.rows,
        watches=sealed.watches,
        duplicates=sealed.duplicates,
        dead_letters=sealed.dead_letters,
        erased=sealed.erased,
        late=sealed.late,
        unknown_videos=sealed.unknown_videos,
        seconds=round(seconds, 3),
    )


def run(
    settings: Settings,
    *,
    store: ObjectStore | None = None,
    on_step: StepHook = lambda step: None,
) -> None:
    """Be the sealer process until SIGTERM or SIGINT; the shard at hand is sealed before it ends.

    Several may run at once, on one machine or many: they share the partitions.

    Raises:
        TransientError: fenced, or Kafka does not answer; a supervisor may start it again.
    """
    configure("worker.watches", level=settings.log.level, format=settings.log.format)
    metrics.expose(settings.metrics.host, settings.metrics.watches_port)
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    slot = MemberSlot(settings.var_dir / "sealers")
    store = store or ObjectStore(settings.storage.root)
    sealer = Sealer(settings, member=slot.name, store=store, on_step=on_step)
    try:
        sealer.run(stopping)
    finally:
        sealer.close()
        slot.close()
