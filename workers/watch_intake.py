"""Records of `watch.events` told apart: watches, erasures and what must be refused; knows nothing of shards.

Done for all records of a poll at once: `streams.watch_scan` reads what is plain, the contract decides on the rest.
Shape suffixes: R records of a poll.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
from confluent_kafka import Message

from infra.errors import DecodeError
from streams.events import UserErased
from streams.watch_scan import (
    MAX_SCANNED_BYTES,
    NUMBERS,
    PADDING,
    TEXTS,
    Scan,
    event_fingerprint,
    scan_watches,
)
from streams.watches import Watch, accepted_watch, decode_features

Array = npt.NDArray[Any]
_USER, _EVENT_TIME = TEXTS.index("user"), NUMBERS.index("event_time_ms")
REMEMBERED_FEATURES = 100_000
REFUSED_BYTES = 3_000
"""What a dead letter takes in memory beside the record's key and value."""


class Records(NamedTuple):
    """Records, those of one partition in the order of their offsets."""

    partition_R: Array
    offset_R: Array
    append_time_ms_R: Array
    keys: Sequence[bytes | None]
    values: Sequence[bytes | None]


def records_of(messages: Sequence[Message]) -> Records:
    """Return the records of messages without errors."""
    num = len(messages)
    times = np.fromiter((time_ms for _, time_ms in map(Message.timestamp, messages)), np.int64, num)
    return Records(
        np.fromiter(map(Message.partition, messages), np.int64, num),
        np.fromiter(map(Message.offset, messages), np.int64, num),
        times,
        list(map(Message.key, messages)),
        list(map(Message.value, messages)),
    )


class Accepted(NamedTuple):
    """What the records are, those that are neither a watch, nor an erasure, nor refused being none.

    Attributes:
        watches: by row, those that only the contract could read; the others are in the scan.
        erased: by row, whose watches must be forgotten.
        refused: by row, why.
        fingerprint_R: of a watch.
        event_time_ms_R: of a watch.
    """

    scan: Scan
    watches: dict[int, Watch]
    erased: dict[int, str]
    refused: dict[int, DecodeError]
    is_watch_R: Array
    fingerprint_R: Array
    event_time_ms_R: Array

    def num_bytes(self, records: Records) -> int:
        """Return how long the values are, all together, and what records that are refused take beside."""
        apart = self.watches.keys() | self.erased.keys() | self.refused.keys()
        sizes = (len(records.values[row] or b"") for row in apart)
        long = sum(size for size in sizes if size > MAX_SCANNED_BYTES)
        beside = sum(len(records.keys[row] or b"") + REFUSED_BYTES for row in self.refused)
        return len(self.scan.buffer) - len(PADDING) + long + beside


class WatchIntake:
    """Decides on records; what it decides on one depends on that record alone."""

    def __init__(self, *, future_slack_ms: int) -> None:
        self._future_slack_ms = future_slack_ms
        self._features: set[bytes] = set()
        """JSON of users' features that is known to be valid: few are different."""

    def accept(self, records: Records) -> Accepted:
        """Tell the records apart. "Now" is the append time, so the verdict is the same when a record is read again."""
        scan = scan_watches(records.keys, records.values)
        event_time_ms_R = scan.numbers_RN[:, _EVENT_TIME].astype(np.int64)
        is_watch_R = scan.is_watch_R
        is_watch_R &= event_time_ms_R <= records.append_time_ms_R + self._future_slack_ms
        self._refuse_odd_features(scan)
        found = Accepted(scan, {}, {}, {}, is_watch_R, scan.fingerprint_R, event_time_ms_R)
        for row in np.flatnonzero(~is_watch_R).tolist():
            self._accept_one(row, records, found)
        return found

    def _refuse_odd_features(self, scan: Scan) -> None:
        """Leave records to the contract whose features have a value that it may not accept."""
        rows_R = np.flatnonzero(scan.is_watch_R & (scan.lengths_RT[:, _USER] >= 0))
        buffer, known = scan.buffer, self._features
        begins = scan.begins_RT[rows_R, _USER].tolist()
        lengths = scan.lengths_RT[rows_R, _USER].tolist()
        for row, begin, length in zip(rows_R.tolist(), begins, lengths, strict=True):
            features = buffer[begin : begin + length]
            if features in known:
                continue
            try:
                decode_features(features)
            except msgspec.DecodeError:
                scan.is_watch_R[row] = False
            else:
                if len(known) >= REMEMBERED_FEATURES:
                    known.clear()
                known.add(features)

    def _accept_one(self, row: int, records: Records, found: Accepted) -> None:
        try:
            event = accepted_watch(
                records.keys[row],
                records.values[row],
                int(records.append_time_ms_R[row]),
                future_slack_ms=self._future_slack_ms,
            )
        except DecodeError as error:
            found.refused[row] = error
            return
        if isinstance(event, UserErased):
            found.erased[row] = event.user_id
            return
        found.watches[row] = event
        found.is_watch_R[row] = True
        found.fingerprint_R[row] = event_fingerprint(event.user_id, event.event_id)
        found.event_time_ms_R[row] = event.event_time_ms
