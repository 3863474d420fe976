"""What the sealer takes in for the next shard: positions and the new watches; knows nothing of Kafka and histories.

Every record taken in becomes one of four: a watch in a row, a counted duplicate, a dead letter, or erased. Shape
suffixes: R records of a poll.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from infra.settings import WatchSettings
from streams.codec import dead_letter
from streams.events import DeadLetter, OffsetRange
from streams.recent_ids import RecentIds
from streams.topics import WATCHES
from streams.watermark import Watermark
from workers.watch_intake import Accepted, Records, WatchIntake
from workers.watch_table import watch_table


class Restored(NamedTuple):
    """Where a partition goes on, and its newest event time and recent ids as of then."""

    next_offset: int
    newest_event_time_ms: int = 0
    recent: RecentIds | None = None


@dataclass(frozen=True, slots=True)
class NewWatches:
    """What a partition has for a shard.

    Attributes:
        tables: watches in the order of their offsets.
        erased: who was erased, and the offset before which their watches are forgotten.
    """

    tables: list[pa.Table] = field(default_factory=list)
    erased: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FilledShard:
    """The records between two shards' ends.

    Attributes:
        next_offsets: where each partition goes on after this shard.
        newest_event_times_ms: of each partition, from which its watermark goes on.
        erasures: records that erase a user.
        records: all of them; `watches`, `duplicates`, `dead_letters` and `erasures` add up to it.
    """

    ranges: tuple[OffsetRange, ...]
    next_offsets: dict[int, int]
    newest_event_times_ms: dict[int, int]
    partitions: dict[int, NewWatches]
    records: int
    watches: int
    duplicates: int
    erasures: int
    empty_offsets: int
    dead_letters: list[tuple[bytes | None, DeadLetter]]
    append_times_ms: tuple[int, int]


@dataclass(slots=True)
class _Partition:
    first_offset: int
    next_offset: int
    watermark: Watermark
    recent: RecentIds
    new: NewWatches = field(default_factory=NewWatches)


class ShardBuilder:
    """Takes records in, gives a shard's worth of them out.

    Attributes:
        records: all records taken in since the last shard.
        watches: how many of them will be in rows, if nobody is erased.
        num_bytes: raw bytes of their values, and what refused ones take beside.
        started: monotonic time of the first of them, None while there is none.
    """

    def __init__(self, partitions: Mapping[int, Restored], *, settings: WatchSettings) -> None:
        """Go on where each partition was restored."""
        lateness_ms = round(settings.lateness_s * 1000)
        self._intake = WatchIntake(future_slack_ms=round(settings.future_slack_s * 1000))
        self._partitions = {
            number: _Partition(
                found.next_offset,
                found.next_offset,
                Watermark(lateness_ms=lateness_ms, newest_ms=found.newest_event_time_ms),
                found.recent or RecentIds(settings.duplicates_window),
            )
            for number, found in partitions.items()
        }
        self._clear()

    def _clear(self) -> None:
        self.records = self.watches = self.num_bytes = 0
        self._duplicates = self._erasures = self._empty_offsets = 0
        self._dead_letters: list[tuple[bytes | None, DeadLetter]] = []
        self._append_times_ms: tuple[int, int] = (0, 0)
        self.started: float | None = None

    def add(self, records: Records) -> None:
        """Take in the next records of some partitions."""
        num = len(records.values)
        if num == 0:
            return
        first_ms, last_ms = int(records.append_time_ms_R.min()), int(records.append_time_ms_R.max())
        if self.started is None:
            self.started = time.monotonic()
            self._append_times_ms = (first_ms, last_ms)
        before = self._append_times_ms
        self._append_times_ms = (min(before[0], first_ms), max(before[1], last_ms))
        self.records += num
        accepted = self._intake.accept(records)
        self.num_bytes += accepted.num_bytes(records)
        for number in np.unique(records.partition_R).tolist():
            rows = np.flatnonzero(records.partition_R == number)
            self._add(self._partitions[number], number, records, accepted, rows)
        self._refuse(records, accepted)

    def _add(
        self,
        part: _Partition,
        number: int,
        records: Records,
        accepted: Accepted,
        rows: npt.NDArray[Any],
    ) -> None:
        offsets = records.offset_R[rows]
        gaps = np.diff(offsets, prepend=part.next_offset - 1) - 1
        assert (gaps >= 0).all(), f"partition={number} {offsets[0]=} expected {part.next_offset}"
        self._empty_offsets += int(gaps.sum())
        part.next_offset = int(offsets[-1]) + 1
        watches = rows[accepted.is_watch_R[rows]]
        is_duplicate = part.recent.take(records.offset_R[watches], accepted.fingerprint_R[watches])
        new = watches[~is_duplicate]
        self._duplicates += len(watches) - len(new)
        self.watches += len(new)
        if len(new):
            late = part.watermark.observe(
                accepted.event_time_ms_R[new], records.append_time_ms_R[new]
            )
            part.new.tables.append(watch_table(records, accepted, new, late))

    def _refuse(self, records: Records, accepted: Accepted) -> None:
        """Note what is no watch."""
        for row, user_id in accepted.erased.items():
            part = self._partitions[int(records.partition_R[row])]
            part.new.erased[user_id] = int(records.offset_R[row])
            self._erasures += 1
        for row, error in accepted.refused.items():
            key, value = records.keys[row], records.values[row]
            number, offset = int(records.partition_R[row]), int(records.offset_R[row])
            letter = dead_letter(WATCHES.name, number, offset, key, value, error)
            self._dead_letters.append((key, letter))

    def take_shard(self) -> FilledShard:
        """Return what was taken in since the last call; what comes after is the next shard's."""
        partitions = sorted(self._partitions.items())
        shard = FilledShard(
            tuple(
                OffsetRange(
                    partition=number,
                    first_offset=part.first_offset,
                    last_offset=part.next_offset - 1,
                )
                for number, part in partitions
                if part.next_offset > part.first_offset
            ),
            {number: part.next_offset for number, part in partitions},
            {number: part.watermark.newest_ms for number, part in partitions},
            {number: part.new for number, part in partitions},
            self.records,
            self.watches,
            self._duplicates,
            self._erasures,
            self._empty_offsets,
            self._dead_letters,
            self._append_times_ms,
        )
        for part in self._partitions.values():
            part.first_offset = part.next_offset
            part.new = NewWatches()
        self._clear()
        return shard

    def skip_to(self, offsets: Mapping[int, int]) -> None:
        """Let the next shard begin there: what lies between is in none."""
        for number, offset in offsets.items():
            part = self._partitions[number]
            part.first_offset = part.next_offset = max(offset, part.next_offset)
