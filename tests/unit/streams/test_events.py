from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from streams.codec import decode
from streams.events import (
    MAX_TEXT_CHARS,
    DeadLetter,
    ImpressionsShown,
    UserFeatures,
    UserHistory,
    VideoUploaded,
    WatchEvent,
    to_json,
)
from streams.topics import ALL

WATCH: dict[str, Any] = {
    "event_id": "w-1",
    "event_time_ms": 1_000,
    "user_id": "ana",
    "video_id": "v-1",
    "surface": "home",
    "watched_s": 30.0,
    "duration_s": 60.0,
}
MODELS = sorted({model for topic in ALL for model in topic.models}, key=lambda m: m.__name__)


@pytest.mark.parametrize(
    "event",
    [
        WatchEvent(**WATCH),
        WatchEvent(**WATCH, user=UserFeatures(age=30), query="rabbits", liked=True),
        VideoUploaded(event_time_ms=0, video_id="v", title="Ünïcode 🐇", tags=("a", "b")),
        UserHistory(
            user_id="ana",
            video_ids=("v-1",),
            watches="APFTZR4AMgAA",
        ),
        ImpressionsShown(
            event_time_ms=0,
            request_id="r",
            user_id=None,
            surface="home",
            arm="lrm",
            model_version=1,
            codebook_version=1,
            items=(),
        ),
        DeadLetter(topic="t", partition=0, offset=0, reason="empty", detail="", refused_time_ms=0),
    ],
    ids=lambda event: type(event).__name__,
)
def test_event_on_the_wire_reads_back_the_same(event: BaseModel) -> None:
    assert decode(type(event), to_json(event)) == event


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_field_that_may_be_none_may_be_missing_since_none_is_not_written(
    model: type[BaseModel],
) -> None:
    for name, field in model.model_fields.items():
        if field.is_required():
            assert "None" not in str(field.annotation), f"{model.__name__}.{name}"


def test_two_events_without_an_id_get_different_ones() -> None:
    first, second = (VideoUploaded(event_time_ms=0, video_id="v", title="") for _ in range(2))
    assert first.event_id != second.event_id


def test_event_is_frozen() -> None:
    with pytest.raises(ValidationError):
        WatchEvent(**WATCH).user_id = "bob"  # type: ignore[misc]  # the point of the test


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("user_id", ""),
        ("video_id", "x" * 257),
        ("event_time_ms", -1),
        ("event_time_ms", 4_102_444_800_001),
        ("surface", "billboard"),
        ("watched_s", -1.0),
        ("watched_s", float("nan")),
        ("duration_s", 0.0),
        ("duration_s", float("inf")),
        ("schema_version", 2),
    ],
)
def test_watch_with_a_value_out_of_bounds_is_refused(field: str, value: object) -> None:
    with pytest.raises(ValidationError):
        WatchEvent.model_validate(WATCH | {field: value})


def test_title_longer_than_the_bound_is_refused() -> None:
    title = "x" * (MAX_TEXT_CHARS + 1)
    with pytest.raises(ValidationError):
        VideoUploaded(event_time_ms=0, video_id="v", title=title)


@given(st.text(max_size=50), st.lists(st.text(max_size=10), max_size=3))
def test_any_text_survives_the_wire(description: str, tags: list[str]) -> None:
    event = VideoUploaded(
        event_time_ms=0, video_id="v", title="t", description=description, tags=tuple(tags)
    )
    assert decode(VideoUploaded, to_json(event)) == event


@pytest.mark.parametrize("field", ["title", "channel", "category", "video_id"])
@pytest.mark.parametrize("character", ["\0", "\x1b", "\x85", "\u202e", "\u2066"])
def test_line_that_people_read_holds_nothing_that_changes_how_it_reads(
    field: str, character: str
) -> None:
    fields = {"event_time_ms": 0, "video_id": "v", "title": "t"}
    with pytest.raises(ValidationError):
        VideoUploaded.model_validate(fields | {field: f"cat{character}fish"})


def test_line_may_hold_any_script_and_its_marks() -> None:
    title = "سلام\u200f – שלום\u200e, 猫 👩\u200d🚀\tand more"
    assert VideoUploaded(event_time_ms=0, video_id="v", title=title).title == title


def test_history_without_a_watch_for_each_video_is_refused() -> None:
    with pytest.raises(ValueError, match="1 videos and 24 characters of watches"):
        UserHistory(user_id="ana", video_ids=("v",), watches=2 * "APFTZR4AMgAA")
