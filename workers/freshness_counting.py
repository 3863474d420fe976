"""What the freshness worker does with a batch of records: count it, save it, show it; knows nothing of Kafka clients.

All loops share one file and save together: whoever waits for a save is served by the next one that begins after its
batch was counted. Saves are a second apart, or ten times as long as one takes where there is much to write.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from pydantic import BaseModel

from infra import log, metrics
from infra.clock import now_ms
from infra.errors import DecodeError
from infra.storage import ObjectStore, write_atomically
from streams.arms import ARMS
from streams.codec import dead_letter, decode, decode_upload
from streams.events import (
    CheckpointPromoted,
    SemanticIdAssigned,
    ShardSealed,
    SwapReported,
    VideoCounts,
    VideoServable,
    to_json,
)
from streams.figures import write_figures
from streams.impressions import Shown, decode_shown
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
from workers.faust_app import Outgoing, Publisher
from workers.freshness_delays import OBSERVED_HERE, Delay
from workers.freshness_gauges import expose_report
from workers.freshness_snapshot import REPORT_FILE, STATE_FILE, Snapshot

Event = BaseModel | Shown
SAVE_EVERY_S = 1.0
OTHER_ARM = "other"
SAVING_SHARE = 0.1
"""Of the time, at most, is spent in making and writing the snapshot."""


class Read(NamedTuple):
    """A record of a topic, whoever read it."""

    partition: int
    offset: int
    append_time_ms: int
    key: bytes | None
    value: bytes | None


class _Kind(NamedTuple):
    decode: Callable[[bytes | None], Event]
    add: Callable[[Any, int], list[Delay]]
    """Takes the event and its append time."""


class FreshnessWorker:
    """Counts records into the figures of a snapshot, and keeps it."""

    def __init__(
        self,
        snapshot: Snapshot,
        folder: Path,
        publisher: Publisher,
        *,
        save_every_s: float = SAVE_EVERY_S,
    ) -> None:
        """Take over a snapshot that is to be saved in `folder`."""
        self._snapshot = snapshot
        self._folder = folder
        self._publisher = publisher
        self._save_every_s = save_every_s
        self._saving = asyncio.Lock()
        self._next_save_s = 0.0
        self._counted = self._saved = 0  # batches
        self._reported, self._report = -1, dict[str, Any]()
        self._kinds = self._find_kinds()
        self._make_report()  # gauges also after a restart, before anything new comes

    def _find_kinds(self) -> dict[str, _Kind]:
        figures = self._snapshot.figures
        return {
            UPLOADS.name: _Kind(decode_upload, figures.count_upload),
            IMPRESSIONS.name: _Kind(decode_shown, self._show),
            SEMANTIC_IDS.name: _Kind(_decoder(SemanticIdAssigned), figures.count_assigned),
            SERVABLE.name: _Kind(
                _decoder(VideoServable), lambda event, _: figures.count_servable(event)
            ),
            COUNTS.name: _Kind(_decoder(VideoCounts), figures.count_views),
            SHARDS.name: _Kind(_decoder(ShardSealed), figures.count_shard),
            CHECKPOINTS.name: _Kind(
                _decoder(CheckpointPromoted), lambda event, _: figures.count_promoted(event)
            ),
            SWAPS.name: _Kind(_decoder(SwapReported), lambda event, _: figures.count_swap(event)),
        }

    def next_offsets(self, topics: Iterable[Topic]) -> dict[tuple[str, int], int]:
        """Return from where on topics are to be read; a partition of which nothing was counted is left out."""
        return {
            (topic.name, partition): offset
            for topic in topics
            for partition, offset in self._snapshot.next_offsets.get(topic.name, {}).items()
        }

    async def count(self, topic: Topic, records: Sequence[Read]) -> None:
        """Add a batch of one topic to the figures.

        Delivery: 1. its dead letters are durable before 2. the figures are, in one file with the offsets they include.
        Killed before 2, the next process does both again; killed after it, it skips what is in the file.
        """
        events, letters = self._decode(topic, records)
        await self._publisher.publish(letters)  # Step 1
        self._add(topic, records, events)
        await self.save()  # Step 2

    def count_committed(self, topic: Topic, records: Sequence[Read]) -> None:
        """Add a batch of a topic that is read from the offsets in the snapshot, whatever was acknowledged.

        Delivery: a later `save` makes it durable. Killed before that, it is read and counted again.
        """
        if records:
            events, _ = self._decode(topic, records)
            self._add(topic, records, events)

    async def save(self) -> None:
        """Return when all that was counted before the call is in the file.

        Blocks: until the next save may begin, and for the writing.
        """
        counted = self._counted
        async with self._saving:
            if self._saved >= counted:
                return
            await asyncio.sleep(max(0.0, self._next_save_s - time.monotonic()))
            started_s, counted = time.monotonic(), self._counted
            content = self._snapshot.to_bytes()  # of one moment: nothing else runs meanwhile
            await asyncio.to_thread(write_atomically, self._folder / STATE_FILE, content)
            self._saved = counted
            took_s = time.monotonic() - started_s
            self._next_save_s = started_s + max(self._save_every_s, took_s / SAVING_SHARE)

    async def show(self, store: ObjectStore) -> None:
        """Put the figures where people and the endpoint read them.

        A store that does not take them is tried again at the next call.
        """
        if self._reported != self._counted:
            self._make_report()
        shown = {"written_time_ms": now_ms(), **self._report}
        await asyncio.to_thread(
            write_atomically, self._folder / REPORT_FILE, json.dumps(shown).encode()
        )
        try:
            await asyncio.to_thread(write_figures, store, shown)
        except Exception as error:  # noqa: BLE001 - each kind of store has its own, and counting goes on
            log.get_logger().warning("figures_not_shown", error=str(error))

    def _make_report(self) -> None:
        self._report, self._reported = self._snapshot.figures.report(), self._counted
        expose_report(self._report)

    def _decode(
        self, topic: Topic, records: Sequence[Read]
    ) -> tuple[list[Event | None], list[Outgoing]]:
        """Return an event for each record, None for one that says nothing, and the dead letters of those refused."""
        events: list[Event | None] = []
        letters: list[Outgoing] = []
        decode_value = self._kinds[topic.name].decode
        for record in records:
            event = None
            try:
                if (
                    record.value is not None or topic is not SEMANTIC_IDS
                ):  # a removal delays nothing
                    event = decode_value(record.value)
            except DecodeError as error:
                letters += _refused(topic, record, error)
            events.append(event)
        return events, letters

    def _add(self, topic: Topic, records: Sequence[Read], events: Sequence[Event | None]) -> None:
        add, counted = self._kinds[topic.name].add, 0
        for record, event in zip(records, events, strict=True):
            is_new = self._snapshot.advance(topic, record.partition, record.offset)
            if event is None or not is_new:
                continue
            counted += 1
            for delay in add(event, record.append_time_ms):
                if delay.stage in OBSERVED_HERE:
                    metrics.STAGE_DELAYS[delay.stage].observe(delay.seconds)
        metrics.RECORDS.labels(topic.name, "counted").inc(counted)
        self._counted += 1

    def _show(self, event: Shown, append_time_ms: int) -> list[Delay]:
        if (
            event.arm not in ARMS
        ):  # any text would be a series, and an entry of the report, of its own
            event = msgspec.structs.replace(event, arm=OTHER_ARM)
        new = sum(item.new for item in event.items)
        for is_new, count in (("true", new), ("false", len(event.items) - new)):
            if count:
                metrics.IMPRESSIONS.labels(event.arm, event.surface, is_new).inc(count)
        return self._snapshot.figures.count_impressions(event, append_time_ms)


def _decoder(model: type[BaseModel]) -> Callable[[bytes | None], BaseModel]:
    return lambda value: decode(model, value)


def _refused(topic: Topic, record: Read, error: DecodeError) -> list[Outgoing]:
    """Count and log a record; its dead letter is ours to write only where nobody else reads the topic."""
    metrics.RECORDS.labels(topic.name, "refused").inc()
    log.get_logger().warning(
        "record_refused",
        topic=topic.name,
        partition=record.partition,
        offset=record.offset,
        reason=error.reason,
    )
    if topic is not IMPRESSIONS:
        return []
    metrics.DEAD_LETTERS.labels(topic.name, error.reason).inc()
    letter = dead_letter(
        topic.name, record.partition, record.offset, record.key, record.value, error
    )
    return [Outgoing(DEAD_LETTERS[topic.name], record.key, to_json(letter))]
