"""What the sealer knows between two commits: positions, histories, and the shard being filled; knows nothing of Kafka.

Every record handed in becomes one of four: a watch in a row, a counted duplicate, a dead letter, or erased. What is
done once per record is here and is little; the rest is done once per shard, by columns: `workers.shard_contents`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from infra.errors import DecodeError
from infra.settings import WatchSettings
from streams.codec import dead_letter
from streams.events import DeadLetter, OffsetRange, UserErased
from streams.packed_history import Names, Numbered, encode_histories
from streams.recent_ids import RecentIds
from streams.topics import WATCHES
from streams.watches import UserFeatures, Watch, decode_watch
from streams.watermark import Watermark
from workers.shard_contents import PartitionWatches, ShardContents, shard_contents
from workers.video_labels import VideoLabel
from workers.watch_table import WATCHES_AT_ONCE, column, watch_table


class Restored(NamedTuple):
    """Where a partition goes on, and its users' packed histories, newest event time and recent ids as of then."""

    next_offset: int
    histories: dict[str, bytes]
    newest_event_time_ms: int = 0
    recent: RecentIds | None = None


@dataclass(slots=True)
class _Partition:
    first_offset: int
    next_offset: int
    histories: dict[str, bytes]
    watermark: Watermark
    recent: RecentIds
    users: Numbered[str] = field(default_factory=Numbered)
    features: dict[int, UserFeatures] = field(default_factory=dict)
    erased: dict[str, int] = field(default_factory=dict)
    """Who was erased in this shard, and how many watches the partition had before."""
    tables: list[pa.Table] = field(default_factory=list)
    watches: list[Watch] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    append_times_ms: list[int] = field(default_factory=list)

    def clear(self) -> None:
        self.first_offset = self.next_offset
        self.users = Numbered()
        for pending in (
            self.features, self.erased, self.tables, self.watches, self.offsets, self.append_times_ms,
        ):  # fmt: skip
            pending.clear()


class ShardBuilder:
    """Takes records in, gives a shard out.

    Attributes:
        records: all records taken in since the last shard: `watches`, `duplicates`, `dead_letters` and `erased` add
            up to it.
        num_bytes: raw bytes of their values.
        started: monotonic time of the first of them, None while there is none.
    """

    def __init__(
        self, partitions: Mapping[int, Restored], *, names: Names, settings: WatchSettings
    ) -> None:
        """Go on where each partition was restored; `names` are those of the restored histories."""
        self._names = names
        self._history_length = settings.history_length
        self._counts_window_s = settings.counts_window_s
        self._future_slack_ms = round(settings.future_slack_s * 1000)
        lateness_ms = round(settings.lateness_s * 1000)
        self._partitions = {
            number: _Partition(
                found.next_offset,
                found.next_offset,
                found.histories,
                Watermark(lateness_ms=lateness_ms, newest_ms=found.newest_event_time_ms),
                found.recent or RecentIds(settings.duplicates_window),
            )
            for number, found in partitions.items()
        }
        self._clear()

    def _clear(self) -> None:
        self.records = self.watches = self.duplicates = self.empty_offsets = self.num_bytes = 0
        self.erased = 0
        self.dead_letters: list[tuple[bytes | None, DeadLetter]] = []
        self.started: float | None = None
        self.append_times_ms: tuple[int, int] = (0, 0)
        self._arms: Numbered[str] = Numbered()
        self._contents: ShardContents | None = None

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
        if offset != part.next_offset:
            assert offset > part.next_offset, f"{partition=} {offset=} expected {part.next_offset}"
            self.empty_offsets += offset - part.next_offset
        part.next_offset = offset + 1
        self._count(value, append_time_ms)
        try:
            event = accepted(key, value, append_time_ms, future_slack_ms=self._future_slack_ms)
        except DecodeError as error:
            refused = dead_letter(WATCHES.name, partition, offset, key, value, error)
            self.dead_letters.append((key, refused))
            return
        if isinstance(event, UserErased):
            self._erase(part, event.user_id)
        elif part.recent.take(offset, event.event_id):
            self.duplicates += 1
        else:
            self.watches += 1
            part.watches.append(event)
            part.offsets.append(offset)
            part.append_times_ms.append(append_time_ms)
            if len(part.watches) >= WATCHES_AT_ONCE:
                self._to_columns(part)

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

    def _to_columns(self, part: _Partition) -> None:
        if not part.watches:
            return
        users = [part.users[watch.user_id] for watch in part.watches]
        part.features.update(
            (user, watch.user)
            for user, watch in zip(users, part.watches, strict=True)
            if watch.user is not None
        )
        table = watch_table(
            part.watches, users, part.offsets, part.append_times_ms, self._names, self._arms
        )
        late = part.watermark.observe(
            column(table, "event_time_ms"), column(table, "append_time_ms")
        )
        part.tables.append(table.append_column("late", pa.array(late)))
        for pending in (part.watches, part.offsets, part.append_times_ms):
            pending.clear()

    def _erase(self, part: _Partition, user_id: str) -> None:
        """Forget a user and what this shard has of them; what comes after is a new user's."""
        self._to_columns(part)
        user, before = part.users[user_id], part.erased.get(user_id, 0)
        at, dropped = 0, 0
        for table in part.tables:
            of_user = np.flatnonzero(column(table, "user") == user) + at
            dropped += int(np.count_nonzero(of_user >= before))
            at += len(table)
        self.watches -= dropped
        self.erased += 1 + dropped
        part.erased[user_id] = at
        part.features.pop(user, None)
        part.histories.pop(user_id, None)

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

    def newest_event_times_ms(self) -> dict[int, int]:
        """Return each partition's newest event time, from which its watermark goes on."""
        for part in self._partitions.values():
            self._to_columns(part)
        return {number: part.watermark.newest_ms for number, part in self._partitions.items()}

    def contents(self, videos: Mapping[str, VideoLabel], codebook_version: int) -> ShardContents:
        """Return the shard: a row for every user with new watches, and what they become part of."""
        for part in self._partitions.values():
            self._to_columns(part)
        taken = {
            number: PartitionWatches(
                part.users.things, part.features, part.erased, part.histories, part.tables
            )
            for number, part in sorted(self._partitions.items())
        }
        self._contents = shard_contents(
            taken,
            self._names,
            videos,
            codebook_version,
            ranges=self.ranges(),
            history_length=self._history_length,
        )
        return self._contents

    def updated_histories(self) -> Iterator[tuple[int, str, bytes | None]]:
        """Yield partition, user and history in bytes for every user of the contents; None for an erased one."""
        assert self._contents is not None, "ask for the contents first"
        for number, histories in self._contents.histories.items():
            users = list(histories)
            encoded = encode_histories(users, list(histories.values()), self._names)
            for user_id, value in zip(users, encoded, strict=True):
                yield number, user_id, value
            for user_id in self._partitions[number].erased.keys() - histories.keys():
                yield number, user_id, None

    def watch_append_times_ms(self) -> npt.NDArray[np.int64]:
        """Return when each watch of the contents was appended."""
        assert self._contents is not None, "ask for the contents first"
        return self._contents.append_times_ms

    def counts(self) -> Iterator[tuple[str, bytes]]:
        """Yield video_id and counts in bytes of the watches that are in the contents."""
        assert self._contents is not None, "ask for the contents first"
        return self._contents.counts(
            self._names.videos.things, self._arms.things, window_s=self._counts_window_s
        )

    def skip_to(self, offsets: Mapping[int, int]) -> None:
        """Let the next shard begin there: what lies between is in none."""
        self.begin_next()
        for number, offset in offsets.items():
            part = self._partitions[number]
            part.first_offset = part.next_offset = max(offset, part.next_offset)

    def begin_next(self) -> None:
        """Start the shard after this one; positions and histories stay."""
        found = self._contents or self.contents({}, 0)
        for number, histories in found.histories.items():
            self._partitions[number].histories.update(histories)
        for part in self._partitions.values():
            part.clear()
        self._clear()


def accepted(
    key: bytes | None, value: bytes | None, append_time_ms: int, *, future_slack_ms: int
) -> Watch | UserErased:
    """Return the event of a record of `watch.events`.

    "Now" is the append time, so that the verdict is the same when the record is read again.

    Raises:
        DecodeError: it is none, or breaks a rule that the contract of one event cannot see.
    """
    event = decode_watch(value)
    if event.event_time_ms > append_time_ms + future_slack_ms:
        raise DecodeError(
            f"event_time_ms {event.event_time_ms} is more than {future_slack_ms} ms after "
            f"the record was appended, {append_time_ms}; is the player's clock right?",
            "event_time_in_future",
        )
    if key != event.user_id.encode():
        raise DecodeError(
            f"the record's key is {(key or b'')[:80]!r}, expected the user_id: a user's watches "
            "and history must share a partition",
            "key_is_not_user_id",
        )
    return event
