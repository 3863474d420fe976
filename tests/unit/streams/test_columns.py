"""Rows of somebody's own table: what they become, and how a mistake is named."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from infra.errors import ConfigError
from streams.columns import BadCellError, Columns, bind, parse_mapping
from streams.events import VideoUploaded, WatchEvent

VIDEO = {"event_time_ms": 1_700_000_000_000, "video_id": "v", "title": "A walk"}
WATCH: dict[str, Any] = {
    "event_time_ms": 5, "user_id": "u", "video_id": "v", "surface": "home", "watched_s": 3, "duration_s": 9,
}  # fmt: skip


def columns_of(mapping: str, row: dict[str, Any], *, model: Any = VideoUploaded) -> Columns:
    return bind(model, parse_mapping(mapping, model), list(row), what="videos.csv")


def video(mapping: str = "", **cells: Any) -> Any:
    row = VIDEO | cells
    return columns_of(mapping, row).event(row)


def watch(mapping: str = "", **cells: Any) -> Any:
    row = WATCH | cells
    return columns_of(mapping, row, model=WatchEvent).event(row)


def test_columns_with_a_fields_name_need_no_mapping() -> None:
    found = video(tags="cats|boxes", category="Pets")
    assert (found.video_id, found.title, found.tags) == ("v", "A walk", ("cats", "boxes"))
    assert (found.type, found.category, found.description) == ("uploaded", "Pets", "")


def test_mapped_column_counts_instead_of_the_one_with_the_fields_name() -> None:
    assert video("title=name", name="Another").title == "Another"


@pytest.mark.parametrize(
    ("unit", "cell"),
    [
        ("s", 1_700_000_000),
        ("s", "1700000000.5"),
        ("ms", "1700000000000"),
        ("iso", "2023-11-14T22:13:20Z"),
        ("iso", "2023-11-14 23:13:20+01:00"),
        ("iso", "2023-11-14T22:13:20"),
        ("iso", datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)),
        ("ms", datetime(2023, 11, 15, 0, 13, 20, tzinfo=timezone(timedelta(hours=2)))),
    ],
)
def test_time_is_read_in_the_unit_that_the_mapping_names(unit: str, cell: Any) -> None:
    found = video(f"event_time_ms=at:{unit}", at=cell)
    assert found.event_time_ms == 1_700_000_000_000 + (500 if cell == "1700000000.5" else 0)


def test_list_is_split_at_the_separator_that_the_mapping_names() -> None:
    assert video("tags=labels:;", labels=" cats ;; boxes").tags == ("cats", "boxes")
    assert video("tags=labels", labels=["cats", "boxes"]).tags == ("cats", "boxes")


def test_duration_in_milliseconds_becomes_seconds() -> None:
    assert watch("watched_s=played:ms", played="1500").watched_s == 1.5


def test_constant_is_the_same_for_every_row() -> None:
    row = {name: cell for name, cell in WATCH.items() if name != "surface"}
    found = columns_of("surface:=shorts", row, model=WatchEvent).event(row)
    assert isinstance(found, WatchEvent)
    assert found.surface == "shorts"


def test_field_that_is_to_be_left_alone_is_not_read() -> None:
    assert video("type=", type="movie").type == "uploaded"


def test_identifiers_may_be_numbers() -> None:
    assert video(video_id=7).video_id == "7"
    assert watch(context_video_id=7).context_video_id == "7"


def test_empty_cells_are_missing_ones() -> None:
    found = video(description=None, tags="", duration_s=float("nan"))
    assert (found.description, found.tags, found.duration_s) == ("", (), None)


def test_features_of_a_viewer_are_fields_too() -> None:
    found = watch("user.region=country,user.age=age", country="NO", age="41")
    assert (found.user.region, found.user.age) == ("NO", 41)


def test_event_id_of_a_row_without_one_is_a_function_of_what_the_row_says() -> None:
    assert watch().event_id == watch(unrelated="x").event_id
    assert len({watch().event_id, watch(watched_s=4).event_id, watch(user_id="w").event_id}) == 3
    assert watch(event_id="mine").event_id == "mine"


@pytest.mark.parametrize(
    ("mapping", "said"),
    [
        ("titel=name", "'titel' is no field of VideoUploaded; it has .*title"),
        ("title", "expected field=column"),
        ("title=a,title=b", "title is mapped twice"),
        ("event_time_ms=at", "append :s, :ms or :iso"),
        ("event_time_ms=at:min", "unit 'min'; event_time_ms takes s, ms, iso"),
        ("title=name:s", "title takes no unit"),
        ("tags=labels:", "names no separator"),
        ("title=nmae", "videos.csv has no column 'nmae' for title; it has event_time_ms"),
    ],
)
def test_mapping_that_does_not_fit_is_refused_with_what_would(mapping: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        columns_of(mapping, VIDEO | {"name": "x", "labels": ""})


def test_required_field_without_a_column_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no column for title, video_id; .*title:=value"):
        columns_of("", {"event_time_ms": 1})


@pytest.mark.parametrize(
    ("mapping", "cells", "field", "column", "reason"),
    [
        ("", {"title": ""}, "title", "title", "empty, and required"),
        ("event_time_ms=at:iso", {"at": "yesterday"}, "event_time_ms", "at", "Invalid isoformat"),
        ("event_time_ms=at:s", {"at": "1e999"}, "event_time_ms", "at", "expected a number"),
        ("event_time_ms=at:s", {"at": -5}, "event_time_ms", "at", "greater than or equal to 0"),
        ("", {"tags": 7}, "tags", "tags", "expected a text with '|'"),
        ("type=kind", {"kind": "movie"}, "type", "kind", "'uploaded' or 'updated'"),
        ("", {"title": "caf\udce9"}, "title", "title", "unicode string"),
    ],
)
def test_row_that_is_no_event_names_field_column_and_reason(
    mapping: str, cells: dict[str, Any], field: str, column: str, reason: str
) -> None:
    with pytest.raises(BadCellError) as refused:
        video(mapping, **cells)
    assert (refused.value.field, refused.value.column) == (field, column)
    assert reason in refused.value.reason
    assert f"column {column!r} for {field}" in str(refused.value)
