"""Where a sealer goes on after an assignment, a restart or an aborted transaction; knows nothing of shards.

The order is the guarantee. First the committed offsets: while a transaction of the former owner holds them, the broker
lets the answer wait (read_committed asks for stable offsets). Only then the histories, up to the high watermark of
that moment: a commit reaches the partitions one after the other, so an end that counts committed records alone may lie
before the histories that belong to the offsets just read.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import msgspec
import numpy as np
from confluent_kafka import Consumer, KafkaException, TopicPartition

from infra import metrics
from infra.clock import Deadline
from infra.errors import ConfigError, TransientError
from infra.log import get_logger
from infra.settings import KafkaSettings, WatchSettings
from streams.client import TopicReader, consumer
from streams.packed_history import Names, decode_histories
from streams.recent_ids import RecentIds
from streams.topics import HISTORIES, WATCHES, Topic
from workers.shard_builder import Restored
from workers.shard_contents import UserHistories
from workers.watch_intake import WatchIntake, records_of

TIMEOUT_S = 240.0
"""Longer than the 60 s after which the broker ends a dead owner's transaction, shorter than the 300 s between polls."""
RECORDS_AT_ONCE = 1_000


def restore(
    settings: KafkaSettings,
    group_member: Consumer,
    partitions: Collection[int],
    *,
    watches: WatchSettings,
) -> tuple[dict[int, Restored], UserHistories]:
    """Return each partition's next offset and recent event ids, and the histories, all as of that offset.

    Blocks: while a transaction of a former owner is open, at most `TIMEOUT_S`.

    Raises:
        TransientError: a transaction is still open after that, or the broker does not answer.
    """
    users = UserHistories()
    if not partitions:
        return {}, users
    deadline = Deadline(TIMEOUT_S)
    committed = _committed(settings, group_member, partitions, deadline)
    users.by_partition.update(_histories(settings, partitions, users.names, deadline))
    next_offsets = {number: next_offset for number, (next_offset, _) in committed.items()}
    recent = _recent_ids(settings, next_offsets, watches, deadline)
    restored = {
        number: Restored(next_offset, newest_event_time_ms, recent[number])
        for number, (next_offset, newest_event_time_ms) in committed.items()
    }
    return restored, users


def _committed(
    settings: KafkaSettings, group_member: Consumer, partitions: Collection[int], deadline: Deadline
) -> dict[int, tuple[int, int]]:
    """Return, by partition, the next offset and the newest event time that was committed with it."""
    name = WATCHES.in_cluster(settings)
    wanted = [TopicPartition(name, number) for number in partitions]
    while True:
        try:
            found = group_member.committed(wanted, timeout=5)
            failed = next((at.error for at in found if at.error is not None), None)
        except KafkaException as error:
            failed = error.args[0]
        if failed is None:
            break
        if deadline.expired() or failed.fatal():
            raise TransientError(f"the committed offsets of {name} cannot be read: {failed}")
    return {
        at.partition: (
            _first_there(at, _low_watermark(group_member, at)),
            int(at.metadata or 0) if at.offset >= 0 else 0,
        )
        for at in found
    }


def _first_there(committed: TopicPartition, low: int) -> int:
    """Return where to go on: retention may have passed the committed offset while no sealer ran.

    Delivery: the records between are lost, and said to be. The next shard begins behind them, so that
    `freshet shards verify` names the gap.
    """
    expired = low - committed.offset
    if committed.offset < 0 or expired <= 0:
        return max(low, committed.offset)
    metrics.EXPIRED_WATCHES.inc(expired)
    get_logger().error(
        "watches_expired_before_they_were_sealed",
        partition=committed.partition,
        first_offset=committed.offset,
        last_offset=low - 1,
    )
    return low


def _low_watermark(client: Consumer, at: TopicPartition) -> int:
    low, _ = client.get_watermark_offsets(TopicPartition(at.topic, at.partition), timeout=30)
    return int(low)


def _histories(
    settings: KafkaSettings, partitions: Collection[int], names: Names, deadline: Deadline
) -> dict[int, dict[str, bytes]]:
    histories: dict[int, dict[str, bytes]] = {number: {} for number in partitions}
    ends = high_watermarks(settings, HISTORIES, partitions)
    with TopicReader(settings, [HISTORIES], partitions=partitions) as reader:
        while any(reader.next_offsets[HISTORIES.name, number] < ends[number] for number in ends):
            if deadline.expired():
                raise TransientError(
                    f"{HISTORIES.in_cluster(settings)} could not be read to its end, {ends}, within "
                    f"{TIMEOUT_S} s; is a transaction hanging?"
                )
            newest: dict[tuple[int, bytes], bytes | None] = {}
            for _, message in reader.poll(timeout_s=0.2, max_records=RECORDS_AT_ONCE):
                newest[message.partition(), message.key() or b""] = message.value()
            for number in partitions:
                _apply(histories[number], number, newest, names)
    return histories


def _apply(
    histories: dict[str, bytes],
    partition: int,
    records: Mapping[tuple[int, bytes], bytes | None],
    names: Names,
) -> None:
    """Take the records of a partition into its histories; no user has two among them."""
    written = []
    for (number, key), value in records.items():
        if number != partition:
            continue
        if value is None:
            histories.pop(key.decode(), None)
        else:
            written.append(value)
    if written:
        try:
            users, packed = decode_histories(written, names)
        except msgspec.DecodeError as error:
            raise ConfigError(
                f"partition {partition} of {HISTORIES.name} holds what this version cannot read: {error}; if another "
                "version wrote it, set another FRESHET_KAFKA__TOPIC_PREFIX, or delete and re-create that topic"
            ) from error
        histories.update(zip(users, packed, strict=True))


def _recent_ids(
    settings: KafkaSettings,
    next_offsets: Mapping[int, int],
    watches: WatchSettings,
    deadline: Deadline,
) -> dict[int, RecentIds]:
    """Return the events before each offset, from the records themselves, as far as they are kept."""
    intake = WatchIntake(future_slack_ms=round(watches.future_slack_s * 1000))
    found = {number: RecentIds(watches.duplicates_window) for number in next_offsets}
    for number, recent in found.items():
        end = next_offsets[number]
        start = {(WATCHES.name, number): recent.begin_of(end)}
        with TopicReader(settings, [WATCHES], partitions=[number], start=start) as reader:
            while reader.next_offsets[WATCHES.name, number] < end:
                if deadline.expired():
                    raise TransientError(
                        f"the last records of {WATCHES.in_cluster(settings)} could not be read within "
                        f"{TIMEOUT_S} s; a smaller FRESHET_WATCHES__DUPLICATES_WINDOW needs fewer"
                    )
                polled = reader.poll(timeout_s=0.2, max_records=RECORDS_AT_ONCE)
                records = records_of([message for _, message in polled])
                accepted = intake.accept(records)
                rows = np.flatnonzero(accepted.is_watch_R & (records.offset_R < end))
                recent.take(records.offset_R[rows], accepted.fingerprint_R[rows])
    return found


def high_watermarks(
    settings: KafkaSettings, topic: Topic, partitions: Collection[int]
) -> dict[int, int]:
    """Return the end of each partition, records of transactions that are not settled yet included."""
    name = topic.in_cluster(settings)
    client = consumer(settings, overrides={"isolation.level": "read_uncommitted"})
    try:
        return {
            number: int(client.get_watermark_offsets(TopicPartition(name, number), timeout=30)[1])
            for number in partitions
        }
    finally:
        client.close()
