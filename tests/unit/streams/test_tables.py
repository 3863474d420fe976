"""Files of videos and watches: the three formats say the same, and a bad row is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from infra.errors import ConfigError
from streams.events import VideoUploaded, WatchEvent
from streams.tables import BadRow, merge, open_table, refuse_bad_rows, rejected_line
from streams.timeline import TimelineEvent

ROWS = [
    {"sku": f"v{n}", "name": f"Video {n}, the «{n}th»\nof many", "at": 1_700_000_000 + n, "labels": "a|b"}
    for n in range(5)
]  # fmt: skip
MAPPING = "video_id=sku,title=name,event_time_ms=at:s,tags=labels"


def write_csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    import csv

    path = path.with_suffix(".csv")
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path = path.with_suffix(".jsonl")
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    path = path.with_suffix(".parquet")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=2)
    return path


WRITERS = [write_csv, write_jsonl, write_parquet]
Writer = Callable[[Path, list[dict[str, Any]]], Path]


def played(path: Path, mapping: str = MAPPING) -> list[TimelineEvent]:
    table = open_table(path, VideoUploaded, mapping)
    return list(merge([(table, table.check())]))


def test_same_rows_are_the_same_events_in_every_format(tmp_path: Path) -> None:
    csv, jsonl, parquet = (played(write(tmp_path / "videos", ROWS)) for write in WRITERS)
    assert csv == jsonl == parquet
    assert [each.event.video_id for each in csv] == ["v0", "v1", "v2", "v3", "v4"]
    first = csv[0].event
    assert isinstance(first, VideoUploaded)
    assert (first.title, first.tags) == ("Video 0, the «0th»\nof many", ("a", "b"))
    assert csv[0].event_time_ms == 1_700_000_000_000


@pytest.mark.parametrize("write", WRITERS)
def test_rows_in_another_order_are_played_by_event_time(tmp_path: Path, write: Writer) -> None:
    path = write(tmp_path / "videos", [*ROWS[3:], *ROWS[:3]])
    assert not open_table(path, VideoUploaded, MAPPING).check().in_order
    assert played(path) == played(write(tmp_path / "sorted", ROWS))


def test_videos_come_before_watches_of_the_same_time(tmp_path: Path) -> None:
    at = {"event_time_ms": 7}
    videos = write_jsonl(tmp_path / "v", [at | {"video_id": "v", "title": "A walk"}])
    watch = {"user_id": "u", "video_id": "v", "surface": "home", "watched_s": 1, "duration_s": 2}
    watches = write_jsonl(tmp_path / "w", [{"event_time_ms": 6} | watch, at | watch])
    tables = [open_table(videos, VideoUploaded), open_table(watches, WatchEvent)]
    assert [each.kind for each in merge([(table, table.check()) for table in tables])] == [
        "watched", "uploaded", "watched",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("write", "place"),
    [(write_csv, "line 6"), (write_jsonl, "line 3"), (write_parquet, "row 3")],
)
def test_bad_row_is_named_by_file_place_column_value_and_reason(
    tmp_path: Path, write: Writer, place: str
) -> None:
    rows = [dict(row) | {"name": "plain"} for row in ROWS]
    rows[0]["name"] = "one\nbreak\nmore"  # three lines of a CSV, which has a header, too
    rows[2]["at"] = -7
    path = write(tmp_path / "videos", rows)
    place = (
        "line 6" if write is write_csv else place
    )  # the header, and three lines of the first row
    table = open_table(path, VideoUploaded, MAPPING)
    checked = table.check()
    assert (checked.num_rows, checked.num_bad) == (4, 1)
    with pytest.raises(ConfigError) as refused:
        refuse_bad_rows(table, checked)
    text = str(refused.value)
    assert f"{path} {place}: column 'at' for event_time_ms: " in text
    assert "-7" in text
    assert "greater than or equal to 0" in text
    assert "--skip-bad-rows" in text


def test_only_the_first_bad_rows_are_listed_and_all_are_counted(tmp_path: Path) -> None:
    table = open_table(
        write_jsonl(tmp_path / "v", [*ROWS, *[{"sku": ""}] * 25]), VideoUploaded, MAPPING
    )
    with pytest.raises(ConfigError, match=r"25 of 30 rows") as refused:
        refuse_bad_rows(table, table.check())
    assert str(refused.value).count("\n") == 11
    assert "and 15 more" in str(refused.value)


def test_line_that_is_no_row_is_one_bad_row_and_the_rest_is_read(tmp_path: Path) -> None:
    good = b'{"event_time_ms": 1, "video_id": "v", "title": "A walk"}\n'
    path = tmp_path / "videos.jsonl"
    path.write_bytes(good + b"{\n" + b"[1]\n\n" + b'{"title": "\xff"}\n' + good)
    rows = list(open_table(path, VideoUploaded).rows())
    assert [each.number for each in rows if isinstance(each, BadRow)] == [2, 3, 5]
    path = tmp_path / "videos.csv"
    path.write_bytes(b"event_time_ms,video_id,title\n1,v,A walk\n1,v\n1,v,caf\xe9\n")
    rows = list(open_table(path, VideoUploaded).rows())
    assert [each.number for each in rows if isinstance(each, BadRow)] == [3, 4]
    assert "2 cells, the header 3" in str(rows[1])


def test_rejected_row_is_a_line_of_json_with_its_reason(tmp_path: Path) -> None:
    table = open_table(
        write_jsonl(tmp_path / "v", [ROWS[0] | {"at": "soon"}]), VideoUploaded, MAPPING
    )
    (bad,) = table.rows()
    assert isinstance(bad, BadRow)
    line = json.loads(rejected_line(table, bad))
    assert (line["line"], line["column"], line["field"]) == (1, "at", "event_time_ms")
    assert line["row"] == ROWS[0] | {"at": "soon"}


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("videos.xlsx", b"", "none of .csv, .jsonl, .parquet"),
        ("videos.parquet", b"not parquet", "is not a Parquet file"),
        ("videos.csv", b"title,title\n", "more than one column 'title'"),
        ("videos.csv", b"", "no column for title, event_time_ms, video_id; it has none"),
        ("videos.jsonl", b"", "no column for title, event_time_ms, video_id; it has none"),
    ],
)
def test_file_that_cannot_be_read_is_refused_with_its_name(
    tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=said) as refused:
        open_table(tmp_path / name, VideoUploaded)
    assert name in str(refused.value)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a file"):
        open_table(tmp_path / "videos.csv", VideoUploaded)
