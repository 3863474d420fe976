from __future__ import annotations

import random
from typing import Any

import pytest

from serve.follower import Record
from serve.trace_view import FOLLOWED, Milestones, TraceView
from streams.events import (
    CheckpointPromoted,
    DeadLetter,
    ImpressionItem,
    ImpressionsShown,
    VideoCounts,
    VideoRemoved,
    VideoServable,
    VideoUploaded,
    to_json,
)
from streams.topics import COUNTS, DEAD_LETTERS, IMPRESSIONS, SEMANTIC_IDS, SERVABLE, UPLOADS


def promoted(version: int, offsets: dict[int, int]) -> CheckpointPromoted:
    return CheckpointPromoted(
        model_name="lrm",
        model_version=version,
        codebook_version=1,
        path="p",
        sha256="s",
        metrics={},
        next_semantic_id_offsets=offsets,
        promoted_time_ms=1_000 * version,
    )


def servable(video_id: str, time_ms: int) -> Record:
    said = VideoServable(
        video_id=video_id,
        codebook_version=1,
        semantic_id=(1,),
        replica="r",
        servable_time_ms=time_ms,
        upload_append_time_ms=0,
    )
    return Record(SERVABLE, video_id.encode(), to_json(said))


def shown(*video_ids: str, at_ms: int, version: int) -> Record:
    event = ImpressionsShown(
        event_time_ms=0,
        request_id="r",
        surface="home",
        arm="lrm",
        model_version=version,
        codebook_version=1,
        items=tuple(
            ImpressionItem(video_id=video_id, position=at, source="lrm", age_s=0, new=True)
            for at, video_id in enumerate(video_ids)
        ),
    )
    return Record(IMPRESSIONS, None, to_json(event), append_time_ms=at_ms)


def watched(video_id: str, at_ms: int, views: int = 1) -> Record:
    counts = VideoCounts(
        video_id=video_id, surface="home", arm="lrm", window_start_ms=0, window_s=3600, views=views,
        completed_views=0, likes=0, watched_s=1.0,
    )  # fmt: skip
    return Record(COUNTS, video_id.encode(), to_json(counts), append_time_ms=at_ms)


def upload(video_id: str, kind: Any, at_ms: int) -> Record:
    said = (
        VideoRemoved(video_id=video_id, event_time_ms=1, type=kind)
        if kind == "removed"
        else VideoUploaded(video_id=video_id, event_time_ms=1, title="Title", type=kind)
    )
    return Record(UPLOADS, video_id.encode(), to_json(said), append_time_ms=at_ms)


def letter(key: str, at_ms: int, topic: str = UPLOADS.name) -> Record:
    said = DeadLetter(
        topic=topic, partition=0, offset=0, reason="media_unavailable", detail="", refused_time_ms=1
    )
    return Record(DEAD_LETTERS[UPLOADS.name], key.encode(), to_json(said), append_time_ms=at_ms)


def place(offset: int, partition: int = 0) -> Record:
    return Record(SEMANTIC_IDS, b"", b"", partition=partition, offset=offset)


def test_milestones_are_the_first_of_each_kind_in_whatever_order_records_come() -> None:
    records = [
        servable("v", 30), servable("v", 20), servable("w", 5),
        shown("v", "w", at_ms=50, version=2), shown("v", at_ms=40, version=1),
    ]  # fmt: skip
    for seed in range(5):
        view = TraceView()
        view.take(random.Random(seed).sample(records, len(records)))
        view.take(records)
        found = view.of("v")
        assert (found.servable_time_ms, found.first_shown_time_ms) == (20, 40)
        assert (found.first_shown_model_version, found.first_shown_arm) == (1, "lrm")


def test_video_is_learned_by_the_first_model_that_read_beyond_its_record() -> None:
    view = TraceView()
    view.assigned("v", place(7, partition=1))
    assert view.of("v").learned_model_version is None
    for version, end in ((1, 7), (2, 8), (3, 20)):
        view.promoted(promoted(version, {0: 99, 1: end}))
    view.promoted(promoted(1, {1: 7}))  # a rollback
    assert (view.of("v").learned_model_version, view.of("v").learned_time_ms) == (2, 2_000)


def test_edited_video_is_learned_anew() -> None:
    view = TraceView()
    view.promoted(promoted(1, {0: 5}))
    view.assigned("v", place(4))
    assert view.of("v").learned_model_version == 1
    view.assigned("v", place(5))
    assert view.of("v").learned_model_version is None


def test_removed_video_is_forgotten_but_for_that_and_an_unknown_one_has_no_milestones() -> None:
    view = TraceView()
    view.assigned("v", place(0))
    view.take([servable("v", 1), shown("v", at_ms=1, version=1), watched("v", at_ms=2)])
    view.removed("v", 9)
    assert view.of("v") == Milestones(removed_time_ms=9)
    assert view.of("never heard of") == Milestones()
    view.assigned("v", place(5))  # uploaded again
    assert view.of("v") == Milestones()


def test_first_watch_is_the_first_count_that_says_so() -> None:
    view = TraceView()
    view.take([watched("v", at_ms=30), watched("v", at_ms=20), watched("w", at_ms=5, views=0)])
    view.take([watched("v", at_ms=40)])
    assert view.of("v").first_watched_time_ms == 20
    assert view.of("w").first_watched_time_ms is None


def test_upload_is_known_before_anything_became_of_it() -> None:
    view = TraceView()
    view.take([upload("v", "uploaded", 10), upload("v", "updated", 20)])
    assert view.of("v") == Milestones(upload_append_time_ms=10)
    view.take([upload("v", "removed", 30)])
    assert view.of("v") == Milestones(upload_append_time_ms=10, removed_time_ms=30)
    view.take([upload("v", "uploaded", 40)])
    assert view.of("v") == Milestones(upload_append_time_ms=40)


def test_removed_video_that_is_uploaded_again_is_on_its_way_again() -> None:
    view = TraceView()
    view.removed("v", 9)
    view.take([upload("v", "uploaded", 10)])
    assert view.of("v") == Milestones(upload_append_time_ms=10)


def test_refused_upload_says_why_until_another_is_sent() -> None:
    view = TraceView()
    view.take(
        [upload("v", "uploaded", 10), letter("v", 11), letter("codes", 12, topic="video.codes")]
    )
    found = view.of("v")
    assert (found.refused_time_ms, found.refused_reason) == (11, "media_unavailable")
    assert view.of("codes") == Milestones()
    view.take([upload("v", "uploaded", 20)])
    assert view.of("v").refused_reason is None


def test_of_videos_that_ended_the_last_ones_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.trace_view.MAX_ENDED", 3)
    view = TraceView()
    view.assigned("live again", place(0))
    view.take([upload("live again", "removed", 1), upload("live again", "uploaded", 2)])
    for number in range(10):
        view.take([upload(f"bad{number}", "uploaded", 10), letter(f"bad{number}", 11)])
        view.take([upload(f"gone{number}", "uploaded", 10)])
        view.removed(f"gone{number}", 12)
    assert view.of("bad0") == view.of("gone0") == Milestones()
    assert view.of("gone9") == Milestones(upload_append_time_ms=10, removed_time_ms=12)
    assert view.of("bad9").refused_reason == "media_unavailable"
    assert view.of("live again").upload_append_time_ms == 2


@pytest.mark.parametrize("topic", FOLLOWED)
def test_undecodable_record_is_passed_over(topic: object) -> None:
    view = TraceView()
    view.take([Record(topic, b"v", b"{"), servable("v", 3)])  # type: ignore[arg-type]
    assert view.of("v").servable_time_ms == 3
