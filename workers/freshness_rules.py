"""What counts as new, as reached and as final: the settings as the figures use them; knows nothing of events."""

from __future__ import annotations

import msgspec

from infra.settings import Settings
from streams.arms import shares

HOUR_MS = 3_600_000


class FreshnessRules(msgspec.Struct, frozen=True):
    """The rules that figures are made by; saved with them.

    Attributes:
        new_age_ms: how long a video is new.
        window_ms: how long it has to reach the view threshold.
        lateness_ms: how long after its end an hour, or a window, may still change.
        view_threshold: views, for an arm with all the users.
        hours: newest hours of event time that an arm's figures add up.
        videos_max: new videos that are followed.
        future_slack_ms: further ahead of its record's append time, an event time is a wrong clock.
        shares: of the users, by arm.
    """

    new_age_ms: int = 7 * 24 * HOUR_MS
    window_ms: int = 24 * HOUR_MS
    lateness_ms: int = HOUR_MS
    view_threshold: int = 10
    hours: int = 168
    videos_max: int = 50_000
    future_slack_ms: int = 24 * HOUR_MS
    shares: dict[str, float] = msgspec.field(default_factory=lambda: {"lrm": 1.0})

    @property
    def followed_ms(self) -> int:
        """How long after its upload a video is followed: as long as it is new, its window, and the lateness."""
        return self.new_age_ms + self.window_ms + self.lateness_ms

    def threshold_of(self, arm: str) -> int:
        """Return the views that a video needs from an arm's users: its share of the threshold, at least one."""
        return max(1, round(self.view_threshold * self.shares.get(arm, 1.0)))

    def is_plausible(self, event_time_ms: int, append_time_ms: int) -> bool:
        """Return whether an event's time may be right; one in the future would make everything before it old."""
        return event_time_ms <= append_time_ms + self.future_slack_ms


def rules_of(settings: Settings) -> FreshnessRules:
    """Return the rules that the settings describe.

    Raises:
        ConfigError: the arms of the experiment are no arms.
    """
    freshness = settings.freshness
    return FreshnessRules(
        new_age_ms=round(freshness.new_video_age_h * HOUR_MS),
        window_ms=round(freshness.window_h * HOUR_MS),
        lateness_ms=round(freshness.lateness_s * 1000),
        view_threshold=freshness.view_threshold,
        hours=freshness.hours,
        videos_max=freshness.videos_max,
        future_slack_ms=round(settings.watches.future_slack_s * 1000),
        shares=dict(shares(settings.experiment)),
    )
