"""The uploads worker: `video.uploads` -> codes -> disambiguation code -> `video.semantic_ids`, in three loops.

    loop       consumes           waits for                          produces
    featurize  video.uploads      decoded media, ONNX (one thread)   video.codes; removals to video.assignments
    allocate   video.codes        its own records being durable      video.allocations, video.assignments
    settle     video.assignments  a transaction on each partition    video.semantic_ids

Three loops, as each is about another key: a video's content, the codes it shares with others, and the video again. All
videos with the same codes meet in one partition of `video.codes`, whichever worker computed them; all that is said of
one video meets in one partition of `video.assignments`, whichever way it took. All run in one process and one consumer
group; more processes share the partitions. What is refused goes to the dead letters of `video.uploads`.

Knows nothing of what the loops do with a record.
"""

from __future__ import annotations

from typing import Any

import faust
from threadpoolctl import threadpool_limits

from infra import log, metrics
from infra.settings import Settings
from infra.storage import ObjectStore
from models.codebook import published_versions
from streams.topics import ALLOCATIONS, ASSIGNMENTS, CODES, DEAD_LETTERS, UPLOADS, Topic
from workers.allocating import AllocateLoop
from workers.allocation_log import AllocationLog
from workers.decoders import MediaDecoders
from workers.faust_app import (
    Publisher,
    create_faust_app,
    handle_batches,
    raw_topic,
    require_broker,
    run_app,
)
from workers.featurize import load_featurizer
from workers.featurizing import FeaturizeLoop
from workers.in_order import handle_each
from workers.loop_lag import observe_lag
from workers.settling import SettleLoop

GROUP = "freshet-uploads"
# Uploads that may wait, for their media or for those before them: some MB of events, and seconds of work.
IN_FLIGHT_MAX = 2048
BATCH_MAX = 256
# These two have no fixed cost worth sharing out: take what is there, and do not wait for more.
BATCH_WAIT_S = 0.002


def create_app(settings: Settings) -> faust.App:
    """Return the Faust app of the uploads worker, its codebook and encoders loaded.

    Raises:
        ConfigError: Kafka's address or the codebook is missing.
        VersionMismatchError: codebook and encoders do not fit, or are not what was published.
    """
    require_broker(settings.kafka)
    kafka = settings.kafka
    app = create_faust_app(settings, GROUP)
    outputs = (CODES, ALLOCATIONS, ASSIGNMENTS, DEAD_LETTERS[UPLOADS.name])
    publisher = Publisher(app, kafka, outputs)
    featurizer = load_featurizer(settings)
    decoders = MediaDecoders(settings.uploads, frame_size=featurizer.frame_size)
    featurizing = FeaturizeLoop(
        settings.uploads,
        featurizer,
        decoders,
        publisher,
        codebook_versions=published_versions(ObjectStore(settings.storage.root)),
    )
    capacity = featurizer.codebook.disambiguation_size
    allocating = AllocateLoop(AllocationLog(kafka, disambiguation_size=capacity), publisher)
    settling = SettleLoop(kafka, publisher)

    @app.agent(raw_topic(app, kafka, UPLOADS), name="featurize")
    async def featurize(stream: Any) -> None:
        await handle_each(app, stream, featurizing.handle, in_flight=IN_FLIGHT_MAX)

    @app.agent(raw_topic(app, kafka, CODES), name="allocate")
    async def allocate(stream: Any) -> None:
        await handle_batches(app, stream, allocating.handle, size=BATCH_MAX, wait_s=BATCH_WAIT_S)

    @app.agent(raw_topic(app, kafka, ASSIGNMENTS), name="settle")
    async def settle(stream: Any) -> None:
        await handle_batches(app, stream, settling.handle, size=BATCH_MAX, wait_s=BATCH_WAIT_S)

    def partitions_of(topic: Topic, those: set[Any]) -> set[int]:
        return {at.partition for at in those if at.topic == topic.in_cluster(kafka)}

    @app.on_partitions_revoked.connect
    async def on_revoked(_app: faust.App, revoked: set[Any], **_: Any) -> None:
        await settling.on_revoked(partitions_of(ASSIGNMENTS, revoked))

    @app.on_partitions_assigned.connect
    async def on_assigned(_app: faust.App, assigned: set[Any], **_: Any) -> None:
        await settling.on_assigned(partitions_of(ASSIGNMENTS, assigned))
        log.get_logger().info("partitions_assigned", partitions=len(assigned))

    @app.task
    async def watch_loop_lag() -> None:
        await observe_lag(metrics.LOOP_LAG)

    @app.on_before_shutdown.connect
    async def on_shutdown(_app: faust.App, **_: Any) -> None:
        featurizing.close()

    return app


def run(settings: Settings) -> None:
    """Run the uploads worker until SIGTERM or SIGINT; does not return."""
    log.configure("uploads", level=settings.log.level, format=settings.log.format)
    # Its threads would wait for more work by spinning, after each of our small products.
    threadpool_limits(1, user_api="blas")
    metrics.expose(settings.metrics.host, settings.metrics.uploads_port)
    run_app(create_app(settings))
