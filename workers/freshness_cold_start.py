"""Kuaishou's figures by arm: how many new videos are shown, and how fast they gather views; knows nothing of Kafka.

*Coverage* is the share of impressions that are new videos. *Velocity* is how fast new videos reach the view threshold:
the time from upload until then, and the share of those whose window is over that reached it within. An arm's threshold
is its share of the users of the whole one, so that an arm of few users is not called slow for that.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from workers.freshness_arms import Hours, Surfaces, Tally, Vocabularies, total
from workers.freshness_delays import durations_report
from workers.freshness_rules import HOUR_MS, FreshnessRules
from workers.freshness_videos import NewVideos

SHOWN_HOURS = 48
"""Newest hours of an arm that are reported one by one."""


@dataclass
class _Cohort:
    """New videos, all of them or those of one hour of uploads."""

    new_videos: int = 0
    windows_over: int = 0


@dataclass
class _Gathered:
    """What an arm did for a cohort; `over_reached` counts those whose window is over."""

    shown: int = 0
    reached: int = 0
    over_reached: int = 0
    after_ms: list[int] = field(default_factory=list)


def cold_start_report(
    videos: NewVideos, hours: Hours, vocabularies: Vocabularies, rules: FreshnessRules
) -> dict[str, Any]:
    """Return the figures of every arm of the settings, and of every other one that showed anything."""
    cohorts = _cohorts(videos, rules)
    gathered = _gathered(videos, rules)
    arms = sorted(set(rules.shares) | hours.arms())
    everything = _sum_of(cohorts)
    return {
        "new_max_age_h": rules.new_age_ms / HOUR_MS,
        "window_h": rules.window_ms / HOUR_MS,
        "view_threshold": rules.view_threshold,
        "lateness_s": rules.lateness_ms / 1000,
        "arms": {
            arm: {
                "share_of_users": rules.shares.get(arm),
                **_arm_report(hours.of_arm(arm)),
                **_videos_report(everything, _all_of(gathered.get(arm, {}))),
                "view_threshold": rules.threshold_of(arm),
                "effective_vocabulary": vocabularies.effective(arm),
                "hours": _hours_report(
                    hours.of_arm(arm), cohorts, gathered.get(arm, {}), videos.clock_ms, rules
                ),
            }
            for arm in arms
        },
    }


def _is_over(upload_time_ms: int, videos: NewVideos, rules: FreshnessRules) -> bool:
    return upload_time_ms + rules.window_ms + rules.lateness_ms <= videos.clock_ms


def _cohorts(videos: NewVideos, rules: FreshnessRules) -> dict[int, _Cohort]:
    """Return the new videos by the hour of their upload."""
    found: defaultdict[int, _Cohort] = defaultdict(_Cohort)
    for way in videos.live():
        cohort = found[way.upload_time_ms // HOUR_MS * HOUR_MS]
        cohort.new_videos += 1
        cohort.windows_over += _is_over(way.upload_time_ms, videos, rules)
    return found


def _gathered(videos: NewVideos, rules: FreshnessRules) -> dict[str, dict[int, _Gathered]]:
    """Return what each arm did for the new videos, by the hour of their upload."""
    found: defaultdict[str, defaultdict[int, _Gathered]] = defaultdict(
        lambda: defaultdict(_Gathered)
    )
    for way in videos.live():
        hour = way.upload_time_ms // HOUR_MS * HOUR_MS
        is_over = _is_over(way.upload_time_ms, videos, rules)
        for arm, reach in way.arms.items():
            gathered = found[arm][hour]
            gathered.shown += reach.shown_time_ms is not None
            if reach.after_ms is not None and reach.after_ms <= rules.window_ms:
                gathered.reached += 1
                gathered.over_reached += is_over
                gathered.after_ms.append(reach.after_ms)
    return {arm: dict(by_hour) for arm, by_hour in found.items()}


def _sum_of(cohorts: dict[int, _Cohort]) -> _Cohort:
    return _Cohort(
        sum(one.new_videos for one in cohorts.values()),
        sum(one.windows_over for one in cohorts.values()),
    )


def _all_of(by_hour: dict[int, _Gathered]) -> _Gathered:
    found = _Gathered()
    for one in by_hour.values():
        found.shown += one.shown
        found.reached += one.reached
        found.over_reached += one.over_reached
        found.after_ms += one.after_ms
    return found


def _arm_report(hours: list[tuple[int, Surfaces]]) -> dict[str, Any]:
    by_surface: defaultdict[str, Tally] = defaultdict(Tally)
    for _, surfaces in hours:
        for surface, tally in surfaces.items():
            by_surface[surface].add(tally)
    whole = total(by_surface.values())
    return {
        **whole.report(),
        "watched_s_per_impression": whole.per_impression(whole.watched_ds / 10),
        "surfaces": {surface: tally.report() for surface, tally in sorted(by_surface.items())},
    }


def _videos_report(cohort: _Cohort, gathered: _Gathered) -> dict[str, Any]:
    return {
        "new_videos": cohort.new_videos,
        "new_videos_shown": gathered.shown,
        "shown_share": _share(gathered.shown, cohort.new_videos),
        "windows_over": cohort.windows_over,
        "reached": gathered.reached,
        "reached_share": _share(gathered.over_reached, cohort.windows_over),
        "time_to_threshold_s": durations_report(gathered.after_ms, quantiles=(0.5, 0.9)),
    }


def _hours_report(
    hours: list[tuple[int, Surfaces]],
    cohorts: dict[int, _Cohort],
    gathered: dict[int, _Gathered],
    clock_ms: int,
    rules: FreshnessRules,
) -> list[dict[str, Any]]:
    """Return the newest hours, oldest first: what was shown in each, and what became of the videos uploaded in it."""
    shown = dict(hours)
    found = []
    for hour in sorted(shown.keys() | cohorts.keys())[-SHOWN_HOURS:]:
        surfaces = shown.get(hour, {})
        own = _videos_report(cohorts.get(hour, _Cohort()), gathered.get(hour, _Gathered()))
        found.append(
            {
                "hour_start_ms": hour,
                "final": hour + HOUR_MS + rules.lateness_ms <= clock_ms,
                **total(surfaces.values()).report(),
                "surfaces": {
                    surface: tally.shown_report() for surface, tally in sorted(surfaces.items())
                },
                "new_videos": own["new_videos"],
                "new_videos_shown": own["new_videos_shown"],
                "reached": own["reached"],
                "velocity": own["reached_share"],
                "time_to_threshold_p50_s": own["time_to_threshold_s"]["p50"],
            }
        )
    return found


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
