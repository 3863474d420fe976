"""The catalogue worker: the one owner of the catalogue in Qdrant, which it keeps in step with the topic.

    loop        consumes              waits for                       produces
    follower    video.semantic_ids    Qdrant, where a server is named the catalogue in Qdrant
    endpoint    queries on loopback   the index, a batch at most      neighbours (only where no server is named)

Where no server is named, Qdrant runs inside this process, in memory: it is rebuilt from the topic whenever the process
starts, so there is no file that could be stale, locked or torn. Where one is named, whoever asks asks the server.

Delivery: nothing is committed. A start, and whatever went wrong, is followed by a rebuild, which ends in one state.
One process is enough, and a second one on the same folder is refused. Knows nothing of what is asked for neighbours.
"""

from __future__ import annotations

import threading
from contextlib import ExitStack

from confluent_kafka import KafkaException

from infra import log, metrics
from infra.claim import claim
from infra.errors import FreshetError, TransientError
from infra.settings import Settings
from infra.stopping import stop_on_signal
from streams.client import TopicReader
from streams.topics import SEMANTIC_IDS
from workers.catalogue_endpoint import endpoint_running
from workers.catalogue_index import CatalogueIndex

LOCK_NAME = "catalogue.lock"
POLL_S = 0.2
RETRY_S = 1.0
STOP_S = 5.0


class CatalogueFollower:
    """A thread that rebuilds an index and then follows the topic."""

    def __init__(self, index: CatalogueIndex, settings: Settings) -> None:
        """Start following."""
        self.rebuilt = threading.Event()
        """The index has held everything once."""
        self._index, self._settings = index, settings
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="catalogue", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the index is still kept in step."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Stop after the batch in hand; a rebuild in hand ends with the process."""
        self._stopping.set()
        self._thread.join(STOP_S)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                rebuilt = self._index.rebuild(self._settings)
                log.get_logger().info("catalogue_rebuilt", videos=rebuilt.videos)
                self.rebuilt.set()
                start = rebuilt.next_offsets
                with TopicReader(self._settings.kafka, [SEMANTIC_IDS], start=start) as reader:
                    self._follow(reader)
            except (KafkaException, TransientError) as error:
                log.get_logger().warning("catalogue_out_of_step", error=str(error))
                self._stopping.wait(RETRY_S)

    def _follow(self, reader: TopicReader) -> None:
        while not self._stopping.is_set():
            found = reader.poll(timeout_s=POLL_S)
            if found:
                self._index.apply((message.key(), message.value()) for _, message in found)
                metrics.RECORDS.labels(SEMANTIC_IDS.name, "indexed").inc(len(found))
            metrics.LAST_SUCCESS.labels("catalogue").set_to_current_time()


def run(settings: Settings) -> None:
    """Run the catalogue worker until SIGTERM or SIGINT.

    Raises:
        ConfigError: another one uses the same folder.
        FreshetError: its thread has died of an error that it did not expect.
    """
    log.configure("catalogue", level=settings.log.level, format=settings.log.format)
    stopping = stop_on_signal()
    with claim(settings.var_dir / LOCK_NAME, "catalogue worker"), ExitStack() as stack:
        metrics.expose(settings.metrics.host, settings.metrics.catalogue_port)
        index = CatalogueIndex(settings.qdrant)
        follower = CatalogueFollower(index, settings)
        stack.callback(follower.close)
        answering = bool(settings.qdrant.url)
        while not stopping.wait(POLL_S):
            if not follower.alive:
                raise FreshetError(
                    "the catalogue is no longer kept in step; the log above says why"
                )
            if not answering and follower.rebuilt.is_set():  # half an answer is worse than none
                url = stack.enter_context(endpoint_running(index, settings))
                log.get_logger().info("catalogue_answering", url=url.rpartition("/")[0])
                answering = True
