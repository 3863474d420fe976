"""How long a soak runs, under which load and which retention; knows nothing of what is done with them."""

from __future__ import annotations

from dataclasses import dataclass

from infra.settings import Settings, with_values
from streams.arms import LRM, LRM_FRESH
from streams.events import TWO_TOWER_CLUSTER
from streams.topics import (
    ALL,
    ASSIGNMENTS,
    CODES,
    COUNTS,
    IMPRESSIONS,
    SHARDS,
    SWAPS,
    UPLOADS,
    WATCHES,
    Cleanup,
)

FOLDER = "soak"
ARMS = (LRM, LRM_FRESH, TWO_TOWER_CLUSTER)
EVENT_HOURS = 36.0
"""Of event time in a run: hours and windows are to end within it, so events' clocks run faster than the wall's."""
RETENTION_MIN_S, RETENTION_MAX_S = 150.0, 240.0
"""Longer than a process takes to be back and to catch up: who is away longer than that loses records."""
SHARDS_RETENTION_S = 240.0
"""Training waits for Ray, which takes a minute or two to be back where cores are few."""
ORPHAN_AGE_S = 90.0
FORGOTTEN = tuple(
    topic.name
    for topic in (UPLOADS, CODES, ASSIGNMENTS, WATCHES, SHARDS, IMPRESSIONS, SWAPS, COUNTS)
)
"""Topics whose retention is shortened. Not those of dead letters and `video.servable`, which grow little and are
what a later look and a replica's start go by."""
COMPACTED = tuple(topic.name for topic in ALL if topic.cleanup is Cleanup.COMPACT)
INTERNAL = ("__consumer_offsets", "__transaction_state")


@dataclass(frozen=True, kw_only=True)
class SoakOptions:
    """What changes per run.

    Attributes:
        minutes: of load, from when everything works; bootstrap, start and drain come on top.
        share: of MovieLens that is the past.
        live_videos_max: uploads of ours that are live; each further one removes the oldest, later than its window ends.
        clip_every: one of so many uploads is of a real clip, which is decoded.
        bad_every: one of so many uploads, and of so many watches, cannot be read.
        duplicate_every: one of so many watches is sent twice.
    """

    minutes: float = 30.0
    seed: int = 0
    share: float = 0.1
    uploads_per_s: float = 1.0
    watches_per_s: float = 15.0
    requests_per_s: float = 3.0
    users: int = 300
    live_videos_max: int = 300
    clip_every: int = 15
    bad_every: int = 25
    duplicate_every: int = 40

    def __post_init__(self) -> None:
        if not self.load_s >= 1.5 * RETENTION_MIN_S:
            raise ValueError(
                f"{self.minutes} minutes are too short for a retention of {RETENTION_MIN_S:.0f} s; "
                f"take at least {1.5 * RETENTION_MIN_S / 60:.1f}"
            )

    @property
    def load_s(self) -> float:
        """How long the load lasts."""
        return 60.0 * self.minutes

    @property
    def retention_s(self) -> float:
        """How long topics keep records."""
        return min(RETENTION_MAX_S, max(RETENTION_MIN_S, self.load_s / 7))

    @property
    def segment_s(self) -> float:
        """How long a segment takes records; only closed ones are removed, or compacted."""
        return self.retention_s / 5

    @property
    def retained_s(self) -> float:
        """After how long what was written is gone: retention, its segment, and two looks of the broker for it."""
        return self.retention_s + self._until_removed_s

    @property
    def shards_retained_s(self) -> float:
        """After how long a shard's file is gone: the same for its announcement, then two looks of the sealer."""
        return SHARDS_RETENTION_S + self._until_removed_s + 2 * ORPHAN_AGE_S

    @property
    def _until_removed_s(self) -> float:
        return self.segment_s + 2 * 15.0 + 5.0

    @property
    def event_speed(self) -> float:
        """How much faster than the wall clock the events' clock runs."""
        return EVENT_HOURS * 3600 / self.load_s


def settings_of(settings: Settings, options: SoakOptions, *, ports: dict[str, int]) -> Settings:
    """Return settings for the run: `ports` by the name of a setting, and everything that ages ages fast."""
    return with_values(
        settings,
        seed=options.seed,
        experiment__arms=ARMS,
        serve__smoothing=1.0,  # so that each arm brings new videos to people
        serve__fresh_smoothing=1.0,
        watches__orphan_age_s=ORPHAN_AGE_S,
        training__keep_checkpoints=3,
        freshness__new_video_age_h=EVENT_HOURS / 6,
        freshness__window_h=EVENT_HOURS / 12,
        freshness__lateness_s=1_800.0,
        freshness__view_threshold=3,
        freshness__hours=12,
        serve__fresh_max_age_h=EVENT_HOURS / 6,
        table__head=100,
        table__first_build_s=0.2 * options.load_s,
        table__interval_h=0.3 * options.load_s / 3600,
        log__file_max_bytes=200_000,
        log__format="json",
        **ports,
    )


def topic_configs(options: SoakOptions) -> dict[str, dict[str, str]]:
    """Return what is set on the broker, by topic: the retention of those that forget, short segments for all others."""
    segment = {
        "segment.ms": str(round(1000 * options.segment_s)),
        "file.delete.delay.ms": "1000",
    }
    compaction = segment | {"min.cleanable.dirty.ratio": "0.1"}
    retention = segment | {"retention.ms": str(round(1000 * options.retention_s))}
    return {
        **dict.fromkeys(FORGOTTEN, retention),
        SHARDS.name: segment | {"retention.ms": str(round(1000 * SHARDS_RETENTION_S))},
        **dict.fromkeys(COMPACTED, compaction),
        **dict.fromkeys(INTERNAL, compaction),
    }
