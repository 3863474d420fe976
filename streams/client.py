"""Kafka clients with the settings that matter for safety; knows nothing of what the records mean.

Every producer uses acks=all, idempotence and the murmur2 partitioner. Every consumer commits by hand and reads only
committed transactions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from pydantic import BaseModel

from infra.clock import Deadline
from infra.errors import TransientError
from infra.settings import KafkaSettings
from streams.events import to_json
from streams.topics import MAX_DEAD_LETTER_BYTES, Topic

LINGER_S = 0.02
"""How long a reader waits for the records behind the first: who follows a topic wakes up for a batch, not for each."""
PATIENCE_S, SILENCE_S, PROBE_TIMEOUT_S = 10.0, 60.0, 5.0
"""How long a client may fail, or hear nothing, before it is asked whether it is still one."""
_PASSING_ERRORS = {
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError._TRANSPORT,  # noqa: SLF001 - its public name
    KafkaError._ALL_BROKERS_DOWN,  # noqa: SLF001
    KafkaError._UNKNOWN_PARTITION,  # noqa: SLF001 - what a broker says that has just been started again
}


def client_config(settings: KafkaSettings) -> dict[str, Any]:
    """Return what all clients share: the address and how to authenticate."""
    config: dict[str, Any] = {
        "bootstrap.servers": settings.bootstrap_servers,
        "log_level": 3,  # errors; what passes by itself, such as a coordinator loading, is no news
    }
    if settings.security_protocol != "PLAINTEXT":
        config["security.protocol"] = settings.security_protocol
    if settings.ssl_ca_location:
        config["ssl.ca.location"] = settings.ssl_ca_location
    if settings.sasl_mechanism:
        config |= {
            "sasl.mechanism": settings.sasl_mechanism,
            "sasl.username": settings.sasl_username,
            "sasl.password": settings.sasl_password.get_secret_value(),
        }
    return config


def producer(settings: KafkaSettings, *, transactional_id: str | None = None) -> Producer:
    """Return an idempotent producer; a transactional one fences others with the same id."""
    config = client_config(settings) | {
        "enable.idempotence": True,
        "acks": "all",
        "partitioner": "murmur2_random",  # as Java clients and Faust choose partitions
        "compression.type": "lz4",
        "linger.ms": 5,
        "message.max.bytes": MAX_DEAD_LETTER_BYTES,
        "queue.buffering.max.messages": 200_000,
    }
    if transactional_id is not None:
        config["transactional.id"] = settings.topic_prefix + transactional_id
    return Producer(config)


def consumer(
    settings: KafkaSettings, *, group: str | None = None, overrides: dict[str, Any] | None = None
) -> Consumer:
    """Return a consumer that reads committed records from the beginning and commits by hand.

    Without a group it is for `assign` only: a view that reads everything.
    """
    return Consumer(
        client_config(settings)
        | {
            "group.id": settings.topic_prefix + (group or "freshet-view"),
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "earliest",
            "isolation.level": "read_committed",
            "fetch.message.max.bytes": MAX_DEAD_LETTER_BYTES,
            "fetch.wait.max.ms": 50,
            "allow.auto.create.topics": False,
        }
        | (overrides or {})
    )


def send(
    client: Producer,
    settings: KafkaSettings,
    topic: Topic,
    key: str,
    event: BaseModel | None,
    *,
    partition: int = -1,
) -> None:
    """Queue an event, or a tombstone for None, making room when the queue is full.

    A partition of -1 follows from the key.

    Delivery: nothing is durable before `flush` returns; a crash before that loses what is queued.
    Blocks: while the producer's queue is full.
    """
    value = None if event is None else to_json(event)
    while True:
        try:
            client.produce(
                topic.in_cluster(settings),
                key=key.encode(),
                value=value,
                partition=partition,
                on_delivery=_raise_failed,
            )
        except BufferError:
            client.poll(0.1)
        else:
            client.poll(0)
            return


def flush(client: Producer, timeout_s: float = 60) -> None:
    """Wait until everything queued is acknowledged.

    Raises:
        TransientError: some records are still unacknowledged after `timeout_s`.
    """
    left = client.flush(timeout_s)
    if left:
        raise TransientError(
            f"{left} records were not acknowledged within {timeout_s} s; is Kafka reachable?"
        )


def _raise_failed(error: KafkaError | None, message: Message) -> None:
    if error is not None:
        raise KafkaException(error)


class TopicReader:
    """Reads whole topics by assignment, outside any consumer group: for views, reports and tests.

    Delivery: each start reads from the given offsets again; nothing is ever committed.

    A broker that is out of breath for longer than its session, and is let in again, may tell clients for a moment that
    there are no brokers: librdkafka then forgets all addresses for good. A client that hears nothing or only errors is
    replaced.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        topics: Iterable[Topic],
        *,
        partitions: Collection[int] | None = None,
        start: dict[tuple[str, int], int] | None = None,
        from_end: bool = False,
    ) -> None:
        """Assign `partitions` (or all) of `topics`, at `start` where it names one, else at the beginning or the end.

        A start before the oldest record that is kept is there.
        """
        self._settings = settings
        self._consumer = self._connected()
        self._heard_s = time.monotonic()
        self._by_name = {topic.in_cluster(settings): topic for topic in topics}
        self._in_cluster = {topic.name: name for name, topic in self._by_name.items()}
        self.next_offsets: dict[tuple[str, int], int] = {}
        for topic in self._by_name.values():
            everything = range(topic.num_partitions(settings))
            for partition in everything if partitions is None else partitions:
                at = (topic.name, partition)
                low, high = self._watermarks(at)
                self.next_offsets[at] = max(low, (start or {}).get(at, high if from_end else low))
        self._assign()

    def _connected(self) -> Consumer:
        return consumer(self._settings, overrides={"enable.partition.eof": True})

    def _assign(self) -> None:
        """Go on from the next offsets."""
        self._consumer.assign(
            [
                TopicPartition(self._in_cluster[name], partition, offset)
                for (name, partition), offset in self.next_offsets.items()
            ]
        )

    def _reconnect(self) -> None:
        """Take another client, which goes on where this one is."""
        self._consumer.close()
        self._consumer = self._connected()
        self._assign()

    def _probe(self) -> None:
        """Replace the client if it cannot answer a question."""
        try:
            self._asked(next(iter(self.next_offsets)), timeout_s=PROBE_TIMEOUT_S)
        except KafkaException:
            self._reconnect()
        self._heard_s = time.monotonic()

    def poll(
        self, *, timeout_s: float = 0.1, max_records: int = 1000
    ) -> list[tuple[Topic, Message]]:
        """Return the next records, at most `max_records`, waiting up to `timeout_s` for the first.

        There may be none sooner than that: where a partition has just been read to its end.
        """
        found: list[tuple[Topic, Message]] = []
        if self.next_offsets and time.monotonic() - self._heard_s > SILENCE_S:
            self._probe()
        # Asked for more than one, it would wait for all of them.
        messages = self._consumer.consume(1, timeout_s)
        if messages:
            messages += self._consumer.consume(max_records - 1, min(timeout_s, LINGER_S))
        for message in messages:
            error = message.error()
            if error is not None and error.code() in _PASSING_ERRORS:
                continue
            if error is not None and error.code() != KafkaError._PARTITION_EOF:  # noqa: SLF001 - its public name
                raise KafkaException(error)
            topic = self._by_name[message.topic()]
            at = (topic.name, message.partition())
            if error is None:
                self.next_offsets[at] = message.offset() + 1
                found.append((topic, message))
                self._heard_s = time.monotonic()
            else:
                # A transaction's closing marker takes an offset that is never delivered; the end is behind it.
                self.next_offsets[at] = max(self.next_offsets[at], message.offset())
        return found

    def _asked(self, at: tuple[str, int], *, timeout_s: float) -> tuple[int, int]:
        """Return the oldest offset and the one after the newest committed record, asked once."""
        name, partition = at
        return self._consumer.get_watermark_offsets(
            TopicPartition(self._in_cluster[name], partition), timeout=timeout_s
        )

    def end_offsets(self) -> dict[tuple[str, int], int]:
        """Return the offset after the newest committed record of each partition."""
        return {at: self._watermarks(at)[1] for at in self.next_offsets}

    def _watermarks(self, at: tuple[str, int]) -> tuple[int, int]:
        """Return the same as `_asked`, asked for up to half a minute.

        A partition that was just created, or whose broker restarts, has no leader for a moment.
        """
        deadline, patience = Deadline(30), Deadline(PATIENCE_S)
        while True:
            try:
                return self._asked(at, timeout_s=30)
            except KafkaException as error:
                if error.args[0].code() not in _PASSING_ERRORS or deadline.expired():
                    raise
            time.sleep(0.05)
            if patience.expired():
                self._reconnect()
                patience = Deadline(PATIENCE_S)

    def read_to_end(self, *, timeout_s: float = 120) -> Iterator[tuple[Topic, Message]]:
        """Yield everything up to the offsets that are the end right now.

        What a transaction wrote comes into view a moment after its commit returned. Who must not miss its own
        earlier ones calls `init_transactions` first: that waits until they are complete.

        Raises:
            TransientError: the end was not reached within `timeout_s`.
        """
        ends = self.end_offsets()
        deadline = Deadline(timeout_s)
        while not self._reached(ends):
            if deadline.expired():
                raise TransientError(
                    f"the end of {sorted(self._by_name)} was not reached in {timeout_s} s"
                )
            yield from self.poll(timeout_s=0.2)

    def _reached(self, ends: dict[tuple[str, int], int]) -> bool:
        return all(self.next_offsets[at] >= end for at, end in ends.items())

    def close(self) -> None:
        """Leave the brokers."""
        self._consumer.close()

    def __enter__(self) -> TopicReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def wait_until(
    condition: Callable[[], bool], *, timeout_s: float, what: str, interval_s: float = 0.1
) -> None:
    """Poll until `condition` holds.

    Raises:
        TransientError: it did not within `timeout_s`.
    """
    deadline = Deadline(timeout_s)
    while not condition():
        if deadline.expired():
            raise TransientError(f"{what} did not happen within {timeout_s} s")
        time.sleep(interval_s)
