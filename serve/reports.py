"""What a replica reports to Kafka, from a thread of its own: an answer never waits for it, nor fails because of it.

    loop      consumes               waits for       produces
    reports   its queue, bounded     the next one    serving.impressions, serving.swaps, video.servable

Delivery: a report is lost when the queue is full, when the broker does not take it in time, or when the process dies
with it in hand. The first two are counted.
"""

from __future__ import annotations

import queue
import threading
from typing import NamedTuple

from confluent_kafka import KafkaError, KafkaException, Message
from pydantic import BaseModel

from infra import metrics
from infra.log import get_logger
from infra.settings import KafkaSettings
from streams.client import producer
from streams.events import to_json
from streams.topics import IMPRESSIONS, Topic

QUEUE_MAX = 10_000
POLL_S = 0.2

log = get_logger()


class _Report(NamedTuple):
    topic: Topic
    key: str | None
    event: BaseModel


class Reports:
    """Takes events from any thread and produces them in the background."""

    def __init__(self, settings: KafkaSettings, *, queue_max: int = QUEUE_MAX) -> None:
        self._settings = settings
        self._client = producer(settings)
        self._queue: queue.Queue[_Report] = queue.Queue(queue_max)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reports", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether anything is still being produced."""
        return self._thread.is_alive()

    def add(self, topic: Topic, key: str | None, event: BaseModel) -> None:
        """Queue an event; returns at once, also when it is lost."""
        try:
            self._queue.put_nowait(_Report(topic, key, event))
        except queue.Full:
            _lose(topic, "the queue is full")

    def close(self, timeout_s: float = 5) -> None:
        """Produce what is queued, as far as `timeout_s` allows; the rest is lost and counted."""
        self._stopping.set()
        self._thread.join(timeout_s)
        self._client.flush(timeout_s)
        self._client.purge()
        self._client.flush(0)  # the purged ones report themselves as lost

    def _run(self) -> None:
        while not (self._stopping.is_set() and self._queue.empty()):
            try:
                self._produce(self._queue.get(timeout=POLL_S))
            except queue.Empty:
                self._client.poll(0)

    def _produce(self, report: _Report) -> None:
        topic = (
            report.topic
        )  # not the event, which would stay in memory until it is delivered or given up

        def on_delivery(error: KafkaError | None, message: Message) -> None:
            if error is not None:
                _lose(topic, str(error))

        try:
            self._client.produce(
                report.topic.in_cluster(self._settings),
                key=report.key,
                value=to_json(report.event),
                on_delivery=on_delivery,
            )
        except BufferError:
            _lose(topic, "the producer's queue is full")
        except (
            KafkaException
        ) as error:  # too long for a message, or the client is of no use any more
            _lose(topic, str(error))
            if error.args[0].fatal():
                self._client = producer(self._settings)
        self._client.poll(0)


def _lose(topic: Topic, reason: str) -> None:
    if topic is IMPRESSIONS:
        metrics.IMPRESSIONS_LOST.inc()
    else:
        log.warning("report_lost", topic=topic.name, reason=reason)
