"""The freshness worker: from what the other processes announce to coverage, velocity, stage delays and model versions.

    loop          consumes              waits for                            produces
    one by topic  serving.impressions   dead letters and the snapshot file   dead letters
                  video.semantic_ids
                  video.servable
                  model.checkpoints
                  serving.swaps
    committed     video.uploads         nothing                              nothing
                  video.counts
                  training.shards
    show          the figures           the object store                     the figures for people

Exactly once in effect. A batch is (1) counted in memory, (2) saved to the snapshot together with its offsets, (3)
acknowledged. Killed before (2), it is read and counted again; after (2), it is read again and skipped. What the sealer
writes in transactions is not read by Faust, which would count the records of an aborted one too, but by a reader of
committed records that acknowledges nothing: it goes on from the offsets in the snapshot. What cannot come back: if the
snapshot is lost, the figures begin with the oldest records that the topics still hold. Prometheus counters start from
zero with the process, as they do everywhere; its gauges and the snapshot do not.

One process is enough, and a second one on the same folder is refused. Knows nothing of how figures come about
(`workers.freshness_figures`) and how they are counted and kept (`workers.freshness_counting`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

import faust
from confluent_kafka import KafkaException, Message

from infra import log, metrics
from infra.claim import claim
from infra.errors import TransientError
from infra.settings import KafkaSettings, Settings
from infra.storage import ObjectStore, write_atomically
from streams.client import TopicReader
from streams.topics import (
    CHECKPOINTS,
    COUNTS,
    DEAD_LETTERS,
    IMPRESSIONS,
    SEMANTIC_IDS,
    SERVABLE,
    SHARDS,
    SWAPS,
    UPLOADS,
    Topic,
)
from workers.faust_app import (
    LAG_EVERY_S,
    Publisher,
    create_faust_app,
    handle_batches,
    raw_topic,
    require_broker,
    run_app,
)
from workers.freshness_counting import SAVE_EVERY_S, FreshnessWorker, Read
from workers.freshness_rules import rules_of
from workers.freshness_snapshot import (
    LOCK_NAME,
    STATE_FILE,
    load_snapshot,
    topic_ids,
)

FOLLOWED = (IMPRESSIONS, SEMANTIC_IDS, SERVABLE, CHECKPOINTS, SWAPS)
COMMITTED = (UPLOADS, COUNTS, SHARDS)
BATCH_MAX = 10_000
SHOW_EVERY_S = 2.0
BATCH_WAIT_S = 1.0
POLL_S = 0.5
RETRY_S = 1.0
Partition = tuple[str, int]


def create_app(settings: Settings) -> faust.App:
    """Return the Faust app of the freshness worker, its figures restored and saved.

    Raises:
        ConfigError: Kafka's address or the topics are missing, or the arms of the experiment are no arms.
    """
    require_broker(settings.kafka)
    rules = rules_of(settings)
    path = settings.var_dir / STATE_FILE
    snapshot = load_snapshot(path, topic_ids(settings.kafka, FOLLOWED + COMMITTED), rules)
    app = create_faust_app(settings, snapshot.group)
    publisher = Publisher(app, settings.kafka, [DEAD_LETTERS[IMPRESSIONS.name]])
    worker = FreshnessWorker(snapshot, settings.var_dir, publisher)
    store = ObjectStore(settings.storage.root)
    write_atomically(path, snapshot.to_bytes())  # the group's name, before it commits anything
    for topic in FOLLOWED:
        _follow(app, settings, worker, topic)

    @app.task
    async def read_committed() -> None:
        await _read_committed(app, settings.kafka, worker)

    @app.timer(SAVE_EVERY_S)
    async def save() -> None:
        await worker.save()

    @app.timer(SHOW_EVERY_S)
    async def show() -> None:
        await worker.show(store)

    return app


def _follow(app: faust.App, settings: Settings, worker: FreshnessWorker, topic: Topic) -> None:
    async def count(events: list[Any]) -> None:
        await worker.count(topic, [_read(event.message) for event in events])

    @app.agent(raw_topic(app, settings.kafka, topic), name=f"count_{topic.name}")
    async def follow(stream: Any) -> None:
        await handle_batches(app, stream, count, size=BATCH_MAX, wait_s=BATCH_WAIT_S)


def _read(message: Any) -> Read:
    append_time_ms = round(message.timestamp * 1000)
    return Read(message.partition, message.offset, append_time_ms, message.key, message.value)


async def _read_committed(app: faust.App, kafka: KafkaSettings, worker: FreshnessWorker) -> None:
    """Count the committed records of the other topics until the app stops; a broker that is away is waited for."""
    try:
        while not app.should_stop:
            try:
                await _follow_reader(app, kafka, worker)
            except (KafkaException, TransientError) as error:
                log.get_logger().warning("topics_unreachable", error=str(error))
                await asyncio.sleep(RETRY_S)
    except Exception as error:  # noqa: BLE001 - the supervisor
        log.get_logger().exception("worker_crashed")
        await app.crash(error)


async def _follow_reader(app: faust.App, kafka: KafkaSettings, worker: FreshnessWorker) -> None:
    start, lag_shown = worker.next_offsets(COMMITTED), 0.0
    with await asyncio.to_thread(TopicReader, kafka, COMMITTED, start=start) as reader:
        while not app.should_stop:
            if time.monotonic() - lag_shown >= LAG_EVERY_S:
                _expose_lag(reader.next_offsets, await asyncio.to_thread(reader.end_offsets))
                lag_shown = time.monotonic()
            found = await asyncio.to_thread(reader.poll, timeout_s=POLL_S)
            for topic in COMMITTED:
                worker.count_committed(
                    topic, [_read_message(message) for of, message in found if of is topic]
                )


def _expose_lag(reached: Mapping[Partition, int], ends: Mapping[Partition, int]) -> None:
    """Say how many records are not counted; a transaction's closing marker is one until a record follows it."""
    for topic in COMMITTED:
        behind = sum(end - reached[at] for at, end in ends.items() if at[0] == topic.name)
        metrics.CONSUMER_LAG.labels(topic.name).set(max(0, behind))


def _read_message(message: Message) -> Read:
    return Read(
        message.partition(),
        message.offset(),
        message.timestamp()[1],
        message.key(),
        message.value(),
    )


def run(settings: Settings) -> None:
    """Run the freshness worker until SIGTERM or SIGINT; does not return.

    Raises:
        ConfigError: another one uses the same folder, Kafka's address or the topics are missing, or the arms of the
            experiment are no arms.
    """
    log.configure("freshness", level=settings.log.level, format=settings.log.format)
    with claim(settings.var_dir / LOCK_NAME, "freshness worker"):
        app = create_app(settings)
        metrics.expose(settings.metrics.host, settings.metrics.freshness_port)
        run_app(app)
