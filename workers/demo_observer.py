"""Watches a running system from outside, by its topics alone, and remembers when everything happened.

All delays are between broker append times, or between those and the wall clock of who did it; none is computed from a
setting. Knows nothing of the processes.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field

from confluent_kafka import Message

from infra.settings import KafkaSettings
from streams.client import TopicReader
from streams.codec import decode, decode_upload
from streams.events import (
    LRM_MODEL_NAME,
    CheckpointPromoted,
    ImpressionsShown,
    SemanticIdAssigned,
    ShardSealed,
    SwapReported,
    VideoServable,
    VideoUploaded,
)
from streams.topics import (
    CHECKPOINTS,
    DEAD_LETTERS,
    IMPRESSIONS,
    SEMANTIC_IDS,
    SERVABLE,
    SHARDS,
    SWAPS,
    UPLOADS,
    WATCHES,
    Topic,
)

OBSERVED = (UPLOADS, WATCHES, SEMANTIC_IDS, SERVABLE, SHARDS, CHECKPOINTS, SWAPS, IMPRESSIONS)
Offset = tuple[int, int]  # partition, offset


@dataclass
class Observations:
    """What was seen; times are UTC epoch ms.

    Attributes:
        uploads: append time and event of each upload or update.
        watches: append time of each watch.
        assigned: (append time, event), in the order of the log's append times.
        first_servable: video_id to when a replica first could recommend it.
        shards, checkpoints: (append time, event); checkpoints and swaps of the LRM, other models' are passed over.
        swaps: reports of all replicas.
        impressions: what each answer showed.
        dead_letters: how many records were refused.
    """

    uploads: dict[Offset, tuple[int, VideoUploaded]] = field(default_factory=dict)
    watches: dict[Offset, int] = field(default_factory=dict)
    assigned: list[tuple[int, SemanticIdAssigned]] = field(default_factory=list)
    first_servable: dict[str, VideoServable] = field(default_factory=dict)
    shards: list[tuple[int, ShardSealed]] = field(default_factory=list)
    checkpoints: list[tuple[int, CheckpointPromoted]] = field(default_factory=list)
    swaps: list[SwapReported] = field(default_factory=list)
    impressions: list[ImpressionsShown] = field(default_factory=list)
    dead_letters: int = 0

    def take(self, topic: Topic, message: Message) -> None:
        """Take in one record."""
        at, append_time = (message.partition(), message.offset()), message.timestamp()[1]
        value = message.value()
        if topic is WATCHES:
            self.watches[at] = append_time
        elif topic is UPLOADS:
            event = decode_upload(value)
            if isinstance(event, VideoUploaded):
                self.uploads[at] = (append_time, event)
        elif topic is SEMANTIC_IDS and value is not None:
            self.assigned.append((append_time, decode(SemanticIdAssigned, value)))
        elif topic is SERVABLE:
            servable = decode(VideoServable, value)
            self.first_servable.setdefault(servable.video_id, servable)
        elif topic is SHARDS:
            self.shards.append((append_time, decode(ShardSealed, value)))
        elif topic is CHECKPOINTS:
            promoted = decode(CheckpointPromoted, value)
            if promoted.model_name == LRM_MODEL_NAME:
                self.checkpoints.append((append_time, promoted))
        elif topic is SWAPS:
            swap = decode(SwapReported, value)
            if swap.model_name == LRM_MODEL_NAME:
                self.swaps.append(swap)
        elif topic is IMPRESSIONS:
            self.impressions.append(decode(ImpressionsShown, value))
        elif topic.name.endswith("dead_letters"):
            self.dead_letters += 1

    def watches_in_shards(self) -> int:
        """Return how many watches the announced shards hold."""
        return sum(shard.watches for _, shard in list(self.shards))

    def uploads_without_sid(self) -> int:
        """Return how many uploads and updates have neither led to a semantic ID nor been refused."""
        newest: dict[str, int] = {}
        for _, assigned in list(self.assigned):
            position = max(assigned.upload_position, newest.get(assigned.video_id, -1))
            newest[assigned.video_id] = position
        waiting = sum(
            newest.get(event.video_id, -1) < offset
            for (_, offset), (_, event) in list(self.uploads.items())
        )
        return waiting - self.dead_letters

    def upload_to_sid_s(self) -> list[float]:
        """Return the seconds from each upload's append to the append of the semantic ID made from it."""
        first: dict[tuple[str, int], int] = {}
        for append_time, assigned in list(self.assigned):
            first.setdefault((assigned.video_id, assigned.upload_position), append_time)
        return [
            (first[event.video_id, offset] - append_time) / 1000
            for (_, offset), (append_time, event) in list(self.uploads.items())
            if (event.video_id, offset) in first
        ]

    def upload_to_servable_s(self) -> list[float]:
        """Return the seconds from each new video's append until a replica could recommend it; edits do not count."""
        uploaded = {
            event.video_id for _, event in list(self.uploads.values()) if event.type == "uploaded"
        }
        return [
            (found.servable_time_ms - found.upload_append_time_ms) / 1000
            for found in list(self.first_servable.values())
            if found.video_id in uploaded
        ]

    def stage_times(self) -> Iterator[tuple[int, int, int, int]]:
        """Yield, for each watch that came all the way, when it was appended, sealed, learned and served."""
        learned = self._learned_in()
        served = self._served_at()
        by_partition: dict[int, list[tuple[int, int, str, int]]] = {}
        for sealed_at, shard in list(self.shards):
            for found in shard.ranges:
                by_partition.setdefault(found.partition, []).append(
                    (found.first_offset, found.last_offset, shard.shard_id, sealed_at)
                )
        for ranges in by_partition.values():
            ranges.sort()
        for (partition, offset), appended_at in list(self.watches.items()):
            ranges = by_partition.get(partition, [])
            place = bisect_right(ranges, offset, key=lambda each: each[0]) - 1
            if place < 0 or ranges[place][1] < offset:
                continue
            _, _, shard_id, sealed_at = ranges[place]
            version, learned_at = learned.get(shard_id, (0, 0))
            if version in served:
                yield appended_at, sealed_at, learned_at, served[version]

    def _learned_in(self) -> dict[str, tuple[int, int]]:
        """Return shard_id to (model_version, append time) of the checkpoint that learned from it."""
        return {
            shard_id: (checkpoint.model_version, append_time)
            for append_time, checkpoint in list(self.checkpoints)
            for shard_id in checkpoint.shard_ids
        }

    def _served_at(self) -> dict[int, int]:
        """Return, by model_version, when it or a later one was first served; a skipped one counts as the next."""
        swapped = sorted(
            (swap.swapped_time_ms, swap.model_version)
            for swap in self.swaps
            if swap.outcome == "succeeded"
        )
        return {
            checkpoint.model_version: time_ms
            for _, checkpoint in self.checkpoints
            for time_ms in [
                min(
                    (at for at, version in swapped if version >= checkpoint.model_version),
                    default=0,
                )
            ]
            if time_ms
        }


class Observer:
    """Follows the topics in a thread, from where they ended when it was made (semantic IDs: from the beginning)."""

    def __init__(self, settings: KafkaSettings) -> None:
        self.seen = Observations()
        topics = (*OBSERVED, *DEAD_LETTERS.values())
        with TopicReader(settings, topics, from_end=True) as ends:
            start = dict(ends.next_offsets)
        for at in list(start):
            if at[0] == SEMANTIC_IDS.name:
                start[at] = 0
        self.start = start
        self._reader = TopicReader(settings, topics, start=start)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="observer", daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        while not self._stopping.is_set():
            for topic, message in self._reader.poll(timeout_s=0.2):
                self.seen.take(topic, message)

    def stop(self) -> Observations:
        """Read what is still missing and return everything."""
        self._stopping.set()
        self._thread.join()
        for topic, message in self._reader.read_to_end():
            self.seen.take(topic, message)
        self._reader.close()
        self.seen.assigned.sort(key=lambda found: found[0])
        return self.seen
