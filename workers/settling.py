"""The settle loop: assignments and removals in any order -> `video.semantic_ids` in the order of the uploads.

    loop    consumes           waits for                           produces
    settle  video.assignments  a transaction on each partition     video.semantic_ids; dead letters

The two topics have the same keys and partitions, and who owns a partition of the one is the only writer of the same
partition of the other (`PartitionSettler`). Knows nothing of where assignments come from and of Faust.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from infra import metrics
from infra.clock import now_ms
from infra.errors import DecodeError
from infra.settings import KafkaSettings
from streams.catalogue import (
    parse_semantic_id_key,
    position_header,
    semantic_id_key,
    upload_position,
)
from streams.codec import decode
from streams.events import SemanticIdAssigned
from streams.topics import ASSIGNMENTS, SEMANTIC_IDS
from workers.faust_app import Outgoing, Publisher
from workers.partition_settler import PartitionSettler, Settlement
from workers.refusing import refused

THREADS_MAX = 8  # they wait for brokers


def retirement(video_id: str, codebook_versions: Iterable[int], *, position: int) -> list[Outgoing]:
    """Return the records that remove a video under each codebook_version, to be settled."""
    return [
        Outgoing(
            ASSIGNMENTS,
            semantic_id_key(video_id, version).encode(),
            None,
            headers=position_header(position),
        )
        for version in codebook_versions
    ]


class SettleLoop:
    """What is made of each record of `video.assignments`."""

    def __init__(self, kafka: KafkaSettings, publisher: Publisher) -> None:
        """Own nothing yet; `publisher` is for dead letters."""
        self._kafka = kafka
        self._publisher = publisher
        self._settlers: dict[int, PartitionSettler] = {}
        self._owned: set[int] = set()
        self._threads = ThreadPoolExecutor(THREADS_MAX, thread_name_prefix="settle")

    async def handle(self, events: list[Any]) -> None:
        """Publish what is no older than what is known of its video.

        Delivery: on return everything is committed. Killed before that, each partition's part is or is not, as a whole,
        and the batch comes again: what was committed then is published a second time, in the same order.

        Raises:
            TransientError: another process writes one of the partitions; this one must end.
        """
        wanted: dict[int, list[Settlement]] = defaultdict(list)
        letters = []
        for event in events:
            try:
                wanted[event.message.partition].append(_settlement(event))
            except DecodeError as error:
                letters.append(refused(ASSIGNMENTS, event, error))
        await self._publisher.publish(letters)
        await asyncio.gather(*(self._settle(at, each) for at, each in wanted.items()))

    async def on_assigned(self, partitions: Iterable[int]) -> None:
        """Become the writer of some partitions, in the background: no rebalance waits for it.

        What goes wrong is raised by `handle`, which does what was not done.
        """
        for partition in partitions:
            self._owned.add(partition)
            self._threads.submit(self._open, self._settler(partition), partition)

    async def on_revoked(self, partitions: Iterable[int]) -> None:
        """Stop being their writer, and remember what was known, to go on from there should they come back."""
        loop = asyncio.get_running_loop()
        revoked = set(partitions)
        self._owned -= revoked
        closing = [self._settlers[each].close for each in revoked & self._settlers.keys()]
        await asyncio.gather(*(loop.run_in_executor(self._threads, close) for close in closing))

    def _open(self, settler: PartitionSettler, partition: int) -> None:
        if partition in self._owned:  # it may have been revoked before its turn came
            settler.open()

    async def _settle(self, partition: int, wanted: Sequence[Settlement]) -> None:
        settler = self._settler(partition)
        loop = asyncio.get_running_loop()
        settled = await loop.run_in_executor(self._threads, settler.settle, wanted)
        _observe(settled, stale=len(wanted) - len(settled))

    def _settler(self, partition: int) -> PartitionSettler:
        if partition not in self._settlers:
            self._settlers[partition] = PartitionSettler(self._kafka, partition)
        return self._settlers[partition]


def _settlement(event: Any) -> Settlement:
    key, value = event.message.key, event.value
    parse_semantic_id_key(key)
    if value is not None:
        assigned = decode(SemanticIdAssigned, value)
        return Settlement(key, value, assigned.upload_position, assigned.upload_append_time_ms)
    position = upload_position(event.headers.items())
    if position is None:
        raise DecodeError("the removal does not say which upload it answers", "no_position")
    return Settlement(key, None, position)


def _observe(settled: Iterable[Settlement], *, stale: int) -> None:
    now, delay = now_ms(), metrics.STAGE_DELAYS["upload_to_sid"]
    for each in settled:
        if each.value is None:
            metrics.RECORDS.labels(SEMANTIC_IDS.name, "removed").inc()
            continue
        metrics.RECORDS.labels(SEMANTIC_IDS.name, "assigned").inc()
        delay.observe(max(0, now - each.upload_append_time_ms) / 1000)
        metrics.LAST_SUCCESS.labels("upload_to_sid").set_to_current_time()
    metrics.RECORDS.labels(SEMANTIC_IDS.name, "stale").inc(stale)
