from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from streams.clips import with_clips
from streams.events import VideoUploaded, WatchEvent
from streams.timeline import Timeline, on_timeline

ROOT = Path(__file__).parents[3]


def watches(count: int) -> Timeline:
    return Timeline(
        tuple(
            on_timeline(
                WatchEvent(
                    event_id=f"w-{i}",
                    event_time_ms=1000 * i,
                    user_id="ana",
                    video_id="v",
                    surface="home",
                    watched_s=1,
                    duration_s=1,
                )
            )
            for i in range(count)
        )
    )


def test_clips_are_spread_evenly_and_in_order_of_event_time() -> None:
    timeline = with_clips(watches(90), num_uploads=8)
    at = [i for i, each in enumerate(timeline.events) if isinstance(each.event, VideoUploaded)]
    assert [b - a for a, b in pairwise(at)] == [11] * 7
    times = [each.event_time_ms for each in timeline.events]
    assert times == sorted(times)


def test_nothing_of_the_timeline_is_lost_and_nobody_watches_a_clip() -> None:
    timeline = with_clips(watches(20), num_uploads=8)
    assert timeline.watches() == watches(20).watches()
    assert timeline.counts()["uploaded"] == 8


def test_each_upload_is_a_video_of_its_own_with_a_file_that_exists() -> None:
    uploads = with_clips(watches(20), num_uploads=8).uploads()
    assert len({upload.video_id for upload in uploads}) == 8
    assert len({upload.event_id for upload in uploads}) == 8
    assert len({upload.media_uri for upload in uploads}) == 2
    assert all((ROOT / (upload.media_uri or "")).is_file() for upload in uploads)


@pytest.mark.parametrize(("count", "expected"), [(0, 0), (1, 8)])
def test_short_timeline_is_no_obstacle(count: int, expected: int) -> None:
    assert with_clips(watches(count), num_uploads=8).counts()["uploaded"] == expected
