"""The one writer of a partition of `video.semantic_ids`; knows nothing of Faust and of who decides on ownership.

Who writes. Each partition has a transactional id of its own, so Kafka itself lets only the one who took it last write.
That one (1) fences any other writer and ends the transaction it left, (2) reads what the partition holds by then, to
which nobody else can add any more, and only then (3) decides and writes. So each decision is made on the whole of what
was written before it. A writer that was fenced finds out at its next write, of which nothing becomes visible.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from confluent_kafka import KafkaException, Message, Producer

from infra.clock import Deadline
from infra.errors import DecodeError, TransientError
from infra.log import get_logger
from infra.settings import KafkaSettings
from streams.catalogue import position_header, upload_position
from streams.client import TopicReader, producer
from streams.topics import SEMANTIC_IDS
from workers.sealing import settle as until_settled

TRANSACTION_RECORDS_MAX = 5_000
RETRY_BUDGET_S = 30.0
RESTORE_TIMEOUT_S = 600.0
"""At 10 MB/s, as little as a busy machine reads, 6 GB of assignments."""


class Settlement(NamedTuple):
    """A record as it goes into `video.semantic_ids`, and which upload it answers."""

    key: bytes
    value: bytes | None
    """None removes the video."""
    position: int
    """Below 0 for what is older than any upload in Kafka."""
    upload_append_time_ms: int = 0


class NewestPositions:
    """The newest upload that was settled, by key, in about 120 bytes each.

    Keys are held as 96 bits of their hash: two videos with the same would settle as if they were one, at 10^8 videos in
    a partition with a chance of 1 in 10^13.
    """

    def __init__(self) -> None:
        self._newest: dict[bytes, int] = {}

    def advance(self, key: bytes, position: int) -> bool:
        """Take note of an upload; return False, and do nothing, where a newer one was settled."""
        at = hashlib.blake2b(key, digest_size=12).digest()
        if position < self._newest.get(at, position):
            return False
        self._newest[at] = position
        return True

    def newer(self, wanted: Iterable[Settlement]) -> list[Settlement]:
        """Return what is to be written, in order: all but what some settlement before it has overtaken."""
        return [each for each in wanted if self.advance(each.key, each.position)]


class PartitionSettler:
    """`CLOSED -> open -> WRITER -> close -> CLOSED`; what was read stays, and is added to by the next `open`.

    Methods may be called by several threads; one runs at a time.
    """

    def __init__(self, kafka: KafkaSettings, partition: int) -> None:
        self._kafka = kafka
        self._partition = partition
        self._newest = NewestPositions()
        self._read_to: dict[tuple[str, int], int] = {}
        self._producer: Producer | None = None
        self._running = threading.RLock()

    def open(self) -> Producer:
        """Become the partition's writer, if this is not yet it, and know everything it holds.

        Blocks: until the former writer's transaction has ended and the partition was read.

        Raises:
            KafkaException: the brokers refuse it.
            TransientError: the brokers do not answer.
        """
        with self._running:
            if self._producer is None:
                client = producer(self._kafka, transactional_id=f"freshet-settle-{self._partition}")
                until_settled(client.init_transactions)  # Step 1
                self._catch_up()  # Step 2
                self._producer = client
            return self._producer

    def _catch_up(self) -> None:
        with TopicReader(
            self._kafka, [SEMANTIC_IDS], partitions=[self._partition], start=self._read_to
        ) as reader:
            for _, message in reader.read_to_end(timeout_s=RESTORE_TIMEOUT_S):
                self._newest.advance(message.key(), _position(message))
            self._read_to = dict(reader.next_offsets)

    def settle(self, wanted: Sequence[Settlement]) -> list[Settlement]:
        """Write what is no older than what was written of its key, in order; return that.

        Delivery: on return it is committed. Killed before that, the last `TRANSACTION_RECORDS_MAX` are as a whole
        visible or not.
        Blocks: for a transaction, some milliseconds to some tens; the first time also for `open`.

        Raises:
            TransientError: another writer has taken the partition, or the brokers refused the records for
                `RETRY_BUDGET_S`.
        """
        with self._running:
            client = self.open()
            newer = self._newest.newer(wanted)  # Step 3
            for start in range(0, len(newer), TRANSACTION_RECORDS_MAX):
                self._write(client, newer[start : start + TRANSACTION_RECORDS_MAX])
            return newer

    def _write(self, client: Producer, records: Sequence[Settlement]) -> None:
        deadline = Deadline(RETRY_BUDGET_S)
        while True:
            try:
                client.begin_transaction()
                for record in records:
                    self._produce(client, record)
                until_settled(client.commit_transaction)
            except KafkaException as error:
                failure = error.args[0]
                if not failure.txn_requires_abort() or deadline.expired():
                    raise TransientError(
                        f"partition {self._partition} of {SEMANTIC_IDS.in_cluster(self._kafka)} cannot be written: "
                        f"{failure}; another process may have taken it over"
                    ) from error
                get_logger().warning("transaction_aborted", error=str(failure))
                until_settled(client.abort_transaction)
            else:
                return

    def _produce(self, client: Producer, record: Settlement) -> None:
        while True:
            try:
                client.produce(
                    SEMANTIC_IDS.in_cluster(self._kafka),
                    key=record.key,
                    value=record.value,
                    partition=self._partition,
                    headers=position_header(record.position),
                )
            except BufferError:
                client.poll(0.1)
            else:
                return

    def close(self) -> None:
        """Leave the partition to others; no transaction is open between calls."""
        with self._running:
            self._producer = (
                None  # the client ends with its last reference, a fenced one without complaint
            )


def _position(message: Message) -> int:
    """Return which upload a written record answers; what does not say is older than any."""
    try:
        position = upload_position(message.headers())
    except DecodeError:
        position = None
    return -1 if position is None else position
