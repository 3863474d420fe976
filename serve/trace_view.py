"""How far each video has come, and when: what `GET /v1/videos/{id}` tells beyond the catalogue.

A view of `video.servable`, `serving.impressions`, `model.checkpoints` and the offsets of `video.semantic_ids`. It
settles to one state however often records are read; what those topics no longer hold, nobody knows. Knows nothing of
HTTP.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from infra.errors import DecodeError
from serve.follower import Record, refuse
from streams.codec import decode
from streams.events import CheckpointPromoted, ImpressionsShown, VideoServable
from streams.topics import SERVABLE

MAX_PROMOTIONS = 1_000


class _Learned(NamedTuple):
    model_version: int
    promoted_time_ms: int
    next_offsets: Mapping[int, int]


@dataclass(frozen=True)
class Milestones:
    """When a video did what; UTC epoch milliseconds, None for what it has not done, or nobody knows."""

    servable_time_ms: int | None = None
    learned_time_ms: int | None = None
    learned_model_version: int | None = None
    first_shown_time_ms: int | None = None
    first_shown_model_version: int | None = None


class TraceView:
    """Remembers of each video the first time of everything."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._servable: dict[str, int] = {}
        self._shown: dict[str, tuple[int, int]] = {}
        self._place: dict[str, tuple[int, int]] = {}
        self._promotions: deque[_Learned] = deque(maxlen=MAX_PROMOTIONS)

    def of(self, video_id: str) -> Milestones:
        """Return what is known of a video."""
        with self._lock:
            learned = self._learned(self._place.get(video_id))
            shown_ms, shown_version = self._shown.get(video_id, (None, None))
            return Milestones(
                servable_time_ms=self._servable.get(video_id),
                learned_time_ms=learned.promoted_time_ms if learned else None,
                learned_model_version=learned.model_version if learned else None,
                first_shown_time_ms=shown_ms,
                first_shown_model_version=shown_version,
            )

    def _learned(self, place: tuple[int, int] | None) -> _Learned | None:
        if place is None:
            return None
        partition, offset = place
        for promotion in self._promotions:
            if offset < promotion.next_offsets.get(partition, 0):
                return promotion
        return None

    def assigned(self, video_id: str, record: Record) -> None:
        """Hear where in `video.semantic_ids` a video's last record is; its text counts as learned from there on."""
        with self._lock:
            self._place[video_id] = (record.partition, record.offset)

    def removed(self, video_id: str) -> None:
        """Forget a video."""
        with self._lock:
            for held in (self._servable, self._shown, self._place):
                held.pop(video_id, None)

    def promoted(self, checkpoint: CheckpointPromoted) -> None:
        """Hear of an LRM; a pointer back to an older one tells nothing new."""
        with self._lock:
            known = max((one.model_version for one in self._promotions), default=-1)
            if checkpoint.model_version > known:
                self._promotions.append(
                    _Learned(
                        checkpoint.model_version,
                        checkpoint.promoted_time_ms,
                        checkpoint.next_semantic_id_offsets,
                    )
                )

    def take(self, records: Sequence[Record]) -> None:
        """Take in a batch of `video.servable` and `serving.impressions`."""
        for record in records:
            try:
                if record.topic is SERVABLE:
                    self._take_servable(decode(VideoServable, record.value))
                else:
                    self._take_shown(decode(ImpressionsShown, record.value), record.append_time_ms)
            except DecodeError as error:
                refuse(record, error)

    def _take_servable(self, said: VideoServable) -> None:
        with self._lock:
            first = self._servable.get(said.video_id, said.servable_time_ms)
            self._servable[said.video_id] = min(first, said.servable_time_ms)

    def _take_shown(self, shown: ImpressionsShown, append_time_ms: int) -> None:
        now = (append_time_ms, shown.model_version)
        with self._lock:
            for item in shown.items:
                self._shown[item.video_id] = min(self._shown.get(item.video_id, now), now)
