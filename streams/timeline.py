"""Events in the order in which they happened, ready to be replayed; knows nothing of where they come from or go to."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

from streams.events import VideoUploaded, WatchEvent
from streams.topics import UPLOADS, WATCHES, Topic


class TimelineEvent(NamedTuple):
    """One upload, update or watch, with its place in event time."""

    event_time_ms: int
    topic: Topic
    event: VideoUploaded | WatchEvent

    @property
    def key(self) -> str:
        """The record key that the topic's contract asks for."""
        return self.event.user_id if isinstance(self.event, WatchEvent) else self.event.video_id

    @property
    def kind(self) -> str:
        """`uploaded`, `updated` or `watched`."""
        return "watched" if isinstance(self.event, WatchEvent) else self.event.type


@dataclass(frozen=True)
class Timeline:
    """Events sorted by event time; equal times keep one stable order."""

    events: tuple[TimelineEvent, ...]

    def counts(self) -> Counter[str]:
        """Return how many events there are of each kind."""
        return Counter(event.kind for event in self.events)

    def watches(self) -> list[WatchEvent]:
        """Return the watches alone, in order."""
        return [each.event for each in self.events if isinstance(each.event, WatchEvent)]

    def uploads(self) -> list[VideoUploaded]:
        """Return the uploads and updates alone, in order."""
        return [each.event for each in self.events if isinstance(each.event, VideoUploaded)]


def on_timeline(event: VideoUploaded | WatchEvent) -> TimelineEvent:
    """Return the event with its topic, at its own event time."""
    topic = WATCHES if isinstance(event, WatchEvent) else UPLOADS
    return TimelineEvent(event.event_time_ms, topic, event)


def split(timeline: Timeline, share: float) -> tuple[Timeline, Timeline]:
    """Return the part up to the watch that completes `share` of all watches, and the part after it.

    Raises:
        ValueError: `share` is not within [0, 1].
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share is {share}; expected a number from 0 to 1")
    events = timeline.events
    watch_positions = [at for at, each in enumerate(events) if isinstance(each.event, WatchEvent)]
    num_earlier = round(share * len(watch_positions))
    if num_earlier == len(watch_positions):
        return timeline, Timeline(())
    cut = watch_positions[num_earlier - 1] + 1 if num_earlier else 0
    return Timeline(events[:cut]), Timeline(events[cut:])
