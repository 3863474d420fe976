"""How far the models have come: promotions, the swaps that answer them, and what each has learned; knows no Kafka.

Promotions, swaps and shards are joined from three topics, which come in any order between them: whichever part comes
last makes the delay.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from streams.events import LRM_MODEL_NAME, CheckpointPromoted, ShardSealed, SwapReported
from workers.freshness_delays import (
    CHECKPOINT_TO_SERVING,
    SHARD_TO_CHECKPOINT,
    WATCH_TO_SERVING,
    WATCH_TO_SHARD,
    Delay,
)

RECENT_PROMOTIONS = 100
RECENT_SHARDS = 2_000
PREQUENTIAL_MAX = 200
SWAPS_MAX = 20
RECALL = "prequential_recall_at_10"
_WATCHED = f"{RECALL}_watched_"


class _Swap(msgspec.Struct, array_like=True):
    """A replica took `model_version`; one that had nothing before only started."""

    model_version: int
    swapped_time_ms: int
    started: bool


class _Promotion(msgspec.Struct, array_like=True):
    """A promotion that no swap has answered yet."""

    promoted_time_ms: int
    shard_ids: tuple[str, ...]


class _Shard(msgspec.Struct, array_like=True):
    """A shard's way: its oldest watch, its announcement, and the LRM that learned from it first."""

    watched_ms: int | None = None
    sealed_ms: int | None = None
    promoted_ms: int | None = None
    served_ms: int | None = None


class _Model(msgspec.Struct):
    """What is known of one model.

    Attributes:
        waiting: promotions that no swap has answered yet, by model_version.
        trained_until_ms: newest event time that each version has learned from.
        swaps: the last ones, in the order they came.
    """

    waiting: dict[int, _Promotion] = msgspec.field(default_factory=dict)
    trained_until_ms: dict[int, int] = msgspec.field(default_factory=dict)
    swaps: list[_Swap] = msgspec.field(default_factory=list)

    def serving_version(self) -> int | None:
        """Return the version that was swapped to last; None before the first swap."""
        newest = max(self.swaps, key=lambda swap: swap.swapped_time_ms, default=None)
        return None if newest is None else newest.model_version

    def serves_until_ms(self) -> int | None:
        """Return until when the version that serves has learned; None where nobody knows."""
        version = self.serving_version()
        return (self.trained_until_ms.get(version) if version is not None else None) or None

    def answered(self) -> Iterator[tuple[_Promotion, _Swap]]:
        """Yield each promotion that a swap has answered; a version that was skipped, when the next came."""
        for version, promotion in list(self.waiting.items()):
            for swap in self.swaps:
                is_later = swap.swapped_time_ms >= promotion.promoted_time_ms
                if swap.model_version >= version and is_later:
                    del self.waiting[version]
                    yield promotion, swap
                    break


class _Prequential(msgspec.Struct, array_like=True):
    model_name: str
    model_version: int
    time_ms: int
    recall_at_10: float
    by_earlier_watches: dict[str, float]


class ModelFigures(msgspec.Struct):
    """All models.

    Attributes:
        models: by model name.
        shards: the last ones heard of, by shard_id.
        prequential: of the last promotions that say so, in the order they came.
        outcomes: swaps by outcome.
        reports: the last swaps, in the order they came.
    """

    models: dict[str, _Model] = msgspec.field(default_factory=dict)
    shards: dict[str, _Shard] = msgspec.field(default_factory=dict)
    prequential: list[_Prequential] = msgspec.field(default_factory=list)
    outcomes: dict[str, int] = msgspec.field(default_factory=dict)
    reports: list[dict[str, str | int]] = msgspec.field(default_factory=list)

    def sealed(self, event: ShardSealed, append_time_ms: int) -> list[Delay]:
        """Add a shard that was announced; return the delays of its oldest watch that are complete now."""
        shard = self._shard(event.shard_id)
        if shard.sealed_ms is not None:
            return []
        shard.watched_ms, shard.sealed_ms = event.first_append_time_ms, append_time_ms
        delays = [_delay(WATCH_TO_SHARD, shard.watched_ms, shard.sealed_ms)]
        if shard.promoted_ms is not None:
            delays.append(_delay(SHARD_TO_CHECKPOINT, shard.sealed_ms, shard.promoted_ms))
        if shard.served_ms is not None:
            delays.append(_delay(WATCH_TO_SERVING, shard.watched_ms, shard.served_ms))
        return delays

    def promoted(self, event: CheckpointPromoted) -> list[Delay]:
        """Add a promotion; return the delays that are complete now."""
        model = self.models.setdefault(event.model_name, _Model())
        model.trained_until_ms[event.model_version] = event.newest_event_time_ms
        _keep_last(model.trained_until_ms, RECENT_PROMOTIONS)
        self._note_recall(event)
        is_lrm = event.model_name == LRM_MODEL_NAME
        shard_ids = event.shard_ids[-RECENT_SHARDS:] if is_lrm else ()
        model.waiting[event.model_version] = _Promotion(event.promoted_time_ms, shard_ids)
        delays = [
            delay for one in shard_ids for delay in self._learned(one, event.promoted_time_ms)
        ]
        delays += self._answers(model)
        if model.serving_version() == event.model_version:
            model.waiting.pop(event.model_version, None)  # announced again: no replica will swap
        _keep_last(model.waiting, RECENT_PROMOTIONS)
        return delays

    def swapped(self, event: SwapReported) -> list[Delay]:
        """Add a swap, or that a replica refused one; return the delays that are complete now."""
        self.outcomes[event.outcome] = self.outcomes.get(event.outcome, 0) + 1
        self.reports.append(
            {
                "model_name": event.model_name, "model_version": event.model_version,
                "outcome": event.outcome, "reason": event.reason[:200],
                "swapped_time_ms": event.swapped_time_ms, "replica": event.replica,
            }
        )  # fmt: skip
        del self.reports[:-SWAPS_MAX]
        if event.outcome != "succeeded":
            return []
        model = self.models.setdefault(event.model_name, _Model())
        started = event.previous_version == 0
        model.swaps.append(_Swap(event.model_version, event.swapped_time_ms, started))
        del model.swaps[:-RECENT_PROMOTIONS]
        return self._answers(model)

    def _answers(self, model: _Model) -> list[Delay]:
        """Return the delays until serving; a start is an answer, but no measure of how fast a model is picked up."""
        delays = []
        for promotion, swap in model.answered():
            if swap.started:
                continue
            delays.append(
                _delay(CHECKPOINT_TO_SERVING, promotion.promoted_time_ms, swap.swapped_time_ms)
            )
            for shard_id in promotion.shard_ids:
                delays += self._served(shard_id, swap.swapped_time_ms)
        return delays

    def _learned(self, shard_id: str, promoted_ms: int) -> Iterator[Delay]:
        shard = self._shard(shard_id)
        if shard.promoted_ms is None:
            shard.promoted_ms = promoted_ms
            if shard.sealed_ms is not None:
                yield _delay(SHARD_TO_CHECKPOINT, shard.sealed_ms, promoted_ms)

    def _served(self, shard_id: str, swapped_ms: int) -> Iterator[Delay]:
        shard = self._shard(shard_id)
        if shard.served_ms is None:
            shard.served_ms = swapped_ms
            if shard.watched_ms is not None:
                yield _delay(WATCH_TO_SERVING, shard.watched_ms, swapped_ms)

    def _shard(self, shard_id: str) -> _Shard:
        shard = self.shards.setdefault(shard_id, _Shard())
        _keep_last(self.shards, RECENT_SHARDS)
        return shard

    def _note_recall(self, event: CheckpointPromoted) -> None:
        at = (event.model_name, event.model_version)
        recall = event.metrics.get(RECALL)
        if recall is None or at in {
            (one.model_name, one.model_version) for one in self.prequential
        }:
            return
        by_watches = {
            name.removeprefix(_WATCHED): value
            for name, value in event.metrics.items()
            if name.startswith(_WATCHED)
        }
        self.prequential.append(_Prequential(*at, event.promoted_time_ms, recall, by_watches))
        del self.prequential[:-PREQUENTIAL_MAX]

    def serving_versions(self) -> dict[str, int]:
        """Return the version that serves, by model name; adapters and arms that nothing serves are left out."""
        return {
            name: version
            for name, model in sorted(self.models.items())
            if (version := model.serving_version()) is not None
        }

    def trained_until_ms(self) -> dict[str, int]:
        """Return the newest event time that each model which serves has learned from, as far as known."""
        return {
            name: until_ms
            for name, model in sorted(self.models.items())
            if (until_ms := model.serves_until_ms()) is not None
        }

    def report(self, clock_ms: int) -> dict[str, Any]:
        """Return the figures as people read them; ages are on the events' clock."""
        versions, until_ms = self.serving_versions(), self.trained_until_ms()
        newest = sorted(self.reports, key=lambda one: -int(one["swapped_time_ms"]))
        return {
            "model_version": versions.get(LRM_MODEL_NAME),
            "model_versions": versions,
            "model_age_s": _ages_s(until_ms, clock_ms),
            "trained_until_ms": until_ms,
            "swaps": self.outcomes.get("succeeded", 0),
            "swaps_rejected": self.outcomes.get("rejected", 0),
            "swaps_newest": newest,
            "prequential": [
                {
                    "model_name": one.model_name,
                    "model_version": one.model_version,
                    "time_ms": one.time_ms,
                    "recall_at_10": one.recall_at_10,
                    "by_earlier_watches": one.by_earlier_watches,
                }
                for one in sorted(self.prequential, key=lambda one: one.time_ms)
            ],
        }


def _ages_s(until_ms: Mapping[str, int], clock_ms: int) -> dict[str, float]:
    return {name: max(0, clock_ms - at) / 1000 for name, at in until_ms.items()}


def _delay(stage: str, from_ms: int, to_ms: int) -> Delay:
    return Delay(stage, (to_ms - from_ms) / 1000)


def _keep_last(entries: dict[Any, Any], count: int) -> None:
    while len(entries) > count:
        del entries[next(iter(entries))]
