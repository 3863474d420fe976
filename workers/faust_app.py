"""What every Faust worker of Freshet is made of: settings that lose nothing, raw topics, micro-batches, one supervisor.

Faust by default acknowledges what it did not finish: an agent that raises, a record that does not decode and a `take`
that is closed all commit records that nobody handled. So records stay bytes until our own code decodes them, streams
are iterated with `noack()`, a batch is acknowledged only when everything made of it is durable, and an error that is no
dead letter ends the process instead of the agent.

Knows nothing of what the records mean.
"""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import faust

from infra import metrics
from infra.clock import Deadline
from infra.errors import ConfigError
from infra.log import get_logger
from infra.settings import KafkaSettings, Settings
from streams.topics import MAX_DEAD_LETTER_BYTES, Topic

Handler = Callable[[list[Any]], Awaitable[None]]


@dataclass(frozen=True)
class Outgoing:
    """A record to be produced; a value of None is a tombstone, a partition of None follows from the key."""

    topic: Topic
    key: bytes | None
    value: bytes | None
    partition: int | None = None
    headers: Mapping[str, bytes] = field(default_factory=dict)


LAG_EVERY_S = 5.0
# Longer than a stop takes, shorter than an operator waits.
CRASH_S = 10.0
# As long as an upload in the encoders may take, and less than supervisors and rebalances wait.
IN_HAND_S = 15.0


class _App(faust.App):
    """An app that neither its crash nor slow records keep alive.

    Stopping can hang: the last commit of a worker that lost its membership while it was frozen waits for a group that
    it is not in. So can waiting for the records in hand, before a stop and in each rebalance: one may be waiting for
    media that do not come.
    """

    async def _consumer_wait_empty(self, consumer: Any, logger: Any) -> None:
        """Wait until the records in hand are acknowledged, `IN_HAND_S` at most; the others come again."""
        waiting = asyncio.ensure_future(super()._consumer_wait_empty(consumer, logger))
        _, slow = await asyncio.wait({waiting}, timeout=IN_HAND_S)
        if slow:  # cancelling it does nothing: Faust catches that and waits on
            consumer._unacked_messages.clear()  # noqa: SLF001 - no public way to give up
        await waiting

    async def crash(self, reason: BaseException) -> None:
        """Stop the app, and the process with status 1, within `CRASH_S`."""
        ending = threading.Timer(CRASH_S, os._exit, [1])
        ending.daemon = True
        ending.start()
        await super().crash(reason)


def create_faust_app(settings: Settings, name: str) -> faust.App:
    """Return an app whose consumer group is `name`, with delivery settings that the module's docstring asks for.

    Delivery: at least once. What is in hand at SIGTERM is finished and committed if that takes no longer than
    `IN_HAND_S`, else, and at SIGKILL, it is read again.
    """
    kafka = settings.kafka
    directory = settings.var_dir / "faust" / name
    directory.mkdir(parents=True, exist_ok=True)
    app = _App(
        kafka.topic_prefix + name,
        broker=[f"kafka://{server}" for server in kafka.bootstrap_servers.split(",")],
        broker_credentials=_credentials(kafka),
        broker_commit_interval=1.0,
        broker_max_poll_records=500,
        broker_session_timeout=10.0,  # a killed worker's partitions wait so long
        broker_heartbeat_interval=3.0,
        consumer_max_fetch_size=MAX_DEAD_LETTER_BYTES,
        producer_acks=-1,
        producer_compression_type="lz4",
        producer_max_request_size=MAX_DEAD_LETTER_BYTES,
        stream_buffer_maxsize=256,
        stream_wait_empty=True,
        topic_allow_declare=False,
        topic_disable_leader=True,
        topic_partitions=kafka.partitions,
        topic_replication_factor=kafka.replication,
        table_standby_replicas=0,
        processing_guarantee="at_least_once",
        web_enabled=False,
        worker_redirect_stdouts=False,
        datadir=str(directory),
    )

    @app.timer(LAG_EVERY_S)
    async def expose_lag() -> None:
        for topic, records in lag_records(
            app.monitor.tp_end_offsets, app.monitor.tp_committed_offsets, app.consumer.assignment()
        ).items():
            metrics.CONSUMER_LAG.labels(topic.removeprefix(kafka.topic_prefix)).set(records)

    return app


def lag_records(
    ends: Mapping[Any, int], committed: Mapping[Any, int], assigned: Iterable[Any]
) -> dict[str, int]:
    """Return how many records of each topic are not finished, of the partitions whose two offsets are known.

    The markers of transactions count: a topic that is written in transactions never comes down to 0.
    """
    lags: dict[str, int] = {}
    for partition in assigned:
        if partition in ends and partition in committed:
            behind = max(0, ends[partition] - committed[partition])
            lags[partition.topic] = lags.get(partition.topic, 0) + behind
    return lags


def _credentials(kafka: KafkaSettings) -> faust.types.auth.CredentialsT | None:
    encrypted = kafka.security_protocol in ("SSL", "SASL_SSL")
    context = (
        ssl.create_default_context(cafile=kafka.ssl_ca_location or None) if encrypted else None
    )
    if kafka.security_protocol.startswith("SASL"):
        return faust.SASLCredentials(
            username=kafka.sasl_username,
            password=kafka.sasl_password.get_secret_value(),
            mechanism=kafka.sasl_mechanism,
            ssl_context=context,
        )
    return None if context is None else faust.SSLCredentials(context)


def raw_topic(app: faust.App, kafka: KafkaSettings, topic: Topic) -> Any:
    """Return a Faust topic of bytes: typed ones commit and skip what they cannot decode."""
    return app.topic(
        topic.in_cluster(kafka),
        key_type=bytes,
        value_type=bytes,
        key_serializer="raw",
        value_serializer="raw",
        partitions=topic.num_partitions(kafka),
    )


class Publisher:
    """Produces raw records."""

    def __init__(self, app: faust.App, kafka: KafkaSettings, topics: Iterable[Topic]) -> None:
        self._topics = {topic.name: raw_topic(app, kafka, topic) for topic in topics}

    async def publish(self, records: Iterable[Outgoing]) -> None:
        """Produce the records and wait until the brokers have them all.

        Delivery: on return all are durable; a crash before that leaves any subset of them.
        """
        waiting = [
            await self._topics[record.topic.name].send(
                key=record.key,
                value=record.value,
                partition=record.partition,
                headers=dict(record.headers),
            )
            for record in records
        ]
        await asyncio.gather(*waiting)


async def handle_batches(
    app: faust.App, stream: Any, handle: Handler, *, size: int, wait_s: float
) -> None:
    """Feed a stream to `handle` in micro-batches, acknowledging each, in order, once `handle` returned.

    Delivery: a batch whose handling did not return is read again after a restart. This is the process's supervisor:
    whatever `handle` raises ends the process, for an agent that goes on would leave the batch behind.
    """
    try:
        async for batch in micro_batches(stream.noack().events(), size=size, wait_s=wait_s):
            await handle(batch)
            for event in batch:
                event.ack()
    except Exception as error:  # noqa: BLE001 - the supervisor
        get_logger().exception("worker_crashed")
        await app.crash(error)


async def micro_batches(
    events: AsyncIterator[Any], *, size: int, wait_s: float
) -> AsyncIterator[list[Any]]:
    """Yield lists of 1 to `size` events, each at most `wait_s` after its first event came.

    No call to the iterator is ever cancelled while it is used, as that would lose the event it was about to give.
    """
    following: asyncio.Task[Any] | None = None
    try:
        while True:
            following = following or asyncio.create_task(_next(events))
            batch = [await following]
            following = None
            deadline = Deadline(wait_s)
            while batch[-1] is not _END and len(batch) < size:
                following = asyncio.create_task(_next(events))
                done, _ = await asyncio.wait({following}, timeout=deadline.remaining_s())
                if not done:
                    break
                batch.append(following.result())
                following = None
            ended = batch[-1] is _END
            if kept := batch[:-1] if ended else batch:
                yield kept
            if ended:
                return
    finally:
        if following is not None:
            following.cancel()


_END = object()


async def _next(events: AsyncIterator[Any]) -> Any:
    return await anext(events, _END)


def run_app(app: faust.App) -> None:
    """Run the app until SIGTERM or SIGINT; does not return. Status 0 when stopped, 1 after a crash."""
    for chatty in ("faust", "mode", "aiokafka"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    faust.Worker(app, quiet=True, override_logging=False).execute_from_commandline()


def require_broker(kafka: KafkaSettings) -> None:
    """Refuse to start a worker that was not told where Kafka is.

    Raises:
        ConfigError: there is no address.
    """
    if not kafka.bootstrap_servers:
        raise ConfigError(
            "FRESHET_KAFKA__BOOTSTRAP_SERVERS is empty: a worker joins a running Kafka; "
            "set it, or let `freshet up` start one"
        )
