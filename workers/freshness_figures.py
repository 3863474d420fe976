"""All figures of freshness, as numbers that events add to; knows nothing of Kafka, Prometheus and files.

Events of several topics come in any order between them, and the figures depend on what was counted, not on how it was
interleaved: sums, firsts, and joins that whichever part comes last completes. So a restart that goes on from saved
figures ends where an uninterrupted run does. Everything is bounded, and what is dropped for that is said where it is
held: the new videos (`workers.freshness_videos`), the hours (`workers.freshness_arms`), promotions and shards
(`workers.freshness_models`), and here the uploads and edits of which both halves are awaited.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from streams.events import (
    CheckpointPromoted,
    ImpressionsShown,
    SemanticIdAssigned,
    ShardSealed,
    SwapReported,
    VideoCounts,
    VideoRemoved,
    VideoServable,
    VideoUploaded,
)
from streams.impressions import Shown
from workers.freshness_arms import Arms, Hours, Tally, Vocabularies, tally_of, total
from workers.freshness_codebook import CodebookHealth
from workers.freshness_cold_start import cold_start_report
from workers.freshness_delays import (
    ADDED_UP,
    UPLOAD_TO_FIRST_SHOWN,
    UPLOAD_TO_FIRST_WATCHED,
    UPLOAD_TO_SERVABLE,
    UPLOAD_TO_SID,
    Delay,
    StageDelays,
    delays_report,
)
from workers.freshness_models import ModelFigures
from workers.freshness_rules import FreshnessRules
from workers.freshness_videos import NewVideos, Place

RECENT_VIDEOS = 4096
"""Uploads and edits of which both halves are awaited; the two are seconds apart."""


class _Upload(msgspec.Struct, array_like=True):
    """What is known of one upload: `assigned` once its semantic ID came, the time once a replica had it."""

    assigned: bool = False
    servable_time_ms: int | None = None


class Figures(msgspec.Struct):
    """All figures, and the halves of joins that they wait with.

    Attributes:
        rules: what counts as new, as reached and as final.
        shown: impressions by arm, then surface, all so far.
        delays: by stage, all so far, of those that are added up for good.
        uploads: the last `RECENT_VIDEOS`, by video_id and append time.
    """

    rules: FreshnessRules = msgspec.field(default_factory=FreshnessRules)
    shown: Arms = msgspec.field(default_factory=dict)
    delays: dict[str, StageDelays] = msgspec.field(
        default_factory=lambda: {stage: StageDelays() for stage in ADDED_UP}
    )
    uploads: dict[str, _Upload] = msgspec.field(default_factory=dict)
    videos: NewVideos = msgspec.field(default_factory=NewVideos)
    hours: Hours = msgspec.field(default_factory=Hours)
    vocabularies: Vocabularies = msgspec.field(default_factory=Vocabularies)
    models: ModelFigures = msgspec.field(default_factory=ModelFigures)
    codebook: CodebookHealth = msgspec.field(default_factory=CodebookHealth)

    def go_by(self, rules: FreshnessRules) -> None:
        """Use other rules from now on. What the ones before had dropped does not come back."""
        if rules != self.rules:
            self.rules = rules
            for way in self.videos.ways.values():
                way.judge(rules)

    def count_upload(self, event: VideoUploaded | VideoRemoved, append_time_ms: int) -> list[Delay]:
        """Add an upload, an update or a removal; none of them completes a delay."""
        if isinstance(event, VideoRemoved):
            self.videos.remove(event.video_id)
        else:
            self.videos.upload(event, append_time_ms, self.rules)
        return []

    def count_impressions(
        self, event: ImpressionsShown | Shown, append_time_ms: int
    ) -> list[Delay]:
        """Add an answer's videos; return the delays of those that were never shown before."""
        tallied = Tally(len(event.items), sum(item.new for item in event.items))
        tally_of(self.shown, event.arm, event.surface).add(tallied)
        if not self.rules.is_plausible(event.event_time_ms, append_time_ms):
            return []
        self.videos.advance(event.event_time_ms)
        self._hour(event.event_time_ms, event.arm, event.surface).add(tallied)
        add = self.vocabularies.of(event.event_time_ms, event.arm).add
        at = Place(event.arm, event.surface) if event.arm in self.rules.shares else None
        delays: list[Delay] = []
        for item in event.items:
            add(item.video_id)
            if item.new:
                delays += self.videos.shown(item.video_id, at, event.event_time_ms, append_time_ms)
        return delays

    def count_views(self, event: VideoCounts, append_time_ms: int) -> list[Delay]:
        """Add a window's watches of a video; return the delay if it was never watched before.

        Watches name their arm themselves, so those of an arm that is not in the settings are nobody's.
        """
        if not self.rules.is_plausible(event.window_start_ms, append_time_ms):
            return []
        if event.arm in self.rules.shares:
            watched = Tally(
                clicks=max(0, event.views),
                likes=max(0, event.likes),
                watched_ds=max(0, round(event.watched_s * 10)),
            )
            self._hour(event.window_start_ms, event.arm, event.surface).add(watched)
        return self.videos.watched(event, append_time_ms, self.rules)

    def count_assigned(self, event: SemanticIdAssigned, append_time_ms: int) -> list[Delay]:
        """Add an assignment that was appended at a time; return the delays that are complete now.

        One that is published again adds nothing, and one of the bootstrap's, which never was in the stream, no delay.
        """
        self.videos.assigned(event, append_time_ms, self.rules)
        if event.upload_position < 0:
            self.codebook.add(event)
            return []
        upload = self._upload(event.video_id, event.upload_append_time_ms)
        if upload.assigned:
            return []
        upload.assigned = True
        self.codebook.add(event)
        uploaded_ms = event.upload_append_time_ms
        delays = [Delay(UPLOAD_TO_SID, (append_time_ms - uploaded_ms) / 1000, append_time_ms)]
        if upload.servable_time_ms is not None:
            delays.append(_to_servable(upload.servable_time_ms, uploaded_ms))
        return self._add(delays)

    def count_servable(self, event: VideoServable) -> list[Delay]:
        """Add that a replica has a video; return the delay if it is the first and the video came with the stream."""
        self.videos.servable(event)
        upload = self._upload(event.video_id, event.upload_append_time_ms)
        if upload.servable_time_ms is not None:
            return []
        upload.servable_time_ms = event.servable_time_ms
        if not upload.assigned:
            return []
        return self._add([_to_servable(event.servable_time_ms, event.upload_append_time_ms)])

    def count_shard(self, event: ShardSealed, append_time_ms: int) -> list[Delay]:
        """Add an announced shard; return the delays that are complete now."""
        return self._add(self.models.sealed(event, append_time_ms))

    def count_promoted(self, event: CheckpointPromoted) -> list[Delay]:
        """Add a promotion; return the delays that are complete now."""
        return self._add(self.models.promoted(event))

    def count_swap(self, event: SwapReported) -> list[Delay]:
        """Add a swap, or that a replica refused one; return the delays that are complete now."""
        return self._add(self.models.swapped(event))

    def report(self) -> dict[str, Any]:
        """Return the figures as people read them; drops the videos that are no longer followed."""
        self.videos.clear(self.rules)
        clock_ms = self.videos.clock_ms
        whole = total(tally for surfaces in self.shown.values() for tally in surfaces.values())
        return {
            "event_time_ms": clock_ms or None,
            **whole.shown_report(),
            "by_arm": {
                arm: {surface: tally.shown_report() for surface, tally in sorted(surfaces.items())}
                for arm, surfaces in sorted(self.shown.items())
            },
            "cold_start": cold_start_report(self.videos, self.hours, self.vocabularies, self.rules),
            "delays_s": {
                **{stage: delays.report() for stage, delays in self._stages()},
                **self._firsts(),
            },
            **self.models.report(clock_ms),
            "codebook": self.codebook.report(),
            "newest_uploads": self.videos.newest(),
        }

    def _firsts(self) -> dict[str, Any]:
        """Return the delays until the first impression and the first watch, of the new videos that are followed."""
        first_ms = [(way.uploaded_ms, way.shown_ms, way.watched_ms) for way in self.videos.live()]
        found: dict[str, list[Delay]] = {UPLOAD_TO_FIRST_SHOWN: [], UPLOAD_TO_FIRST_WATCHED: []}
        for uploaded_ms, *ends_ms in first_ms:
            for (stage, delays), ended_ms in zip(found.items(), ends_ms, strict=True):
                if ended_ms is not None:
                    delays.append(Delay(stage, (ended_ms - uploaded_ms) / 1000, ended_ms))
        return {stage: delays_report(delays) for stage, delays in found.items()}

    def _stages(self) -> Iterable[tuple[str, StageDelays]]:
        return (*self.delays.items(), *self.models.until_served().items())

    def _hour(self, time_ms: int, arm: str, surface: str) -> Tally:
        return self.hours.tally(time_ms, arm, surface, keep=self.rules.hours)

    def _upload(self, video_id: str, append_time_ms: int) -> _Upload:
        upload = self.uploads.setdefault(f"{append_time_ms}:{video_id}", _Upload())
        while len(self.uploads) > RECENT_VIDEOS:
            del self.uploads[next(iter(self.uploads))]
        return upload

    def _add(self, delays: list[Delay]) -> list[Delay]:
        for delay in delays:
            if delay.stage in self.delays:
                self.delays[delay.stage].add(delay)
        return delays


def _to_servable(servable_time_ms: int, uploaded_ms: int) -> Delay:
    return Delay(UPLOAD_TO_SERVABLE, (servable_time_ms - uploaded_ms) / 1000, servable_time_ms)
