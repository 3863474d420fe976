"""The uploads worker: `video.uploads` -> codes -> `video.codes` -> disambiguation code -> `video.semantic_ids`.

    loop       consumes         waits for                          produces
    featurize  video.uploads    decoded media, ONNX (one thread)   video.codes; tombstones; dead letters
    allocate   video.codes      its own allocations being durable  video.allocations, then video.semantic_ids

Two loops, as the codes decide who may hand out the disambiguation code: all videos with the same codes meet in one
partition of `video.codes`, whichever worker computed them. Both run in one process and one consumer group; more
processes share the partitions.

Knows nothing of how content becomes codes (`workers.featurize`) and of what Faust needs (`workers.faust_app`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import faust

from infra import log, metrics
from infra.clock import now_ms
from infra.errors import DecodeError, TransientError
from infra.settings import Settings, UploadSettings
from models.encoders import Content
from models.onnx_quantizer import QuantizedBatch
from streams.codec import dead_letter, decode, decode_upload
from streams.codes import codes_key
from streams.events import CodesComputed, VideoRemoved, VideoUploaded, to_json
from streams.topics import ALLOCATIONS, CODES, DEAD_LETTERS, SEMANTIC_IDS, UPLOADS, Topic
from workers.allocation_log import AllocationLog, assignment, removal
from workers.faust_app import (
    Outgoing,
    Publisher,
    create_faust_app,
    handle_batches,
    raw_topic,
    require_broker,
    run_app,
)
from workers.featurize import Featurizer, codes_computed, content_of, load_featurizer

GROUP = "freshet-uploads"
ALLOCATE_BATCH_MAX = 256
# Allocation has no fixed cost to share out: take what is there, and do not wait for more.
ALLOCATE_WAIT_S = 0.002
FIRST_RETRY_S = 0.1  # doubled each time

T = TypeVar("T")


class UploadsWorker:
    """What both loops do with a batch of Faust events."""

    def __init__(
        self,
        settings: UploadSettings,
        featurizer: Featurizer,
        allocations: AllocationLog,
        publisher: Publisher,
    ) -> None:
        self._settings = settings
        self._featurizer = featurizer
        self._codebook = featurizer.codebook
        self._allocations = allocations
        self._publisher = publisher
        # One thread: the encoders use all cores by themselves, and the event loop stays free.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="featurize")

    async def featurize(self, events: list[Any]) -> None:
        """Turn uploads into codes, removals into tombstones, and the rest into dead letters.

        Delivery: effects are idempotent. Killed before `publish` returns, any of the records may be out, and all come
        again after a restart: the same codes for the same content, for which the allocator has the same answer.
        """
        outcomes = await asyncio.gather(*(self._content(event) for event in events))
        uploads = [
            (event, *outcome)
            for event, outcome in zip(events, outcomes, strict=True)
            if isinstance(outcome, tuple)
        ]
        outgoing = [outcome for outcome in outcomes if isinstance(outcome, Outgoing)]
        if uploads:
            contents = [content for _, _, content in uploads]
            results = await self._run(lambda: self._featurizer.featurize(contents))
            outgoing += [
                self._codes(event, upload, result)
                for (event, upload, _), result in zip(uploads, results, strict=True)
            ]
        await self._publisher.publish(outgoing)

    async def _content(self, event: Any) -> tuple[VideoUploaded, Content] | Outgoing:
        try:
            upload = decode_upload(event.value)
            if isinstance(upload, VideoRemoved):
                metrics.RECORDS.labels(UPLOADS.name, "removed").inc()
                return removal(
                    upload.video_id,
                    self._codebook.codebook_version,
                    position=event.message.offset,
                )
            return upload, await self._load(upload)
        except DecodeError as error:
            return _refused(UPLOADS, event, error)

    async def _load(self, upload: VideoUploaded) -> Content:
        """Return the upload's content, trying again for media that may still come.

        Raises:
            DecodeError: the media is bad, or (`media_unavailable`) did not come.
        """
        for retry in range(self._settings.media_retries + 1):
            if retry:
                await asyncio.sleep(FIRST_RETRY_S * 2 ** (retry - 1))
            try:
                return await self._run(lambda: content_of(upload, self._settings))
            except TransientError as error:
                last = error
        raise DecodeError(
            f"{last}, after {retry + 1} attempts; send the upload again once it is there",
            "media_unavailable",
        )

    def _codes(
        self, event: Any, upload: VideoUploaded, result: QuantizedBatch | DecodeError
    ) -> Outgoing:
        if isinstance(result, DecodeError):
            return _refused(UPLOADS, event, result)
        computed = codes_computed(
            upload,
            result,
            self._codebook,
            append_time_ms=round(event.message.timestamp * 1000),
            position=event.message.offset,
        )
        metrics.RECORDS.labels(UPLOADS.name, "coded").inc()
        key = codes_key(computed.codebook_version, computed.codes)
        return Outgoing(CODES, key.encode(), to_json(computed))

    async def allocate(self, events: list[Any]) -> None:
        """Give each coded video its semantic ID.

        Delivery: 1. allocations are durable before 2. any semantic ID is published. Killed between the two, the batch
        is read again and finds its allocations in the log; killed within the second, some semantic IDs are published
        twice, the same both times.
        """
        if missing := self._allocations.missing(event.message.partition for event in events):
            await self._run(lambda: self._allocations.restore(missing))
        stored: dict[bytes | None, Outgoing] = {}
        assigned: list[Outgoing] = []
        refused: list[Outgoing] = []
        computed_times: list[int] = []
        for event in events:
            try:
                computed = decode(CodesComputed, event.value)
                code, row = self._allocations.allocate(computed, event.message.partition)
            except DecodeError as error:
                refused.append(_refused(CODES, event, error))
                continue
            if row is not None:
                stored[row.key] = row  # the last row of a tuple holds all before it
            assigned.append(assignment(computed, code))
            computed_times.append(computed.upload_append_time_ms)
        await self._publisher.publish(stored.values())  # Step 1
        await self._publisher.publish([*assigned, *refused])  # Step 2
        _observe(computed_times)

    async def _run(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)


def _refused(topic: Topic, event: Any, error: DecodeError) -> Outgoing:
    message = event.message
    letter = dead_letter(
        topic.name, message.partition, message.offset, message.key, message.value, error
    )
    metrics.RECORDS.labels(topic.name, "refused").inc()
    metrics.DEAD_LETTERS.labels(topic.name, error.reason).inc()
    return Outgoing(DEAD_LETTERS[UPLOADS.name], message.key, to_json(letter))


def _observe(upload_append_times_ms: list[int]) -> None:
    now = now_ms()
    delay = metrics.STAGE_DELAY.labels("upload_to_sid")
    for append_time_ms in upload_append_times_ms:
        delay.observe(max(0, now - append_time_ms) / 1000)
    metrics.RECORDS.labels(SEMANTIC_IDS.name, "assigned").inc(len(upload_append_times_ms))
    metrics.LAST_SUCCESS.labels("upload_to_sid").set_to_current_time()


def create_app(settings: Settings) -> faust.App:
    """Return the Faust app of the uploads worker, its codebook and encoders loaded.

    Raises:
        ConfigError: Kafka's address or the codebook is missing.
        VersionMismatchError: codebook and encoders do not fit, or are not what was published.
    """
    require_broker(settings.kafka)
    app = create_faust_app(settings, GROUP)
    outputs = (CODES, ALLOCATIONS, SEMANTIC_IDS, DEAD_LETTERS[UPLOADS.name])
    publisher = Publisher(app, settings.kafka, outputs)
    featurizer = load_featurizer(settings)
    capacity = featurizer.codebook.disambiguation_size
    allocations = AllocationLog(settings.kafka, disambiguation_size=capacity)
    worker = UploadsWorker(settings.uploads, featurizer, allocations, publisher)
    limits = settings.uploads

    @app.agent(raw_topic(app, settings.kafka, UPLOADS), name="featurize")
    async def featurize(stream: Any) -> None:
        await handle_batches(
            app,
            stream,
            worker.featurize,
            size=limits.batch_max,
            wait_s=limits.batch_wait_ms / 1000,
        )

    @app.agent(raw_topic(app, settings.kafka, CODES), name="allocate")
    async def allocate(stream: Any) -> None:
        await handle_batches(
            app, stream, worker.allocate, size=ALLOCATE_BATCH_MAX, wait_s=ALLOCATE_WAIT_S
        )

    @app.on_partitions_revoked.connect
    async def on_revoked(_app: faust.App, revoked: set[Any], **_: Any) -> None:
        codes = CODES.in_cluster(settings.kafka)
        allocations.drop({at.partition for at in revoked if at.topic == codes})

    @app.on_partitions_assigned.connect
    async def on_assigned(_app: faust.App, assigned: set[Any], **_: Any) -> None:
        log.get_logger().info("partitions_assigned", partitions=len(assigned))

    return app


def run(settings: Settings) -> None:
    """Run the uploads worker until SIGTERM or SIGINT; does not return."""
    log.configure("uploads", level=settings.log.level, format=settings.log.format)
    metrics.expose(settings.metrics.host, settings.metrics.uploads_port)
    run_app(create_app(settings))
