"""What the sealer knows between two commits: positions, histories, and the shard being filled; knows nothing of Kafka.

Every record handed in becomes one of four: a watch in a row, a counted duplicate, a dead letter, or erased.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from infra.errors import DecodeError
from infra.settings import WatchSettings
from streams.codec import dead_letter
from streams.events import DeadLetter, OffsetRange, UserErased
from streams.history import Entry, History, encode_history, percent_watched
from streams.shards import NewWatch, PastWatch, ShardRow
from streams.topics import WATCHES
from streams.watches import UserFeatures, Watch, decode_watch
from streams.watermark import Watermark
from workers.video_labels import VideoLabel

UNLABELLED = VideoLabel(None, None)
_NO_FEATURES = UserFeatures()


class Restored(NamedTuple):
    """Where a partition goes on, and its users' histories and newest event time as of then."""

    next_offset: int
    histories: dict[str, History]
    newest_event_time_ms: int = 0


class _New(NamedTuple):
    """A new watch; sorts by event time, then by offset, which is unique within a partition."""

    event_time_ms: int
    offset: int
    append_time_ms: int
    watch: Watch
    late: bool


@dataclass(slots=True)
class _OpenUser:
    history: History
    before: list[Entry]
    new: list[_New] = field(default_factory=list)
    erased: bool = False


@dataclass(slots=True)
class _Partition:
    first_offset: int
    next_offset: int
    histories: dict[str, History]
    watermark: Watermark
    users: dict[str, _OpenUser] = field(default_factory=dict)


class ShardBuilder:
    """Takes records in, gives a shard out.

    Attributes:
        records: all records taken in since the last shard: `watches`, `duplicates`, `dead_letters` and `erased` add
            up to it.
        late: of the watches, those behind their partition's watermark.
        num_bytes: raw bytes of their values.
        started: monotonic time of the first of them, None while there is none.
    """

    def __init__(self, partitions: Mapping[int, Restored], *, settings: WatchSettings) -> None:
        self._history_length = settings.history_length
        self._future_slack_ms = round(settings.future_slack_s * 1000)
        lateness_ms = round(settings.lateness_s * 1000)
        self._partitions = {
            number: _Partition(
                found.next_offset,
                found.next_offset,
                found.histories,
                Watermark(lateness_ms=lateness_ms, newest_ms=found.newest_event_time_ms),
            )
            for number, found in partitions.items()
        }
        self._clear()

    def _clear(self) -> None:
        self.records = self.watches = self.duplicates = self.empty_offsets = self.num_bytes = 0
        self.erased = self.late = 0
        self.dead_letters: list[tuple[bytes | None, DeadLetter]] = []
        self.started: float | None = None
        self.append_times_ms: tuple[int, int] = (0, 0)

    def add(
        self,
        partition: int,
        offset: int,
        key: bytes | None,
        value: bytes | None,
        append_time_ms: int,
    ) -> None:
        """Take in the next record of a partition."""
        part = self._partitions[partition]
        assert offset >= part.next_offset, f"{partition=} {offset=} expected {part.next_offset}"
        self.empty_offsets += offset - part.next_offset
        part.next_offset = offset + 1
        self._count(value, append_time_ms)
        try:
            event = decode_watch(value)
            self._check(event, key, append_time_ms)
        except DecodeError as error:
            refused = dead_letter(WATCHES.name, partition, offset, key, value, error)
            self.dead_letters.append((key, refused))
            return
        if isinstance(event, UserErased):
            self._erase(part, event.user_id)
        else:
            self._add_watch(part, offset, append_time_ms, event)

    def _add_watch(self, part: _Partition, offset: int, append_time_ms: int, watch: Watch) -> None:
        user = part.users.get(watch.user_id)
        if user is None:
            user = part.users[watch.user_id] = _open(part.histories, watch.user_id)
        if not user.history.add(watch, length=self._history_length):
            self.duplicates += 1
            return
        late = part.watermark.observe(watch.event_time_ms, append_time_ms)
        self.watches += 1
        self.late += late
        user.new.append(_New(watch.event_time_ms, offset, append_time_ms, watch, late))

    def _erase(self, part: _Partition, user_id: str) -> None:
        """Forget a user and what this shard has of them; what comes after is a new user's."""
        user = part.users.get(user_id)
        dropped = user.new if user is not None else []
        self.watches -= len(dropped)
        self.late -= sum(new.late for new in dropped)
        self.erased += 1 + len(dropped)
        history = part.histories[user_id] = History()
        part.users[user_id] = _OpenUser(history, [], erased=True)

    def _count(self, value: bytes | None, append_time_ms: int) -> None:
        if self.started is None:
            self.started = time.monotonic()
            self.append_times_ms = (append_time_ms, append_time_ms)
        self.records += 1
        self.num_bytes += len(value) if value else 0
        first_ms, last_ms = self.append_times_ms
        if append_time_ms > last_ms:
            self.append_times_ms = (first_ms, append_time_ms)
        elif append_time_ms < first_ms:
            self.append_times_ms = (append_time_ms, last_ms)

    def _check(self, event: Watch | UserErased, key: bytes | None, append_time_ms: int) -> None:
        """Refuse what the contract of one event cannot see.

        "Now" is the append time, so that the verdict is the same when the record is read again.
        """
        if event.event_time_ms > append_time_ms + self._future_slack_ms:
            raise DecodeError(
                f"event_time_ms {event.event_time_ms} is more than {self._future_slack_ms} ms after "
                f"the record was appended, {append_time_ms}; is the player's clock right?",
                "event_time_in_future",
            )
        if key != event.user_id.encode():
            raise DecodeError(
                f"the record's key is {(key or b'')[:80]!r}, expected the user_id: a user's watches "
                "and history must share a partition",
                "key_is_not_user_id",
            )

    def ranges(self) -> tuple[OffsetRange, ...]:
        """Return what the shard covers, each range beginning where the one before it ended."""
        return tuple(
            OffsetRange(
                partition=number, first_offset=part.first_offset, last_offset=part.next_offset - 1
            )
            for number, part in sorted(self._partitions.items())
            if part.next_offset > part.first_offset
        )

    def next_offsets(self) -> dict[int, int]:
        """Return where each partition goes on after this shard."""
        return {number: part.next_offset for number, part in self._partitions.items()}

    def rows(self, videos: Mapping[str, VideoLabel], codebook_version: int) -> list[ShardRow]:
        """Return a row for every user with new watches."""
        return [
            _row(number, user_id, user, videos, codebook_version)
            for number, part in sorted(self._partitions.items())
            for user_id, user in part.users.items()
            if user.new
        ]

    def newest_event_times_ms(self) -> dict[int, int]:
        """Return each partition's newest event time, from which its watermark goes on."""
        return {number: part.watermark.newest_ms for number, part in self._partitions.items()}

    def updated_histories(self) -> Iterator[tuple[int, str, bytes | None]]:
        """Yield partition, user and history in bytes for every user with new watches; None for an erased one."""
        for number, part in self._partitions.items():
            for user_id, user in part.users.items():
                if user.new:
                    yield number, user_id, encode_history(user_id, user.history)
                elif user.erased:
                    yield number, user_id, None

    def new_watches(self) -> Iterator[Watch]:
        """Yield the watches that are in the rows."""
        for part in self._partitions.values():
            for user in part.users.values():
                yield from (new.watch for new in user.new)

    def watch_append_times_ms(self) -> Iterator[int]:
        """Yield when each new watch was appended."""
        for part in self._partitions.values():
            for user in part.users.values():
                yield from (new.append_time_ms for new in user.new)

    def skip_to(self, offsets: Mapping[int, int]) -> None:
        """Let the next shard begin there: what lies between is in none."""
        self.begin_next()
        for number, offset in offsets.items():
            part = self._partitions[number]
            part.first_offset = part.next_offset = max(offset, part.next_offset)

    def begin_next(self) -> None:
        """Start the shard after this one; positions and histories stay."""
        self._clear()
        for part in self._partitions.values():
            part.first_offset = part.next_offset
            for user_id, user in part.users.items():
                if user.erased and not user.new:
                    del part.histories[user_id]
            part.users.clear()


def _open(histories: dict[str, History], user_id: str) -> _OpenUser:
    history = histories.get(user_id)
    if history is None:
        history = histories[user_id] = History()
    return _OpenUser(history, list(history.entries))


def _row(
    partition: int,
    user_id: str,
    user: _OpenUser,
    videos: Mapping[str, VideoLabel],
    codebook_version: int,
) -> ShardRow:
    features = user.history.user or _NO_FEATURES
    user.new.sort()
    return ShardRow(
        user_id,
        features.region,
        features.age,
        features.gender,
        features.device,
        features.language,
        [_past(entry, videos) for entry in user.before],
        [_new(partition, new, videos) for new in user.new],
        codebook_version,
    )


def _past(entry: Entry, videos: Mapping[str, VideoLabel]) -> PastWatch:
    semantic_id, channel = videos.get(entry.video_id, UNLABELLED)
    return PastWatch(
        entry.video_id,
        semantic_id,
        channel,
        entry.percent,
        entry.watched_s,
        entry.event_time_ms,
        entry.surface,
        entry.context_video_id,
    )


def _new(partition: int, new: _New, videos: Mapping[str, VideoLabel]) -> NewWatch:
    watch = new.watch
    semantic_id, channel = videos.get(watch.video_id, UNLABELLED)
    return NewWatch(
        watch.video_id,
        semantic_id,
        channel,
        percent_watched(watch),
        watch.watched_s,
        watch.event_time_ms,
        watch.surface,
        watch.context_video_id,
        watch.event_id,
        partition,
        new.offset,
        watch.duration_s,
        watch.liked,
        watch.query,
        new.append_time_ms,
        new.late,
    )
