"""The new videos, one by one: how far each has come, and how fast it gathers views in each arm.

A video is followed from its upload until it is no longer new and its window is over for good. What happened to it comes
from several topics, in any order between them: of everything the earliest counts, views are sums, and what comes
before the upload waits for it. So the same records make the same figures, however they were interleaved.

What is dropped: the videos with the oldest upload times where there are more than `videos_max`; of what waits for an
upload, all but the `EARLY_MAX` videos heard of last, which are mostly old ones, whose upload never comes. Videos of the
bootstrap and of a backfilled catalogue were never uploaded here and are not followed. A video that is removed is
left out.

Knows nothing of Kafka, and of how all of them together are reported (`workers.freshness_cold_start`).
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from typing import Any, NamedTuple

import msgspec

from streams.events import SemanticIdAssigned, VideoCounts, VideoServable, VideoUploaded
from workers.freshness_delays import UPLOAD_TO_FIRST_SHOWN, UPLOAD_TO_FIRST_WATCHED, Delay
from workers.freshness_rules import FreshnessRules

EARLY_MAX = 10_000
NEWEST = 20
TITLE_CHARS = 200
_OVER = 1.1  # so far beyond `videos_max` it may grow between two clearings


class Place(NamedTuple):
    """Where a video is shown."""

    arm: str
    surface: str


Windows = dict[int, tuple[int, int]]
"""Start to length, both in ms, and views."""


class Reach(msgspec.Struct, array_like=True, gc=False):
    """What one surface of an arm did for a video.

    Attributes:
        shown_time_ms: event time of its first impression.
        after_ms: event time from the upload to the arm's view threshold, by views on this surface alone; None while it
            is not reached.
        windows: no later than those by which the threshold is reached.
    """

    shown_time_ms: int | None = None
    after_ms: int | None = None
    windows: Windows = msgspec.field(default_factory=dict)

    def add(self, start_ms: int, window_ms: int, views: int, *, enough: int) -> None:
        """Add views; forget what lies behind the window by which there are `enough`.

        Later records only make that window an earlier one, so nothing is forgotten that would count.
        """
        before_ms, before = self.windows.get(start_ms, (0, 0))
        self.windows[start_ms] = (max(window_ms, before_ms), views + before)
        if len(self.windows) == 1:
            return
        seen = 0
        for start in sorted(self.windows):
            if seen >= enough:
                del self.windows[start]
            else:
                seen += self.windows[start][1]


class ArmReach(msgspec.Struct, array_like=True, gc=False):
    """What one arm did for a video: the same on all its surfaces together."""

    after_ms: int | None = None
    surfaces: dict[str, Reach] = msgspec.field(default_factory=dict)

    def of(self, surface: str) -> Reach:
        """Return what a surface did, to be added to."""
        found = self.surfaces.get(surface)
        if found is None:
            found = self.surfaces[surface] = Reach()
        return found

    def is_shown(self) -> bool:
        """Return whether any surface showed the video."""
        return any(reach.shown_time_ms is not None for reach in self.surfaces.values())

    def judge(self, upload_time_ms: int, threshold: int) -> None:
        """Compute anew when the threshold was reached, on each surface and on all together."""
        for reach in self.surfaces.values():
            reach.after_ms = _reached_after_ms(reach.windows, upload_time_ms, threshold)
        self.after_ms = _reached_after_ms(self._windows(), upload_time_ms, threshold)

    def _windows(self) -> Windows:
        together: Windows = {}
        for reach in self.surfaces.values():
            for start_ms, (window_ms, views) in reach.windows.items():
                before_ms, before = together.get(start_ms, (0, 0))
                together[start_ms] = (max(window_ms, before_ms), views + before)
        return together


def _reached_after_ms(windows: Windows, upload_time_ms: int, threshold: int) -> int | None:
    """Return how long after the upload there were `threshold` views; None if there are not so many.

    Views are known by window and taken as evenly spread over it, from the upload on. What was watched before it, by
    the clocks, counts as watched then.
    """
    seen = 0
    for start_ms in sorted(windows):
        window_ms, views = windows[start_ms]
        if seen + views >= threshold:
            begin = max(start_ms, upload_time_ms)
            end = max(start_ms + window_ms, upload_time_ms)
            return begin + (end - begin) * (threshold - seen) // views - upload_time_ms
        seen += views
    return None


class Way(msgspec.Struct, array_like=True, gc=False):
    """How far a video has come.

    Attributes:
        upload_time_ms: event time.
        uploaded_ms, assigned_ms, shown_ms, watched_ms: append times of its first upload, semantic ID, impression, and
            count of watches, which is when the first shard with a watch of it was sealed.
        servable_ms: wall clock of the first replica that had it.
        removed: it is not reported, but keeps its place among those that are followed: what else has one must not
            depend on when the removal was read.
        arms: by name, those that showed it or whose users watched it.
    """

    upload_time_ms: int = 0
    uploaded_ms: int = 0
    assigned_ms: int | None = None
    servable_ms: int | None = None
    shown_ms: int | None = None
    watched_ms: int | None = None
    removed: bool = False
    arms: dict[str, ArmReach] = msgspec.field(default_factory=dict)

    def reach(self, arm: str) -> ArmReach:
        """Return what an arm did for it, to be added to."""
        found = self.arms.get(arm)
        if found is None:
            found = self.arms[arm] = ArmReach()
        return found

    def judge(self, rules: FreshnessRules) -> None:
        """Compute anew when each arm reached its threshold."""
        for arm, reach in self.arms.items():
            reach.judge(self.upload_time_ms, rules.threshold_of(arm))


class NewVideos(msgspec.Struct):
    """All new videos, and the clock that says which are new.

    Attributes:
        clock_ms: newest event time of uploads and impressions; 0 before any.
        ways: by video_id.
        early: of videos whose upload has not come, the one heard of last at the end.
        titles: append time and title of the uploads that were appended last.
    """

    clock_ms: int = 0
    ways: dict[str, Way] = msgspec.field(default_factory=dict)
    early: dict[str, Way] = msgspec.field(default_factory=dict)
    titles: dict[str, tuple[int, str]] = msgspec.field(default_factory=dict)

    def advance(self, event_time_ms: int) -> None:
        """Take in an event's time; the clock never goes back."""
        self.clock_ms = max(self.clock_ms, event_time_ms)

    def oldest_ms(self, rules: FreshnessRules) -> int:
        """Return the upload time from which on videos are followed."""
        return self.clock_ms - rules.followed_ms

    def upload(self, event: VideoUploaded, append_time_ms: int, rules: FreshnessRules) -> None:
        """Begin to follow a video. An update of one that is not followed says nothing of when it was uploaded."""
        video_id = event.video_id
        way = self.ways.get(video_id)
        if event.type == "updated":
            if (held := self.titles.get(video_id)) is not None:
                self.titles[video_id] = (held[0], event.title[:TITLE_CHARS])
            return
        upload_time_ms = event.event_time_ms
        if event.upload_time_ms is not None:
            upload_time_ms = min(upload_time_ms, event.upload_time_ms)
        if not rules.is_plausible(upload_time_ms, append_time_ms):
            return
        self.advance(upload_time_ms)
        if way is not None and not way.removed:  # sent again
            way.upload_time_ms = min(way.upload_time_ms, upload_time_ms)
            way.uploaded_ms = min(way.uploaded_ms, append_time_ms)
        else:
            way = self.early.pop(video_id, None) or Way()
            way.upload_time_ms, way.uploaded_ms = upload_time_ms, append_time_ms
            self.ways[video_id] = way
        way.judge(rules)
        self._name(video_id, way.uploaded_ms, event.title)
        if len(self.ways) > _OVER * rules.videos_max:
            self.clear(rules)

    def _name(self, video_id: str, uploaded_ms: int, title: str) -> None:
        self.titles[video_id] = (uploaded_ms, title[:TITLE_CHARS])
        if len(self.titles) > NEWEST:
            del self.titles[min(self.titles, key=self._appended)]

    def _appended(self, video_id: str) -> tuple[int, str]:
        return self.titles[video_id][0], video_id

    def remove(self, video_id: str) -> None:
        """Leave a video out of all figures from now on."""
        self.early.pop(video_id, None)
        if (way := self.ways.get(video_id)) is not None:
            way.removed = True

    def assigned(
        self, event: SemanticIdAssigned, append_time_ms: int, rules: FreshnessRules
    ) -> None:
        """Note that a video has a semantic ID; a later one of it, after an edit, is not the first."""
        if event.upload_position < 0 or event.upload_time_ms < self.oldest_ms(rules):
            return
        way = self._way(event.video_id)
        way.assigned_ms = _first(way.assigned_ms, append_time_ms)

    def servable(self, event: VideoServable) -> None:
        """Note that a replica has a video."""
        way = self._way(event.video_id)
        way.servable_ms = _first(way.servable_ms, event.servable_time_ms)

    def shown(
        self, video_id: str, at: Place | None, event_time_ms: int, append_time_ms: int
    ) -> list[Delay]:
        """Note that a new video was shown, by an arm or by none that is known; return the delay if it is the first."""
        way = self._way(video_id)
        if at is not None:
            reach = way.reach(at.arm).of(at.surface)
            reach.shown_time_ms = _first(reach.shown_time_ms, event_time_ms)
        is_first, way.shown_ms = way.shown_ms is None, _first(way.shown_ms, append_time_ms)
        return _since_upload(UPLOAD_TO_FIRST_SHOWN, way, append_time_ms) if is_first else []

    def watched(
        self, counts: VideoCounts, append_time_ms: int, rules: FreshnessRules
    ) -> list[Delay]:
        """Add a window's views to an arm's; return the delay if they are the first of all."""
        window_ms = counts.window_s * 1000
        if counts.views <= 0:
            return []
        way = self._way(counts.video_id)
        if counts.arm in rules.shares:
            reach = way.reach(counts.arm)
            reach.of(counts.surface).add(
                counts.window_start_ms, window_ms, counts.views, enough=rules.view_threshold
            )
            reach.judge(way.upload_time_ms, rules.threshold_of(counts.arm))
        is_first, way.watched_ms = way.watched_ms is None, _first(way.watched_ms, append_time_ms)
        return _since_upload(UPLOAD_TO_FIRST_WATCHED, way, append_time_ms) if is_first else []

    def _way(self, video_id: str) -> Way:
        way = self.ways.get(video_id)
        if way is None:
            way = self.early.pop(video_id, None) or Way()
            self.early[video_id] = way  # at the end
            if len(self.early) > EARLY_MAX:
                del self.early[next(iter(self.early))]
        return way

    def clear(self, rules: FreshnessRules) -> None:
        """Drop the videos that are no longer followed, and the oldest where there are too many."""
        oldest_ms = self.oldest_ms(rules)
        if any(way.upload_time_ms < oldest_ms for way in self.ways.values()):
            self.ways = {
                video_id: way
                for video_id, way in self.ways.items()
                if way.upload_time_ms >= oldest_ms
            }
        if len(self.ways) > rules.videos_max:
            kept = heapq.nlargest(
                rules.videos_max, ((way.upload_time_ms, one) for one, way in self.ways.items())
            )
            self.ways = {video_id: self.ways[video_id] for _, video_id in kept}

    def live(self) -> Iterable[Way]:
        """Return the videos that are reported."""
        return (way for way in self.ways.values() if not way.removed)

    def newest(self) -> list[dict[str, Any]]:
        """Return how far the videos have come that were appended last, newest first."""
        found = []
        for video_id in sorted(self.titles, key=self._appended, reverse=True):
            way = self.ways.get(video_id)
            if way is None or way.removed:
                continue
            found.append(
                {
                    "video_id": video_id,
                    "title": self.titles[video_id][1],
                    "upload_time_ms": way.upload_time_ms,
                    "uploaded_ms": way.uploaded_ms,
                    "assigned_ms": way.assigned_ms,
                    "servable_ms": way.servable_ms,
                    "first_shown_ms": way.shown_ms,
                    "first_watched_ms": way.watched_ms,
                }
            )
        return found


def _first(known_ms: int | None, time_ms: int) -> int:
    return time_ms if known_ms is None else min(known_ms, time_ms)


def _since_upload(stage: str, way: Way, append_time_ms: int) -> list[Delay]:
    if not way.uploaded_ms:
        return []
    return [Delay(stage, (append_time_ms - way.uploaded_ms) / 1000, append_time_ms)]
