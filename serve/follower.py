"""A thread that reads topics into a view for as long as the replica lives; knows nothing of what the records mean.

loop      consumes                  waits for                      produces
follower  the topics it is given    refresh_interval_s at most     calls of `take`, one per batch
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

from confluent_kafka import KafkaException, Message
from pydantic import BaseModel

from infra import metrics
from infra.errors import DecodeError, TransientError
from infra.log import get_logger
from infra.settings import KafkaSettings
from streams.client import TopicReader
from streams.codec import decode
from streams.topics import Topic

RETRY_S = 1.0
M = TypeVar("M", bound=BaseModel)
Offsets = Mapping[tuple[str, int], int]

log = get_logger()


class Record(NamedTuple):
    """A record as the views take it."""

    topic: Topic
    key: bytes | None
    value: bytes | None
    append_time_ms: int = 0
    partition: int = 0
    offset: int = 0


Take = Callable[[Sequence[Record]], None]


class Follower:
    """Reads from the beginning, or where `prepare` says, and then follows.

    A broker that cannot be reached is waited for; the view stays as it is meanwhile. Any other error ends the thread,
    and `alive` tells the replica's health check.

    Delivery: nothing is committed. A restart reads again; views settle to the same state.
    """

    def __init__(
        self,
        name: str,
        settings: KafkaSettings,
        topics: Sequence[Topic],
        take: Take,
        *,
        interval_s: float,
        prepare: Callable[[], Offsets] = dict,
    ) -> None:
        """Start following.

        Args:
            name: of the thread, and in logs.
            settings: where the topics are.
            topics: read together, in no order between them.
            take: called with each batch, also with an empty one, always by the same thread.
            interval_s: longest time between two batches.
            prepare: called by the thread before anything is read; returns offsets to start from.
        """
        self.caught_up = threading.Event()
        """Everything that was there at the start has been taken."""
        self._name, self._settings, self._topics, self._take = name, settings, topics, take
        self._interval_s, self._prepare = interval_s, prepare
        self._next_offsets: Offsets | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the view is still kept up to date."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """Have the thread end after what it has in hand."""
        self._stopping.set()

    def close(self, timeout_s: float = 5) -> None:
        """Stop following; a thread that waits for the broker ends with the process."""
        self.stop()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                if self._next_offsets is None:
                    self._next_offsets = self._prepare()
                start = dict(self._next_offsets)
                with TopicReader(self._settings, self._topics, start=start) as reader:
                    self._follow(reader)
            except (KafkaException, TransientError) as error:
                log.warning("topics_unreachable", view=self._name, error=str(error))
                self._stopping.wait(RETRY_S)

    def _follow(self, reader: TopicReader) -> None:
        ends = reader.end_offsets()
        while not self._stopping.is_set():
            found = reader.poll(timeout_s=self._interval_s)
            self._take([_record(topic, message) for topic, message in found])
            self._next_offsets = dict(reader.next_offsets)
            if not self.caught_up.is_set() and all(
                reader.next_offsets[at] >= end for at, end in ends.items()
            ):
                self.caught_up.set()
                log.info("view_caught_up", view=self._name)


def _record(topic: Topic, message: Message) -> Record:
    return Record(
        topic,
        message.key(),
        message.value(),
        message.timestamp()[1],
        message.partition(),
        message.offset(),
    )


def read_events(settings: KafkaSettings, topic: Topic, model: type[M]) -> Iterator[M]:
    """Yield every event of a topic up to its end right now; what is none is counted and left out."""
    with TopicReader(settings, [topic]) as reader:
        for _, message in reader.read_to_end():
            try:
                yield decode(model, message.value())
            except DecodeError as error:
                refuse(_record(topic, message), error)


def events_in(records: Sequence[Record], model: type[M]) -> list[M]:
    """Return the events of some records; tombstones are passed over, and what is no event is counted and left out."""
    events = []
    for record in records:
        if record.value is None:
            continue
        try:
            events.append(decode(model, record.value))
        except DecodeError as error:
            refuse(record, error)
    return events


def refuse(record: Record, error: DecodeError) -> None:
    """Count and log a record that a view cannot use; whoever owns the stream writes the dead letter."""
    metrics.RECORDS.labels(topic=record.topic.name, outcome="refused").inc()
    log.warning(
        "record_refused",
        topic=record.topic.name,
        partition=record.partition,
        offset=record.offset,
        reason=error.reason,
    )
