"""How far each video has come, and when: what `GET /v1/videos/{id}` tells beyond the catalogue.

A view of `video.uploads` and its dead letters, `video.servable`, `serving.impressions`, `video.counts`,
`model.checkpoints` and the offsets of `video.semantic_ids`. It settles to one state however often records are read;
what those topics no longer hold, nobody knows. Of live videos all is kept, of those that were removed or refused the
last `MAX_ENDED`. Knows nothing of HTTP.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import msgspec

from infra.errors import DecodeError
from serve.follower import Record, refuse
from streams.codec import decode
from streams.events import CheckpointPromoted, ImpressionsShown, VideoCounts, VideoServable
from streams.topics import COUNTS, DEAD_LETTERS, IMPRESSIONS, SERVABLE, UPLOADS

MAX_PROMOTIONS = 1_000
MAX_ENDED = 100_000  # some 50 MB
FOLLOWED = (UPLOADS, DEAD_LETTERS[UPLOADS.name], SERVABLE, IMPRESSIONS, COUNTS)


class _Learned(NamedTuple):
    model_version: int
    promoted_time_ms: int
    next_offsets: Mapping[int, int]


class _Upload(msgspec.Struct):
    """Of a record of `video.uploads`, what is needed here; texts are skipped unread."""

    type: Literal["uploaded", "updated", "removed"]


class _Letter(msgspec.Struct):
    """Of a dead letter, where it came from and why."""

    topic: str
    reason: str


class _Uploads(NamedTuple):
    """Append times of the first and the last record of a video, and of its removal where that is the last."""

    first_ms: int
    last_ms: int
    removed_ms: int | None = None


class _Shown(NamedTuple):
    """A video's first impression."""

    append_time_ms: int
    model_version: int
    arm: str


_upload_in = msgspec.json.Decoder(_Upload).decode
_letter_in = msgspec.json.Decoder(_Letter).decode


@dataclass(frozen=True)
class Milestones:
    """When a video did what; UTC epoch milliseconds, None for what it has not done, or nobody knows."""

    upload_append_time_ms: int | None = None
    removed_time_ms: int | None = None
    refused_time_ms: int | None = None
    refused_reason: str | None = None
    servable_time_ms: int | None = None
    learned_time_ms: int | None = None
    learned_model_version: int | None = None
    first_shown_time_ms: int | None = None
    first_shown_model_version: int | None = None
    first_shown_arm: str | None = None
    first_watched_time_ms: int | None = None


class TraceView:
    """Remembers of each video the first time of everything."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._uploads: dict[str, _Uploads] = {}
        self._refused: dict[str, tuple[int, str]] = {}
        self._servable: dict[str, int] = {}
        self._shown: dict[str, _Shown] = {}
        self._watched: dict[str, int] = {}
        self._place: dict[str, tuple[int, int]] = {}
        self._gone: dict[str, int] = {}
        self._ended: dict[str, None] = {}  # removed or refused, the last one at the end
        self._promotions: deque[_Learned] = deque(maxlen=MAX_PROMOTIONS)
        self._takes: dict[str, Callable[[Record], None]] = {
            UPLOADS.name: self._take_upload,
            DEAD_LETTERS[UPLOADS.name].name: self._take_letter,
            SERVABLE.name: self._take_servable,
            IMPRESSIONS.name: self._take_shown,
            COUNTS.name: self._take_watched,
        }

    def of(self, video_id: str) -> Milestones:
        """Return what is known of a video."""
        with self._lock:
            uploads = self._uploads.get(video_id)
            learned = self._learned(self._place.get(video_id))
            shown_ms, shown_version, arm = self._shown.get(video_id, (None, None, None))
            refused_ms, reason = self._refused.get(video_id, (None, None))
            if refused_ms is not None and uploads is not None and refused_ms < uploads.last_ms:
                refused_ms = reason = None  # what came after it was not
            removed_ms, gone_ms = uploads.removed_ms if uploads else None, self._gone.get(video_id)
            if gone_ms is not None and uploads is not None and gone_ms < uploads.last_ms:
                gone_ms = None  # uploaded again since
            return Milestones(
                upload_append_time_ms=uploads.first_ms if uploads else None,
                removed_time_ms=removed_ms or gone_ms,
                refused_time_ms=refused_ms,
                refused_reason=reason,
                servable_time_ms=self._servable.get(video_id),
                learned_time_ms=learned.promoted_time_ms if learned else None,
                learned_model_version=learned.model_version if learned else None,
                first_shown_time_ms=shown_ms,
                first_shown_model_version=shown_version,
                first_shown_arm=arm,
                first_watched_time_ms=self._watched.get(video_id),
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
            self._gone.pop(video_id, None)

    def removed(self, video_id: str, removed_time_ms: int) -> None:
        """Forget all of a video but that it was removed."""
        with self._lock:
            self._gone[video_id] = removed_time_ms
            for held in (self._servable, self._shown, self._watched, self._place):
                held.pop(video_id, None)
            self._end(video_id)

    def _end(self, video_id: str) -> None:
        """Forget all of the one that ended the longest ago where there are too many, unless it is live again."""
        self._ended.pop(video_id, None)
        self._ended[video_id] = None
        if len(self._ended) <= MAX_ENDED:
            return
        oldest = next(iter(self._ended))
        del self._ended[oldest]
        if oldest in self._place:
            return
        for held in (
            self._uploads, self._refused, self._servable, self._shown, self._watched, self._gone,
        ):  # fmt: skip
            held.pop(oldest, None)

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
        """Take in a batch of the topics that are followed."""
        for record in records:
            try:
                self._takes[record.topic.name](record)
            except DecodeError as error:
                refuse(record, error)
            except msgspec.DecodeError as error:
                refuse(record, DecodeError(str(error), "invalid_event"))

    def _take_upload(self, record: Record) -> None:
        kind, video_id = _upload_in(record.value or b"").type, _key(record)
        at_ms = record.append_time_ms
        with self._lock:
            known = self._uploads.get(video_id)
            if kind == "removed":
                self._uploads[video_id] = _Uploads(known.first_ms if known else at_ms, at_ms, at_ms)
                self._end(video_id)
            elif known is None or (known.removed_ms is not None and kind == "uploaded"):
                self._uploads[video_id] = _Uploads(at_ms, at_ms)
            else:
                self._uploads[video_id] = _Uploads(known.first_ms, at_ms)

    def _take_letter(self, record: Record) -> None:
        letter = _letter_in(record.value or b"")
        if letter.topic != UPLOADS.name:
            return  # its key is that of its codes
        with self._lock:
            self._refused[_key(record)] = (record.append_time_ms, letter.reason)
            self._end(_key(record))

    def _take_servable(self, record: Record) -> None:
        said = decode(VideoServable, record.value)
        with self._lock:
            first = self._servable.get(said.video_id, said.servable_time_ms)
            self._servable[said.video_id] = min(first, said.servable_time_ms)

    def _take_shown(self, record: Record) -> None:
        shown = decode(ImpressionsShown, record.value)
        now = _Shown(record.append_time_ms, shown.model_version, shown.arm)
        with self._lock:
            for item in shown.items:
                self._shown[item.video_id] = min(self._shown.get(item.video_id, now), now)

    def _take_watched(self, record: Record) -> None:
        at_ms = record.append_time_ms
        if self._watched.get(_key(record), at_ms + 1) <= at_ms:
            return  # most are no first ones, and need not be decoded
        counts = decode(VideoCounts, record.value)
        if counts.views > 0:
            with self._lock:
                first_ms = self._watched.get(counts.video_id, at_ms)
                self._watched[counts.video_id] = min(first_ms, at_ms)


def _key(record: Record) -> str:
    return (record.key or b"").decode(errors="replace")
