from __future__ import annotations

import pytest

from serve.trace_view import Milestones
from serve.video_state import video_state
from streams.events import SemanticIdAssigned

ASSIGNED = SemanticIdAssigned(
    video_id="v", title="Film", codes=(1, 2), disambiguation_code=0, codebook_version=4,
    embedding_f16="", upload_time_ms=5, upload_append_time_ms=10, upload_position=3,
    featurized_time_ms=12, assigned_time_ms=13,
)  # fmt: skip


@pytest.mark.parametrize(
    ("known", "came", "servable", "expected"),
    [
        (False, Milestones(), False, "unknown"),
        (False, Milestones(upload_append_time_ms=10), False, "uploaded"),
        (False, Milestones(upload_append_time_ms=10, refused_time_ms=11), False, "refused"),
        (True, Milestones(), False, "assigned"),
        (True, Milestones(refused_time_ms=99), True, "servable"),  # an edit was refused
        (True, Milestones(first_shown_time_ms=20), True, "shown"),
        (True, Milestones(first_shown_time_ms=20, first_watched_time_ms=30), True, "watched"),
        (True, Milestones(removed_time_ms=40), True, "removed"),
        (False, Milestones(upload_append_time_ms=10, removed_time_ms=40), False, "removed"),
    ],
)
def test_state_is_the_furthest_that_a_video_has_come(
    known: bool, came: Milestones, servable: bool, expected: str
) -> None:
    found = video_state("v", ASSIGNED if known else None, came, servable=servable)
    assert (found.state, found.assigned, found.servable) == (expected, known, servable)


def test_path_has_times_and_versions() -> None:
    came = Milestones(
        upload_append_time_ms=11, servable_time_ms=14, learned_time_ms=15, learned_model_version=7,
        first_shown_time_ms=16, first_shown_model_version=6, first_shown_arm="lrm",
        first_watched_time_ms=17,
    )  # fmt: skip
    assert video_state("v", ASSIGNED, came, servable=True).model_dump(exclude_none=True) == {
        "video_id": "v", "state": "watched", "assigned": True, "servable": True,
        "semantic_id": "A1 B2 C0", "codebook_version": 4, "title": "Film", "upload_time_ms": 5,
        "upload_append_time_ms": 10, "featurized_time_ms": 12, "assigned_time_ms": 13,
        "learned_time_ms": 15, "learned_model_version": 7, "servable_time_ms": 14,
        "first_shown_time_ms": 16, "first_shown_model_version": 6, "first_shown_arm": "lrm",
        "first_watched_time_ms": 17,
    }  # fmt: skip


def test_edited_video_was_uploaded_when_it_first_was_and_not_when_it_was_edited() -> None:
    came = Milestones(upload_append_time_ms=3, servable_time_ms=4, first_shown_time_ms=5)
    found = video_state("v", ASSIGNED, came, servable=True)
    assert (found.upload_append_time_ms, found.edited_time_ms) == (3, 10)
    longer_ago_than_the_log = video_state("v", ASSIGNED, Milestones(), servable=True)
    assert longer_ago_than_the_log.upload_append_time_ms == 10
    assert longer_ago_than_the_log.edited_time_ms is None
