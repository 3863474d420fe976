"""What a model has learned before and learns again: a sample of rows, from which users and videos can be forgotten."""

from __future__ import annotations

import random
from collections.abc import Container, Iterable

import msgspec

from streams.shards import ShardRow


class Reservoir:
    """A uniform sample of all rows ever trained on and not forgotten, for replay.

    Algorithm R (Vitter 1985); after rows were dropped, random pairing (Gemulla et al., VLDB 2006): for each of them a
    later row takes its place, in the sample or outside of it as it was.

    Attributes:
        seen: how many rows the sample is of.
        vacant: dropped from the sample, whose places are still empty.
        vacant_outside: dropped with them, it is estimated, from what was not in the sample.
    """

    def __init__(
        self,
        capacity: int,
        *,
        rows: list[ShardRow] | None = None,
        seen: int = 0,
        vacant: int = 0,
        vacant_outside: int = 0,
    ) -> None:
        self.capacity = capacity
        self.rows = rows or []
        self.seen = seen
        self.vacant = vacant
        self.vacant_outside = vacant_outside

    def add(self, row: ShardRow, rng: random.Random) -> None:
        """Offer a row; each row ever offered is held with the same probability."""
        if vacancies := self.vacant + self.vacant_outside:
            if rng.randrange(vacancies) < self.vacant:
                self.vacant -= 1
                self.rows.append(row)
            else:
                self.vacant_outside -= 1
            return
        self.seen += 1
        if len(self.rows) < self.capacity:
            self.rows.append(row)
            return
        place = rng.randrange(self.seen)
        if place < self.capacity:
            self.rows[place] = row

    def forget(self, videos: Container[str], users: Container[str]) -> None:
        """Drop the watches of videos that are not among these, the users, and rows without watches."""
        places = len(self.rows) + self.vacant
        kept = without(self.rows, videos, users)
        dropped = len(self.rows) - len(kept)
        self.rows = kept
        self.vacant += dropped
        if dropped:
            self.vacant_outside += round(dropped * (self.seen - places) / places)


def without(
    rows: Iterable[ShardRow], videos: Container[str], users: Container[str]
) -> list[ShardRow]:
    """Return what is left of rows without these users and without the watches of all but these videos."""
    kept = []
    for row in rows:
        if row.user_id in users:
            continue
        watches = [watch for watch in row.watches if watch.video_id in videos]
        if len(watches) < len(row.watches):
            row = msgspec.structs.replace(row, watches=watches)
        history = [watch for watch in row.history if watch.video_id in videos]
        if len(history) < len(row.history):
            row = msgspec.structs.replace(row, history=history)
        if watches:
            kept.append(row)
    return kept
