"""The freshness worker: from what the other processes announce to coverage, stage delays and model versions.

    loop          consumes              waits for                            produces
    one by topic  serving.impressions   dead letters and the snapshot file   dead letters
                  video.semantic_ids
                  video.servable
                  model.checkpoints
                  serving.swaps

Exactly once in effect. A batch is (1) counted in memory, (2) saved to the snapshot together with its offsets, (3)
acknowledged. Killed before (2), it is read and counted again; after (2), it is read again and skipped. What cannot come
back: if the snapshot is lost, the figures begin with the oldest records that the topics still hold. Prometheus counters
start from zero with the process, as they do everywhere; its gauges and the snapshot do not.

One process is enough, and a second one on the same folder is refused. Knows nothing of how figures come about
(`workers.freshness_figures`) and how they are kept (`workers.freshness_snapshot`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import faust
from pydantic import BaseModel

from infra import log, metrics
from infra.claim import claim
from infra.errors import DecodeError
from infra.settings import Settings
from infra.storage import ObjectStore, write_atomically
from streams.codec import dead_letter, decode
from streams.events import (
    CheckpointPromoted,
    ImpressionsShown,
    SemanticIdAssigned,
    SwapReported,
    VideoServable,
    to_json,
)
from streams.figures import write_figures
from streams.topics import (
    CHECKPOINTS,
    DEAD_LETTERS,
    IMPRESSIONS,
    SEMANTIC_IDS,
    SERVABLE,
    SWAPS,
    Topic,
)
from workers.faust_app import (
    Outgoing,
    Publisher,
    create_faust_app,
    handle_batches,
    raw_topic,
    require_broker,
    run_app,
)
from workers.freshness_snapshot import (
    FILE_NAME,
    LOCK_NAME,
    Snapshot,
    load_snapshot,
    topic_ids,
)

TOPICS = (IMPRESSIONS, SEMANTIC_IDS, SERVABLE, CHECKPOINTS, SWAPS)
BATCH_MAX = 5000
SHOW_EVERY_S = 2.0
BATCH_WAIT_S = 1.0  # each batch is a write of the snapshot


class _Kind(NamedTuple):
    model: type[BaseModel]
    add: Callable[[Any, int], object]
    """Takes the event and its append time."""


class FreshnessWorker:
    """What the loops do with a batch of Faust events."""

    def __init__(self, snapshot: Snapshot, path: Path, publisher: Publisher) -> None:
        """Take over a snapshot that is to be saved at `path`."""
        self._snapshot = snapshot
        self._figures = figures = snapshot.figures
        self._path = path
        self._publisher = publisher
        self._saving = asyncio.Lock()
        self._kinds = {
            IMPRESSIONS.name: _Kind(ImpressionsShown, lambda event, _: self._show(event)),
            SEMANTIC_IDS.name: _Kind(SemanticIdAssigned, figures.count_assigned),
            SERVABLE.name: _Kind(VideoServable, lambda event, _: figures.count_servable(event)),
            CHECKPOINTS.name: _Kind(
                CheckpointPromoted, lambda event, _: figures.count_promoted(event)
            ),
            SWAPS.name: _Kind(SwapReported, lambda event, _: figures.count_swap(event)),
        }
        self._expose()

    async def count(self, topic: Topic, events: list[Any]) -> None:
        """Add a batch of one topic to the figures.

        Delivery: 1. its dead letters are durable before 2. the figures are, in one file with the offsets they include.
        Killed before 2, the next process does both again; killed after it, it skips what is in the file.
        """
        usable, letters = self._decode(topic, events)
        await self._publisher.publish(letters)  # Step 1
        for event, record in usable:
            self._add(topic, event.message, record)
        self._expose()
        async with self._saving:
            content = self._snapshot.to_bytes()  # of one moment: nothing else runs meanwhile
            await asyncio.to_thread(write_atomically, self._path, content)  # Step 2

    async def show(self, store: ObjectStore) -> None:
        """Put the figures where the endpoint reads them; a store that does not take them is tried again later."""
        figures = self._snapshot.report()
        try:
            await asyncio.to_thread(write_figures, store, figures)
        except Exception as error:  # noqa: BLE001 - each kind of store has its own, and counting goes on
            log.get_logger().warning("figures_not_shown", error=str(error))

    def _decode(
        self, topic: Topic, events: list[Any]
    ) -> tuple[list[tuple[Any, BaseModel]], list[Outgoing]]:
        usable, letters = [], []
        for event in events:
            if topic is SEMANTIC_IDS and event.value is None:
                continue  # a removal delays nothing
            try:
                usable.append((event, decode(self._kinds[topic.name].model, event.value)))
            except DecodeError as error:
                letters += _refused(topic, event, error)
        return usable, letters

    def _add(self, topic: Topic, message: Any, record: BaseModel) -> None:
        if not self._snapshot.advance(topic, message.partition, message.offset):
            return
        append_time_ms = round(message.timestamp * 1000)
        self._kinds[topic.name].add(record, append_time_ms)
        metrics.RECORDS.labels(topic.name, "counted").inc()

    def _show(self, event: ImpressionsShown) -> None:
        self._figures.count_impressions(event)
        for item in event.items:
            metrics.IMPRESSIONS.labels(event.arm, event.surface, str(item.new).lower()).inc()

    def _expose(self) -> None:
        """Set all gauges: also after a restart, before anything new comes.

        Delays only as quantiles of all so far: histograms of them are with the process in which each stage ends.
        """
        for arm, surfaces in self._figures.shown.items():
            for surface, shown in surfaces.items():
                metrics.COVERAGE.labels(arm, surface).set(shown.coverage() or 0.0)
        for stage, histogram in self._figures.delays.items():
            for share in (0.5, 0.99):
                if (seconds := histogram.quantile_s(share)) is not None:
                    metrics.DELAY_QUANTILE.labels(stage, str(share)).set(seconds)
        for name, model in self._figures.models.items():
            if (version := model.serving_version()) is not None:
                metrics.MODEL_VERSION.labels(name).set(version)


def _refused(topic: Topic, event: Any, error: DecodeError) -> list[Outgoing]:
    """Count and log a record; its dead letter is ours to write only where nobody else reads the topic."""
    message = event.message
    metrics.RECORDS.labels(topic.name, "refused").inc()
    log.get_logger().warning(
        "record_refused",
        topic=topic.name,
        partition=message.partition,
        offset=message.offset,
        reason=error.reason,
    )
    if topic is not IMPRESSIONS:
        return []
    metrics.DEAD_LETTERS.labels(topic.name, error.reason).inc()
    letter = dead_letter(
        topic.name, message.partition, message.offset, message.key, message.value, error
    )
    return [Outgoing(DEAD_LETTERS[topic.name], message.key, to_json(letter))]


def create_app(settings: Settings) -> faust.App:
    """Return the Faust app of the freshness worker, its figures restored and saved.

    Raises:
        ConfigError: Kafka's address or the topics are missing.
    """
    require_broker(settings.kafka)
    path = settings.var_dir / FILE_NAME
    snapshot = load_snapshot(path, topic_ids(settings.kafka, TOPICS))
    app = create_faust_app(settings, snapshot.group)
    publisher = Publisher(app, settings.kafka, [DEAD_LETTERS[IMPRESSIONS.name]])
    worker = FreshnessWorker(snapshot, path, publisher)
    store = ObjectStore(settings.storage.root)
    write_atomically(path, snapshot.to_bytes())  # the group's name, before it commits anything
    for topic in TOPICS:
        _follow(app, settings, worker, topic)

    @app.timer(SHOW_EVERY_S)
    async def show() -> None:
        await worker.show(store)

    return app


def _follow(app: faust.App, settings: Settings, worker: FreshnessWorker, topic: Topic) -> None:
    async def count(events: list[Any]) -> None:
        await worker.count(topic, events)

    @app.agent(raw_topic(app, settings.kafka, topic), name=f"count_{topic.name}")
    async def follow(stream: Any) -> None:
        await handle_batches(app, stream, count, size=BATCH_MAX, wait_s=BATCH_WAIT_S)


def run(settings: Settings) -> None:
    """Run the freshness worker until SIGTERM or SIGINT; does not return.

    Raises:
        ConfigError: another one uses the same folder, or Kafka's address or the topics are missing.
    """
    log.configure("freshness", level=settings.log.level, format=settings.log.format)
    with claim(settings.var_dir / LOCK_NAME, "freshness worker"):
        app = create_app(settings)
        metrics.expose(settings.metrics.host, settings.metrics.freshness_port)
        run_app(app)
