"""Delays from one stage to the next, as histograms that are small and exact to 1 %; knows nothing of events."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from workers.freshness_arms import newest_kept
from workers.freshness_rules import HOUR_MS

UPLOAD_TO_SID = "upload_to_sid"
UPLOAD_TO_SERVABLE = "upload_to_servable"
UPLOAD_TO_FIRST_SHOWN = "upload_to_first_shown"
UPLOAD_TO_FIRST_WATCHED = "upload_to_first_watched"
WATCH_TO_SHARD = "watch_to_shard"
SHARD_TO_CHECKPOINT = "shard_to_checkpoint"
CHECKPOINT_TO_SERVING = "checkpoint_to_serving"
WATCH_TO_SERVING = "watch_to_serving"
ADDED_UP = (UPLOAD_TO_SID, UPLOAD_TO_SERVABLE, WATCH_TO_SHARD, SHARD_TO_CHECKPOINT)
"""Stages whose delays are added up for good as they come; of the others, one may turn out shorter than it seemed."""
OBSERVED_HERE = frozenset((UPLOAD_TO_FIRST_SHOWN, UPLOAD_TO_FIRST_WATCHED))
"""Stages whose Prometheus histogram this process has; those of the others are where the stage ends, each in one."""

RECENT_HOURS = 2
"""Newest hours in which anything ended: what ended in them is recent."""
_BUCKET_GROWTH = 1.02  # a delay is known to 1 %; a millisecond and a day are 922 buckets apart
_SHORTEST_S = 0.001


class Delay(NamedTuple):
    """How long something took from one stage to the next."""

    stage: str
    seconds: float
    ended_ms: int


class DelayHistogram(msgspec.Struct):
    """Delays in buckets that grow by a constant factor: small, and the same however often it was saved in between."""

    buckets: dict[int, int] = msgspec.field(default_factory=dict)

    @property
    def count(self) -> int:
        """How many delays were added."""
        return sum(self.buckets.values())

    def add(self, seconds: float) -> None:
        """Count one delay; what is below a millisecond, or negative as clocks differ, counts as one."""
        ratio = max(seconds, _SHORTEST_S) / _SHORTEST_S
        bucket = round(math.log(ratio, _BUCKET_GROWTH))
        self.buckets[bucket] = self.buckets.get(bucket, 0) + 1

    def quantile_s(self, share: float) -> float | None:
        """Return the delay that `share` of all do not exceed, within 1 %; None when there are none."""
        rank = math.ceil(share * self.count)
        for bucket in sorted(self.buckets):
            rank -= self.buckets[bucket]
            if rank <= 0:
                return float(_SHORTEST_S * _BUCKET_GROWTH**bucket)
        return None

    def report(self) -> dict[str, float | None]:
        """Return the count and the quantiles that are shown, seconds to the millisecond."""
        quantiles = {"p50": self.quantile_s(0.5), "p99": self.quantile_s(0.99)}
        rounded = {name: None if s is None else round(s, 3) for name, s in quantiles.items()}
        return {"count": self.count, **rounded}


class StageDelays(msgspec.Struct):
    """The delays of one stage: all so far, and by the hour in which they ended the recent ones."""

    ever: DelayHistogram = msgspec.field(default_factory=DelayHistogram)
    by_hour: dict[int, DelayHistogram] = msgspec.field(default_factory=dict)

    @property
    def count(self) -> int:
        """How many delays were added."""
        return self.ever.count

    def add(self, delay: Delay) -> None:
        """Count one delay."""
        hour = delay.ended_ms // HOUR_MS * HOUR_MS
        self.ever.add(delay.seconds)
        newest_kept(self.by_hour, hour, DelayHistogram(), keep=RECENT_HOURS).add(delay.seconds)

    def copy(self) -> StageDelays:
        """Return another one with the same delays."""
        by_hour = {hour: DelayHistogram(dict(one.buckets)) for hour, one in self.by_hour.items()}
        return StageDelays(DelayHistogram(dict(self.ever.buckets)), by_hour)

    def report(self) -> dict[str, Any]:
        """Return the count and the quantiles of all, and of the recent ones."""
        recent = DelayHistogram()
        for one in self.by_hour.values():
            for bucket, count in one.buckets.items():
                recent.buckets[bucket] = recent.buckets.get(bucket, 0) + count
        return {**self.ever.report(), "recent": recent.report()}


def delays_report(delays: Sequence[Delay]) -> dict[str, Any]:
    """Return the count and the quantiles of some delays, and of the recent ones among them, exactly."""
    hours = sorted({delay.ended_ms // HOUR_MS for delay in delays})[-RECENT_HOURS:]
    recent = [delay for delay in delays if delay.ended_ms // HOUR_MS in hours]
    found = [
        durations_report([round(delay.seconds * 1000) for delay in some], quantiles=(0.5, 0.99))
        for some in (delays, recent)
    ]
    return {**found[0], "recent": found[1]}


def durations_report(durations_ms: Sequence[int], *, quantiles: Sequence[float]) -> dict[str, Any]:
    """Return the count and the quantiles, in seconds, of durations in ms; what is negative counts as nothing."""
    ordered = sorted(durations_ms)
    found: dict[str, Any] = {"count": len(ordered)}
    for share in quantiles:
        at = ordered[math.ceil(share * len(ordered)) - 1] if ordered else None
        found[f"p{share * 100:g}"] = None if at is None else max(0, at) / 1000
    return found
