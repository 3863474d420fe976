"""Kuaishou's figures by arm: how many new videos are shown, and how fast they gather views; knows nothing of Kafka.

*Coverage* is the share of impressions that are new videos. *Velocity* is how fast new videos reach the view threshold:
the time from upload until then, and the share of those whose window is over that reached it within. An arm's threshold
is its share of the users of the whole one, so that an arm of few users is not called slow for that. On a surface, a
video reaches the threshold of its arm by views there alone: surfaces compare arms, and not one with another.
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
TOGETHER = ""
"""Stands for all surfaces of an arm, in place of one."""


@dataclass
class _Cohort:
    """New videos, all of them or those of one hour of uploads."""

    new_videos: int = 0
    windows_over: int = 0


@dataclass
class _Gathered:
    """What an arm, or one surface of it, did for a cohort; `over_reached` counts those whose window is over."""

    shown: int = 0
    reached: int = 0
    over_reached: int = 0
    after_ms: list[int] = field(default_factory=list)

    def add(self, after_ms: int | None, *, shown: bool, is_over: bool, window_ms: int) -> None:
        """Count a video."""
        self.shown += shown
        if after_ms is not None and after_ms <= window_ms:
            self.reached += 1
            self.over_reached += is_over
            self.after_ms.append(after_ms)


ByHour = dict[int, _Gathered]
BySurface = dict[str, ByHour]
NOTHING = _Gathered()


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
        "newest_hours": rules.hours,
        "arms": {
            arm: {
                "share_of_users": rules.shares.get(arm),
                **_arm_report(hours.of_arm(arm), everything, gathered.get(arm, {})),
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


def _gathered(videos: NewVideos, rules: FreshnessRules) -> dict[str, BySurface]:
    """Return what each arm, and each surface of it, did for the new videos, by the hour of their upload."""
    found: defaultdict[str, defaultdict[str, defaultdict[int, _Gathered]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(_Gathered))
    )
    for way in videos.live():
        hour = way.upload_time_ms // HOUR_MS * HOUR_MS
        is_over = _is_over(way.upload_time_ms, videos, rules)
        for arm, arm_reach in way.arms.items():
            surfaces = found[arm]
            surfaces[TOGETHER][hour].add(
                arm_reach.after_ms,
                shown=arm_reach.is_shown(),
                is_over=is_over,
                window_ms=rules.window_ms,
            )
            for surface, reach in arm_reach.surfaces.items():
                surfaces[surface][hour].add(
                    reach.after_ms,
                    shown=reach.shown_time_ms is not None,
                    is_over=is_over,
                    window_ms=rules.window_ms,
                )
    return {
        arm: {surface: dict(by_hour) for surface, by_hour in surfaces.items()}
        for arm, surfaces in found.items()
    }


def _sum_of(cohorts: dict[int, _Cohort]) -> _Cohort:
    return _Cohort(
        sum(one.new_videos for one in cohorts.values()),
        sum(one.windows_over for one in cohorts.values()),
    )


def _all_of(by_hour: ByHour) -> _Gathered:
    found = _Gathered()
    for one in by_hour.values():
        found.shown += one.shown
        found.reached += one.reached
        found.over_reached += one.over_reached
        found.after_ms += one.after_ms
    return found


def _arm_report(
    hours: list[tuple[int, Surfaces]], cohort: _Cohort, gathered: BySurface
) -> dict[str, Any]:
    by_surface: defaultdict[str, Tally] = defaultdict(Tally)
    for _, surfaces in hours:
        for surface, tally in surfaces.items():
            by_surface[surface].add(tally)
    whole = total(by_surface.values())
    return {
        **whole.report(),
        "watched_s_per_impression": whole.per_impression(whole.watched_ds / 10),
        **_videos_report(cohort, _all_of(gathered.get(TOGETHER, {}))),
        "surfaces": {
            surface: {
                **tally.report(),
                **_videos_report(cohort, _all_of(gathered.get(surface, {}))),
            }
            for surface, tally in sorted(by_surface.items())
        },
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
    gathered: BySurface,
    clock_ms: int,
    rules: FreshnessRules,
) -> list[dict[str, Any]]:
    """Return the newest hours, oldest first: what was shown in each, and what became of the videos uploaded in it."""
    shown = dict(hours)
    found = []
    for hour in sorted(shown.keys() | cohorts.keys())[-SHOWN_HOURS:]:
        surfaces, cohort = shown.get(hour, {}), cohorts.get(hour, _Cohort())
        seen = surfaces.keys() | {
            one for one, by_hour in gathered.items() if one != TOGETHER and hour in by_hour
        }
        found.append(
            {
                "hour_start_ms": hour,
                "final": hour + HOUR_MS + rules.lateness_ms <= clock_ms,
                **total(surfaces.values()).report(),
                "new_videos": cohort.new_videos,
                **_hour_report(cohort, gathered, TOGETHER, hour),
                "surfaces": {
                    surface: {
                        **surfaces.get(surface, Tally()).shown_report(),
                        **_hour_report(cohort, gathered, surface, hour),
                    }
                    for surface in sorted(seen)
                },
            }
        )
    return found


def _hour_report(cohort: _Cohort, gathered: BySurface, surface: str, hour: int) -> dict[str, Any]:
    own = _videos_report(cohort, gathered.get(surface, {}).get(hour, NOTHING))
    return {
        "new_videos_shown": own["new_videos_shown"],
        "reached": own["reached"],
        "velocity": own["reached_share"],
        "time_to_threshold_p50_s": own["time_to_threshold_s"]["p50"],
    }


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
