"""What the arms of a closed loop came to, each figure with a confidence interval; knows nothing of Kafka and HTTP.

| figure | is |
| --- | --- |
| coverage | share of impressions that are videos within the window after their upload (Kuaishou's M3CSR) |
| shown_share | share of new videos that the arm showed at least once within the window |
| reached_share | share of new videos that the arm's users gave `threshold` views within the window (M3CSR's velocity) |
| time_to_threshold_s | from upload to that many views; of a video that never got them, the window |
| clicks, likes, watched_s _per_impression, watched_s_per_request | what came of what was shown |
| new_views_per_request | views of videos within the window, which OneRec-V2 saw fall by 37 to 45 % |
| effective_vocabulary | videos that make up 95 % of the impressions |

An impression is a place of an answer, whether the viewer looked that far or not. New videos are those uploaded in the
loop whose window had ended before the loop did. Intervals are of 95 %, by the bootstrap: of viewers, all twins of one
together, and of videos. They say how much chance is in one world; how much another world differs, only others can say.

Legend: A arms, V viewers, N new videos, R resamples.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streams.simulated_world import World
from workers.closed_loop import Asked

RESAMPLES = 1000
CONFIDENCE = 0.95
VOCABULARY_SHARE = 0.95
Floats = NDArray[np.float64]
COUNTS = (
    "requests", "impressions", "new_impressions", "looked", "clicks", "likes", "watched_s", "new_clicks",
)  # fmt: skip
RATIOS = {
    "coverage": ("new_impressions", "impressions"),
    "clicks_per_impression": ("clicks", "impressions"),
    "likes_per_impression": ("likes", "impressions"),
    "watched_s_per_impression": ("watched_s", "impressions"),
    "watched_s_per_request": ("watched_s", "requests"),
    "new_views_per_request": ("new_clicks", "requests"),
}


@dataclass(frozen=True)
class Estimate:
    """A figure, and between which values it lies with a probability of 95 %."""

    value: float
    ci_low: float
    ci_high: float

    def as_json(self) -> dict[str, float | None]:
        """Return it as reports carry it; None for what could not be divided."""
        named = {"value": self.value, "ci_low": self.ci_low, "ci_high": self.ci_high}
        return {
            name: round(value, 5) if math.isfinite(value) else None for name, value in named.items()
        }


@dataclass(frozen=True)
class Figures:
    """All figures by arm, and by arm those of other arms over the baseline's.

    Attributes:
        new_videos: how many were counted.
        over_baseline: figures over the baseline's on the same viewers and videos; of times, the baseline's over the
            arm's under the name of velocity, so that above 1 is faster.
    """

    arms: Mapping[str, Mapping[str, Estimate]]
    counts: Mapping[str, Mapping[str, float]]
    over_baseline: Mapping[str, Mapping[str, Estimate]]
    new_videos: int


def figures_of(
    asked: Sequence[Asked],
    world: World,
    *,
    arms: Sequence[str],
    baseline: str,
    window_ms: int,
    threshold: int,
) -> Figures:
    """Return what came of all requests; those that failed showed nothing.

    Args:
        asked: in the order of time.
        world: whose viewers asked.
        arms: in the order to report.
        baseline: one of them.
        window_ms: after its upload in which a video is new, and in which views count for it.
        threshold: views within one arm.
    """
    sums = _sums(asked, world, arms, window_ms)
    times, shown = _new_videos(asked, world, arms, window_ms, threshold)
    rng = np.random.default_rng(world.seed)
    of_viewers = _resampled(rng, sums.shape[2])
    weights = _resampled(rng, times.shape[1])
    totals = sums @ of_viewers.T
    named: dict[str, Floats] = {
        name: _over(totals[COUNTS.index(above)], totals[COUNTS.index(below)])
        for name, (above, below) in RATIOS.items()
    }
    if times.shape[1]:
        named |= {
            "shown_share": _mean(shown, weights),
            "reached_share": _mean((times < window_ms).astype(np.float64), weights),
            "time_to_threshold_s": _quantile(times / 1000, weights, 0.5),
            "time_to_threshold_p90_s": _quantile(times / 1000, weights, 0.9),
        }
    base = list(arms).index(baseline)
    return Figures(
        arms={
            arm: {name: _estimate(found[at]) for name, found in named.items()}
            | {"effective_vocabulary": _exactly(_vocabulary(asked, arm))}
            for at, arm in enumerate(arms)
        },
        counts={
            arm: dict(zip(COUNTS, totals[:, at, 0].tolist(), strict=True))
            for at, arm in enumerate(arms)
        },
        over_baseline={
            arm: {
                name: _estimate(quotient(name, found[at], found[base]))
                for name, found in named.items()
            }
            for at, arm in enumerate(arms)
        },
        new_videos=times.shape[1],
    )


def quotient(name: str, ours: Floats, baseline: Floats) -> Floats:
    """Return how many times the baseline's an arm's figure is; of times, the other way round: above 1 is better."""
    if name.startswith("time_to_threshold"):
        return _over(baseline, ours)
    return _over(ours, baseline)


def _sums(asked: Sequence[Asked], world: World, arms: Sequence[str], window_ms: int) -> Floats:
    """Return each count, by arm and viewer; shape [len(COUNTS), A, V]."""
    sums = np.zeros((len(COUNTS), len(arms), world.size.viewers))
    for one in asked:
        fresh = {
            video_id
            for video_id in one.answer.video_ids
            if one.ask.time_ms - world.uploads[video_id].time_ms <= window_ms
        }
        watches = one.visit.watches
        sums[:, arms.index(one.user.arm), one.user.number] += (
            1,
            len(one.answer.video_ids),
            len(fresh),
            one.visit.looked,
            len(watches),
            sum(watch.liked for watch in watches),
            sum(watch.watched_s for watch in watches),
            sum(watch.video.video_id in fresh for watch in watches),
        )
    return sums


def _new_videos(
    asked: Sequence[Asked], world: World, arms: Sequence[str], window_ms: int, threshold: int
) -> tuple[Floats, Floats]:
    """Return, by arm and new video, the time to the threshold in ms and whether it was shown; shapes [A, N]."""
    end_ms = world.start_ms + round(world.size.hours * 3_600_000)
    counted = [one for one in world.new if one.time_ms + window_ms <= end_ms]
    number_of = {one.video.video_id: at for at, one in enumerate(counted)}
    times = np.full((len(arms), len(counted)), float(window_ms))
    shown = np.zeros((len(arms), len(counted)))
    views: dict[tuple[int, int], int] = defaultdict(int)
    for one in asked:
        arm = list(arms).index(one.user.arm)
        for video_id in one.answer.video_ids:
            at = number_of.get(video_id)
            if at is not None and one.ask.time_ms < counted[at].time_ms + window_ms:
                shown[arm, at] = 1
        for watch in one.visit.watches:
            at = number_of.get(watch.video.video_id)
            if at is None:
                continue
            views[arm, at] += 1
            if views[arm, at] == threshold:
                took_ms = one.ask.time_ms - counted[at].time_ms
                times[arm, at] = min(times[arm, at], took_ms)
    return times, shown


def _vocabulary(asked: Sequence[Asked], arm: str) -> int:
    """Return how many videos, the most shown first, make up 95 % of an arm's impressions."""
    shown = Counter(
        video_id for one in asked if one.user.arm == arm for video_id in one.answer.video_ids
    )
    left, found = VOCABULARY_SHARE * shown.total(), 0
    for _, count in shown.most_common():
        if left <= 0:
            break
        left -= count
        found += 1
    return found


def _resampled(rng: np.random.Generator, count: int) -> Floats:
    """Return how often each of `count` is drawn, shape [1 + R, count]; the first row is the sample itself."""
    if not count:
        return np.zeros((RESAMPLES + 1, 0))
    drawn = rng.multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    return np.concatenate([np.ones((1, count)), drawn])


def _over(above: Floats, below: Floats) -> Floats:
    """Return the quotients; no number where nothing can be divided by."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(below == 0, np.nan, above / below)


def _mean(values: Floats, weights: Floats) -> Floats:
    return np.asarray(values @ weights.T / weights.sum(1))


def _quantile(values: Floats, weights: Floats, share: float) -> Floats:
    """Return the value that `share` of all do not exceed, in each resample; shape [A, 1 + R]."""
    order = np.argsort(values, axis=1, kind="stable")
    found = np.empty((len(values), len(weights)))
    for arm, ascending in enumerate(order):
        filled = np.cumsum(weights[:, ascending], axis=1)
        first = np.argmax(filled >= share * filled[:, -1:], axis=1)
        found[arm] = values[arm, ascending][first]
    return found


def _estimate(values: Floats) -> Estimate:
    """Return the first value, with the interval of the others."""
    known = values[1:][np.isfinite(values[1:])]
    if not len(known):
        return Estimate(float(values[0]), float("nan"), float("nan"))
    low, high = np.quantile(known, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Estimate(float(values[0]), float(low), float(high))


def _exactly(value: float) -> Estimate:
    return Estimate(value, value, value)
