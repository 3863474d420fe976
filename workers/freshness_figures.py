"""How fresh the system is, as numbers that events add to; knows nothing of Kafka, Prometheus and files.

Stages are joined from events of several topics, which come in any order between them: whichever half comes second makes
the delay. So the figures depend on what was counted, not on how it was interleaved, and a restart that goes on from
saved figures ends where an uninterrupted run does.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

from pydantic import BaseModel, Field

from streams.events import (
    LRM_MODEL_NAME,
    CheckpointPromoted,
    ImpressionsShown,
    SemanticIdAssigned,
    SwapReported,
    VideoServable,
)

UPLOAD_TO_SID = "upload_to_sid"
UPLOAD_TO_SERVABLE = "upload_to_servable"
CHECKPOINT_TO_SERVING = "checkpoint_to_serving"
STAGES = (UPLOAD_TO_SID, UPLOAD_TO_SERVABLE, CHECKPOINT_TO_SERVING)

RECENT_VIDEOS = 4096
"""Uploads of which both halves are awaited; the two are seconds apart, and all of these are saved every second."""
RECENT_PROMOTIONS = 100

_BUCKET_GROWTH = 1.02  # a delay is known to 1 %; a millisecond and a day are 922 buckets apart
_SHORTEST_S = 0.001


class Delay(NamedTuple):
    """How long something took from one stage to the next."""

    stage: str
    seconds: float


class DelayHistogram(BaseModel):
    """Delays in buckets that grow by a constant factor: small, and the same however often it was saved in between."""

    buckets: Counter[int] = Field(default_factory=Counter)

    @property
    def count(self) -> int:
        """How many delays were added."""
        return self.buckets.total()

    def add(self, seconds: float) -> None:
        """Count one delay; what is below a millisecond, or negative as clocks differ, counts as one."""
        ratio = max(seconds, _SHORTEST_S) / _SHORTEST_S
        self.buckets[round(math.log(ratio, _BUCKET_GROWTH))] += 1

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


class Shown(BaseModel):
    """Impressions, each one video in one answer."""

    impressions: int = 0
    new_impressions: int = 0

    def coverage(self) -> float | None:
        """Return the share of impressions that are new videos; None before the first."""
        return self.new_impressions / self.impressions if self.impressions else None


class _Upload(BaseModel):
    """What is known of one upload: `assigned` once its semantic ID came, the time once a replica had it."""

    assigned: bool = False
    servable_time_ms: int | None = None


class _Swap(BaseModel):
    """A replica took `model_version`; one that had nothing before only started."""

    model_version: int
    swapped_time_ms: int
    started: bool


class _Model(BaseModel):
    """Promotions that no swap has answered yet, model_version to time, and the last swaps, in the order they came."""

    waiting: dict[int, int] = Field(default_factory=dict)
    swaps: list[_Swap] = Field(default_factory=list)

    def serving_version(self) -> int | None:
        """Return the version that was swapped to last; None before the first swap."""
        newest = max(self.swaps, key=lambda swap: swap.swapped_time_ms, default=None)
        return None if newest is None else newest.model_version

    def answered(self) -> Iterator[Delay]:
        """Yield the delay of each promotion that a swap has answered; a version that was skipped, when the next came.

        A start is an answer, but no measure of how fast a promotion is picked up.
        """
        for version, promoted_time_ms in list(self.waiting.items()):
            for swap in self.swaps:
                if swap.model_version >= version and swap.swapped_time_ms >= promoted_time_ms:
                    del self.waiting[version]
                    if not swap.started:
                        seconds = (swap.swapped_time_ms - promoted_time_ms) / 1000
                        yield Delay(CHECKPOINT_TO_SERVING, seconds)
                    break


class Figures(BaseModel):
    """All figures, and the halves of joins that they wait with.

    Attributes:
        shown: impressions by arm, then surface.
        delays: by stage.
        swaps: by outcome.
        uploads: the last `RECENT_VIDEOS`, by video_id and append time.
        models: by model name.
    """

    shown: dict[str, dict[str, Shown]] = Field(default_factory=dict)
    delays: dict[str, DelayHistogram] = Field(
        default_factory=lambda: {stage: DelayHistogram() for stage in STAGES}
    )
    swaps: Counter[str] = Field(default_factory=Counter)
    uploads: dict[str, _Upload] = Field(default_factory=dict)
    models: dict[str, _Model] = Field(default_factory=dict)

    def count_impressions(self, event: ImpressionsShown) -> Shown:
        """Add an answer's videos; return all that this arm showed on this surface."""
        shown = self.shown.setdefault(event.arm, {}).setdefault(event.surface, Shown())
        shown.impressions += len(event.items)
        shown.new_impressions += sum(item.new for item in event.items)
        return shown

    def count_assigned(self, event: SemanticIdAssigned, append_time_ms: int) -> list[Delay]:
        """Add an assignment that was appended at a time; return the delays that are complete now.

        One that is published again adds nothing, nor does one of the bootstrap's, which never were in the stream.
        """
        if event.upload_position < 0:
            return []
        upload = self._upload(event.video_id, event.upload_append_time_ms)
        if upload.assigned:
            return []
        upload.assigned = True
        uploaded_ms = event.upload_append_time_ms
        delays = [Delay(UPLOAD_TO_SID, (append_time_ms - uploaded_ms) / 1000)]
        if upload.servable_time_ms is not None:
            delays.append(_to_servable(upload.servable_time_ms, uploaded_ms))
        return self._add(delays)

    def count_servable(self, event: VideoServable) -> list[Delay]:
        """Add that a replica has a video; return the delay if it is the first and the video came with the stream."""
        upload = self._upload(event.video_id, event.upload_append_time_ms)
        if upload.servable_time_ms is not None:
            return []
        upload.servable_time_ms = event.servable_time_ms
        if not upload.assigned:
            return []
        return self._add([_to_servable(event.servable_time_ms, event.upload_append_time_ms)])

    def count_promoted(self, event: CheckpointPromoted) -> list[Delay]:
        """Add a promotion; return the delays until serving that are complete now."""
        model = self.models.setdefault(event.model_name, _Model())
        model.waiting[event.model_version] = event.promoted_time_ms
        delays = self._add(list(model.answered()))
        if model.serving_version() == event.model_version:
            model.waiting.pop(event.model_version, None)  # announced again: no replica will swap
        _keep_last(model.waiting, RECENT_PROMOTIONS)
        return delays

    def count_swap(self, event: SwapReported) -> list[Delay]:
        """Add a swap, or that a replica refused one; return the delays until serving that are complete now."""
        self.swaps[event.outcome] += 1
        if event.outcome != "succeeded":
            return []
        model = self.models.setdefault(event.model_name, _Model())
        model.swaps.append(
            _Swap(
                model_version=event.model_version,
                swapped_time_ms=event.swapped_time_ms,
                started=event.previous_version == 0,
            )
        )
        del model.swaps[:-RECENT_PROMOTIONS]
        return self._add(list(model.answered()))

    def report(self) -> dict[str, Any]:
        """Return the figures as people read them."""
        total = Shown()
        for shown in (each for surfaces in self.shown.values() for each in surfaces.values()):
            total.impressions += shown.impressions
            total.new_impressions += shown.new_impressions
        versions = {
            name: version
            for name, model in sorted(self.models.items())
            if (version := model.serving_version())
            is not None  # adapters and arms that nothing serves
        }
        return {
            **_shown_report(total),
            "by_arm": {
                arm: {surface: _shown_report(shown) for surface, shown in sorted(surfaces.items())}
                for arm, surfaces in sorted(self.shown.items())
            },
            "delays_s": {stage: histogram.report() for stage, histogram in self.delays.items()},
            "model_version": versions.get(LRM_MODEL_NAME),
            "model_versions": versions,
            "swaps": self.swaps["succeeded"],
            "swaps_rejected": self.swaps["rejected"],
        }

    def _upload(self, video_id: str, append_time_ms: int) -> _Upload:
        upload = self.uploads.setdefault(f"{append_time_ms}:{video_id}", _Upload())
        _keep_last(self.uploads, RECENT_VIDEOS)
        return upload

    def _add(self, delays: list[Delay]) -> list[Delay]:
        for delay in delays:
            self.delays[delay.stage].add(delay.seconds)
        return delays


def _to_servable(servable_time_ms: int, uploaded_ms: int) -> Delay:
    return Delay(UPLOAD_TO_SERVABLE, (servable_time_ms - uploaded_ms) / 1000)


def _shown_report(shown: Shown) -> dict[str, Any]:
    return {**shown.model_dump(), "coverage": shown.coverage()}


def _keep_last(entries: dict[Any, Any], count: int) -> None:
    while len(entries) > count:
        del entries[next(iter(entries))]
