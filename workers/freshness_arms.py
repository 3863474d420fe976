"""What each arm showed and what came of it, by surface and hour of event time, and how many videos it lives on.

Sums, so the order of records does not matter. Only the newest hours that anything happened in are kept, and of the
videos by impressions the newest two days: an hour changes as long as it is kept, and is called final once the clock is
a stated lateness behind it. Knows nothing of Kafka and of single videos' ways.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import Any, TypeVar

import msgspec

from workers.freshness_rules import HOUR_MS

DAY_MS = 24 * HOUR_MS
VOCABULARY_DAYS = 2
VOCABULARY_MAX = 10_000
EFFECTIVE_SHARE = 0.95
V = TypeVar("V")


class Tally(msgspec.Struct, array_like=True, gc=False):
    """Impressions, each one video in one answer, and what the watches of it add up to.

    `watched_ds` is in tenths of a second: whole numbers add up to the same in any order.
    """

    impressions: int = 0
    new_impressions: int = 0
    clicks: int = 0
    likes: int = 0
    watched_ds: int = 0

    def add(self, other: Tally) -> None:
        """Add another one's numbers."""
        self.impressions += other.impressions
        self.new_impressions += other.new_impressions
        self.clicks += other.clicks
        self.likes += other.likes
        self.watched_ds += other.watched_ds

    def coverage(self) -> float | None:
        """Return the share of impressions that are new videos; None before the first."""
        return self.per_impression(self.new_impressions)

    def per_impression(self, count: float) -> float | None:
        """Return a number of things for each impression; None before the first."""
        return count / self.impressions if self.impressions else None

    def shown_report(self) -> dict[str, Any]:
        """Return what was shown, and how much of it was new."""
        return {
            "impressions": self.impressions,
            "new_impressions": self.new_impressions,
            "coverage": self.coverage(),
        }

    def report(self) -> dict[str, Any]:
        """Return what was shown and what came of it."""
        return {
            **self.shown_report(),
            "clicks_per_impression": self.per_impression(self.clicks),
            "likes_per_impression": self.per_impression(self.likes),
        }


def total(tallies: Iterable[Tally]) -> Tally:
    """Return the sum of some tallies."""
    found = Tally()
    for tally in tallies:
        found.add(tally)
    return found


Surfaces = dict[str, Tally]
Arms = dict[str, Surfaces]


class Hours(msgspec.Struct):
    """The newest hours in which anything happened: start in ms to arm to surface."""

    by_hour: dict[int, Arms] = msgspec.field(default_factory=dict)

    def tally(self, time_ms: int, arm: str, surface: str, *, keep: int) -> Tally:
        """Return what to add to for an event time; for an hour older than the `keep` newest, one that nobody reads."""
        arms = newest_kept(self.by_hour, time_ms // HOUR_MS * HOUR_MS, {}, keep=keep)
        return tally_of(arms, arm, surface)

    def of_arm(self, arm: str) -> list[tuple[int, Surfaces]]:
        """Return the arm's hours, oldest first."""
        return [(hour, arms[arm]) for hour, arms in sorted(self.by_hour.items()) if arm in arms]

    def arms(self) -> set[str]:
        """Return the arms that anything is known of."""
        return {arm for arms in self.by_hour.values() for arm in arms}


class Vocabulary(msgspec.Struct, array_like=True):
    """Impressions by video; beyond `VOCABULARY_MAX` of them, of a half of all videos, a quarter, and so on, by hash.

    Which are counted follows from the videos alone, and each that is has been from its first impression on.
    """

    counts: dict[str, int] = msgspec.field(default_factory=dict)
    halvings: int = 0

    def add(self, video_id: str) -> None:
        """Count an impression."""
        if self.halvings and not _counts(video_id, self.halvings):
            return
        self.counts[video_id] = self.counts.get(video_id, 0) + 1
        while len(self.counts) > VOCABULARY_MAX:
            self.halve()

    def halve(self) -> None:
        """Go on with half of the videos."""
        self.halvings += 1
        self.counts = {one: n for one, n in self.counts.items() if _counts(one, self.halvings)}


class Vocabularies(msgspec.Struct):
    """Of the newest days: start in ms to arm."""

    by_day: dict[int, dict[str, Vocabulary]] = msgspec.field(default_factory=dict)

    def of(self, time_ms: int, arm: str) -> Vocabulary:
        """Return what to add to for an event time."""
        day = time_ms // DAY_MS * DAY_MS
        arms = newest_kept(self.by_day, day, {}, keep=VOCABULARY_DAYS)
        found = arms.get(arm)
        if found is None:
            found = arms[arm] = Vocabulary()
        return found

    def effective(self, arm: str) -> int | None:
        """Return how many videos have 95 % of the arm's impressions in these days; None without any.

        Exact up to `VOCABULARY_MAX` videos a day; beyond, estimated from a sample of the videos that has at least half
        as many.
        """
        days = [arms[arm] for arms in self.by_day.values() if arm in arms]
        halvings = max((day.halvings for day in days), default=0)
        counts: dict[str, int] = {}
        for day in days:
            for video_id, count in day.counts.items():
                if day.halvings == halvings or _counts(video_id, halvings):
                    counts[video_id] = counts.get(video_id, 0) + count
        wanted = EFFECTIVE_SHARE * sum(counts.values())
        for number, count in enumerate(sorted(counts.values(), reverse=True), start=1):
            wanted -= count
            if wanted <= 1e-9:
                return number << halvings
        return None


def _counts(video_id: str, halvings: int) -> bool:
    return zlib.crc32(video_id.encode()) >> (32 - halvings) == 0


def tally_of(arms: Arms, arm: str, surface: str) -> Tally:
    """Return what to add to for an arm and a surface."""
    surfaces = arms.get(arm)
    if surfaces is None:
        surfaces = arms[arm] = {}
    found = surfaces.get(surface)
    if found is None:
        found = surfaces[surface] = Tally()
    return found


def newest_kept(held: dict[int, V], at: int, empty: V, *, keep: int) -> V:
    """Return what is held at a time, `empty` put there first; drop the oldest beyond `keep`, which may be this one.

    What is dropped has `keep` newer ones for good, so it would not be among them at the end either.
    """
    found = held.get(at)
    if found is None:
        found = held[at] = empty
        while len(held) > keep:
            del held[min(held)]
    return found
