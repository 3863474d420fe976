"""How far the models have come: promotions, the swaps that answer them, and what each has learned; knows no Kafka.

Promotions, swaps and shards are joined from three topics, which come in any order between them: whichever part comes
last makes the delay. Replicas report their swaps in partitions of their own, so who was first may turn out late: until
a promotion or a shard is forgotten, its delay is what the earliest swap says, whichever was read first.
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
    StageDelays,
)

RECENT_PROMOTIONS = 100
RECENT_SHARDS = 2_000
PREQUENTIAL_MAX = 200
SWAPS_MAX = 20
UNTIL_SERVED = (CHECKPOINT_TO_SERVING, WATCH_TO_SERVING)
RECALL = "prequential_recall_at_10"
_WATCHED = f"{RECALL}_watched_"


class _Swap(msgspec.Struct, array_like=True):
    """A replica took `model_version`; one that had nothing before only started."""

    model_version: int
    swapped_time_ms: int
    started: bool


class _Promotion(msgspec.Struct, array_like=True):
    """A promotion, and the earliest swap that answers it, as far as known."""

    model_version: int
    promoted_time_ms: int
    shard_ids: tuple[str, ...]
    answer: _Swap | None = None

    def served_ms(self) -> int | None:
        """Return when a replica took it; None before that, and for a start, which is no measure of how fast."""
        return None if self.answer is None or self.answer.started else self.answer.swapped_time_ms

    def delay(self) -> Delay | None:
        """Return how long it took until a replica served it."""
        served_ms = self.served_ms()
        if served_ms is None:
            return None
        return _delay(CHECKPOINT_TO_SERVING, self.promoted_time_ms, served_ms)


class _Shard(msgspec.Struct, array_like=True):
    """A shard's way: its oldest watch, its announcement, and the LRM that learned from it first."""

    watched_ms: int | None = None
    sealed_ms: int | None = None
    promoted_ms: int | None = None
    served_ms: int | None = None

    def delay(self) -> Delay | None:
        """Return how long it took from its oldest watch until a replica served what was learned from it."""
        if self.watched_ms is None or self.served_ms is None:
            return None
        return _delay(WATCH_TO_SERVING, self.watched_ms, self.served_ms)


class _Model(msgspec.Struct):
    """What is known of one model.

    Attributes:
        promotions: the last ones, in the order they came.
        trained_until_ms: newest event time that each version has learned from.
        swaps: the last ones, oldest first.
    """

    promotions: list[_Promotion] = msgspec.field(default_factory=list)
    trained_until_ms: dict[int, int] = msgspec.field(default_factory=dict)
    swaps: list[_Swap] = msgspec.field(default_factory=list)

    def serving_version(self) -> int | None:
        """Return the version that was swapped to last; None before the first swap."""
        return self.swaps[-1].model_version if self.swaps else None

    def serves_until_ms(self) -> int | None:
        """Return until when the version that serves has learned; None where nobody knows."""
        version = self.serving_version()
        return (self.trained_until_ms.get(version) if version is not None else None) or None

    def answer_to(self, promotion: _Promotion) -> _Swap | None:
        """Return the earliest swap that answers a promotion; one that was skipped is answered by that to the next."""
        for swap in self.swaps:
            is_later = swap.swapped_time_ms >= promotion.promoted_time_ms
            if swap.model_version >= promotion.model_version and is_later:
                return swap
        return None


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
        prequential: of the last promotions that say so, oldest first.
        outcomes: swaps by outcome.
        reports: the last swaps, oldest first.
        served: delays until serving of the promotions and shards that are forgotten, by stage.
    """

    models: dict[str, _Model] = msgspec.field(default_factory=dict)
    shards: dict[str, _Shard] = msgspec.field(default_factory=dict)
    prequential: list[_Prequential] = msgspec.field(default_factory=list)
    outcomes: dict[str, int] = msgspec.field(default_factory=dict)
    reports: list[dict[str, str | int]] = msgspec.field(default_factory=list)
    served: dict[str, StageDelays] = msgspec.field(
        default_factory=lambda: {stage: StageDelays() for stage in UNTIL_SERVED}
    )

    def sealed(self, event: ShardSealed, append_time_ms: int) -> list[Delay]:
        """Add a shard that was announced; return the delays of its oldest watch that are complete now."""
        shard = self._shard(event.shard_id)
        if shard.sealed_ms is not None:
            return []
        shard.watched_ms, shard.sealed_ms = event.first_append_time_ms, append_time_ms
        delays = [_delay(WATCH_TO_SHARD, shard.watched_ms, shard.sealed_ms)]
        if shard.promoted_ms is not None:
            delays.append(_delay(SHARD_TO_CHECKPOINT, shard.sealed_ms, shard.promoted_ms))
        delay = shard.delay()
        return delays if delay is None else [*delays, delay]

    def promoted(self, event: CheckpointPromoted) -> list[Delay]:
        """Add a promotion; return the delays that are complete now."""
        model = self.models.setdefault(event.model_name, _Model())
        model.trained_until_ms[event.model_version] = event.newest_event_time_ms
        _keep_last(model.trained_until_ms, RECENT_PROMOTIONS)
        self._note_recall(event)
        is_lrm = event.model_name == LRM_MODEL_NAME
        shard_ids = event.shard_ids[-RECENT_SHARDS:] if is_lrm else ()
        promotion = _Promotion(event.model_version, event.promoted_time_ms, shard_ids)
        delays = [
            delay for one in shard_ids for delay in self._learned(one, event.promoted_time_ms)
        ]
        delays += self._answered(model, promotion)
        if promotion.answer is None and model.serving_version() == event.model_version:
            return delays  # announced again: no replica will swap
        model.promotions.append(promotion)
        while len(model.promotions) > RECENT_PROMOTIONS:
            self._forget(model.promotions.pop(0))
        return delays

    def swapped(self, event: SwapReported) -> list[Delay]:
        """Add a swap, or that a replica refused one; return the delays that are complete now.

        A delay that an earlier swap of another replica makes shorter is not complete now: it was before.
        """
        self.outcomes[event.outcome] = self.outcomes.get(event.outcome, 0) + 1
        self.reports.append(
            {
                "model_name": event.model_name, "model_version": event.model_version,
                "outcome": event.outcome, "reason": event.reason[:200],
                "swapped_time_ms": event.swapped_time_ms, "replica": event.replica,
            }
        )  # fmt: skip
        self.reports.sort(key=_reported)
        del self.reports[:-SWAPS_MAX]
        if event.outcome != "succeeded":
            return []
        model = self.models.setdefault(event.model_name, _Model())
        started = event.previous_version == 0
        model.swaps.append(_Swap(event.model_version, event.swapped_time_ms, started))
        model.swaps.sort(key=_swapped)
        del model.swaps[:-RECENT_PROMOTIONS]
        return [delay for one in model.promotions for delay in self._answered(model, one)]

    def _answered(self, model: _Model, promotion: _Promotion) -> list[Delay]:
        """Note who answered a promotion first; return the delays until then, where nobody was known to have."""
        answer, before = model.answer_to(promotion), promotion.answer
        if answer is None or (before is not None and _swapped(before) <= _swapped(answer)):
            return []
        promotion.answer = answer
        found: list[_Promotion | _Shard] = [promotion]
        for shard_id in promotion.shard_ids:
            shard = self._shard(shard_id)
            shard.served_ms = promotion.served_ms()
            found.append(shard)
        delays = [delay for one in found if (delay := one.delay()) is not None]
        return delays if before is None else []

    def _learned(self, shard_id: str, promoted_ms: int) -> Iterator[Delay]:
        shard = self._shard(shard_id)
        if shard.promoted_ms is None:
            shard.promoted_ms = promoted_ms
            if shard.sealed_ms is not None:
                yield _delay(SHARD_TO_CHECKPOINT, shard.sealed_ms, promoted_ms)

    def _shard(self, shard_id: str) -> _Shard:
        shard = self.shards.setdefault(shard_id, _Shard())
        while len(self.shards) > RECENT_SHARDS:
            self._forget(self.shards.pop(next(iter(self.shards))))
        return shard

    def _forget(self, one: _Promotion | _Shard) -> None:
        if (delay := one.delay()) is not None:
            self.served[delay.stage].add(delay)

    def until_served(self) -> dict[str, StageDelays]:
        """Return the delays until serving, by stage: those of what is forgotten, and of what may yet change."""
        found = {stage: one.copy() for stage, one in self.served.items()}
        held: list[_Promotion | _Shard] = [
            one for model in self.models.values() for one in model.promotions
        ]
        for one in (*held, *self.shards.values()):
            if (delay := one.delay()) is not None:
                found[delay.stage].add(delay)
        return found

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
        self.prequential.sort(key=lambda one: (one.time_ms, one.model_name, one.model_version))
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
        return {
            "model_version": versions.get(LRM_MODEL_NAME),
            "model_versions": versions,
            "model_age_s": _ages_s(until_ms, clock_ms),
            "trained_until_ms": until_ms,
            "swaps": self.outcomes.get("succeeded", 0),
            "swaps_rejected": self.outcomes.get("rejected", 0),
            "swaps_newest": self.reports[::-1],
            "prequential": [
                {
                    "model_name": one.model_name,
                    "model_version": one.model_version,
                    "time_ms": one.time_ms,
                    "recall_at_10": one.recall_at_10,
                    "by_earlier_watches": one.by_earlier_watches,
                }
                for one in self.prequential
            ],
        }


def _ages_s(until_ms: Mapping[str, int], clock_ms: int) -> dict[str, float]:
    return {name: max(0, clock_ms - at) / 1000 for name, at in until_ms.items()}


def _delay(stage: str, from_ms: int, to_ms: int) -> Delay:
    return Delay(stage, (to_ms - from_ms) / 1000, to_ms)


def _swapped(swap: _Swap) -> tuple[int, bool, int]:
    return swap.swapped_time_ms, swap.started, swap.model_version


def _reported(report: Mapping[str, str | int]) -> tuple[int, str, str, int]:
    return (
        int(report["swapped_time_ms"]),
        str(report["replica"]),
        str(report["model_name"]),
        int(report["model_version"]),
    )


def _keep_last(entries: dict[Any, Any], count: int) -> None:
    while len(entries) > count:
        del entries[next(iter(entries))]
