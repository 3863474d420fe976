from __future__ import annotations

import random

import pytest

from serve.follower import Record
from serve.trace_view import Milestones, TraceView
from streams.events import (
    CheckpointPromoted,
    ImpressionItem,
    ImpressionsShown,
    VideoServable,
    to_json,
)
from streams.topics import IMPRESSIONS, SEMANTIC_IDS, SERVABLE


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
        assert found.first_shown_model_version == 1


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


def test_removed_video_is_forgotten_and_an_unknown_one_has_no_milestones() -> None:
    view = TraceView()
    view.assigned("v", place(0))
    view.take([servable("v", 1), shown("v", at_ms=1, version=1)])
    view.removed("v")
    assert view.of("v") == view.of("never heard of") == Milestones()


@pytest.mark.parametrize("topic", [SERVABLE, IMPRESSIONS])
def test_undecodable_record_is_passed_over(topic: object) -> None:
    view = TraceView()
    view.take([Record(topic, b"v", b"{"), servable("v", 3)])  # type: ignore[arg-type]
    assert view.of("v").servable_time_ms == 3
