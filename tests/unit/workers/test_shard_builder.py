"""Records in, the watches of a shard out."""

from __future__ import annotations

import json

import numpy as np
import pytest

from streams.events import OffsetRange
from tests.sealing_in_memory import NOW_MS, Sealing, record, records, rows_of
from workers.shard_builder import Restored
from workers.watch_intake import REFUSED_BYTES, Records


def test_every_record_is_a_watch_a_duplicate_or_a_dead_letter() -> None:
    found = Sealing()
    for offset, value in enumerate([record("a"), record("a"), b"{", None, record("b")]):
        found.add(offset, value)
    filled, contents = found.shard()
    assert (filled.watches, filled.duplicates, len(filled.dead_letters)) == (2, 1, 2)
    assert (filled.records, contents.watches) == (5, 2)
    assert filled.ranges == (OffsetRange(partition=0, first_offset=0, last_offset=4),)
    assert filled.next_offsets == {0: 5, 1: 0}


def test_records_of_several_partitions_in_one_poll_stay_apart() -> None:
    found = Sealing()
    values = [record("a"), record("a"), b"{", record("b")]
    found.builder.add(
        Records(
            np.array([1, 0, 1, 0]), np.array([0, 0, 1, 1]), np.full(4, NOW_MS), [b"u"] * 4, values
        )
    )
    filled, contents = found.shard()
    assert (filled.duplicates, filled.next_offsets) == (0, {0: 2, 1: 2})
    assert [
        [(each.partition, each.offset, each.event_id) for each in row.watches]
        for row in rows_of(contents)
    ] == [[(0, 0, "a"), (0, 1, "b")], [(1, 0, "a")]]


def test_offsets_without_a_record_are_inside_the_range_and_counted() -> None:
    found = Sealing(Restored(5))
    found.add(7, record("a"))
    found.add(9, record("b"))
    filled, _ = found.shard()
    assert filled.ranges == (OffsetRange(partition=0, first_offset=5, last_offset=9),)
    assert filled.empty_offsets == 3


def test_record_before_the_next_offset_is_our_own_mistake() -> None:
    with pytest.raises(AssertionError, match="expected 5"):
        Sealing(Restored(5)).add(4, record("a"))


def test_watches_that_only_the_contract_can_read_keep_their_place() -> None:
    found = Sealing()
    features = {"region": "d\u00e9", "age": 7}
    values = [
        record("a", context_video_id="c", arm="x"),
        record("b", query='says "\u00e9"', user=features, watched_s="30", context_video_id="c"),
        record("c", video_id="\u00fc", liked="yes"),
    ]
    found.builder.add(records(*((offset, b"u", value) for offset, value in enumerate(values))))
    _, contents = found.shard()
    [row] = rows_of(contents)
    assert (row.region, row.age) == ("d\u00e9", 7)
    assert [
        (each.offset, each.event_id, each.video_id, each.query, each.percent, each.liked)
        for each in row.watches
    ] == [
        (0, "a", "v", None, 25, False),
        (1, "b", "v", 'says "\u00e9"', 50, False),
        (2, "c", "\u00fc", None, 25, True),
    ]
    assert [each.context_video_id for each in row.watches] == ["c", "c", None]
    assert sorted(json.loads(value)["arm"] for _, value in contents.counts(window_s=60)) == [
        "", "", "x",
    ]  # fmt: skip


def test_next_shard_begins_where_the_last_ended_and_still_knows_duplicates() -> None:
    found = Sealing()
    found.add(0, record("a"))
    found.shard()
    assert (found.builder.records, found.builder.started) == (0, None)
    found.add(1, record("a"))
    filled, contents = found.shard()
    assert filled.duplicates == 1
    assert filled.ranges == (OffsetRange(partition=0, first_offset=1, last_offset=1),)
    assert rows_of(contents) == []
    assert list(contents.updated_histories()) == []


@pytest.mark.parametrize(
    ("key", "event_time_ms", "reason"),
    [
        (b"u", NOW_MS + 60_000, None),
        (b"u", NOW_MS + 60_001, "event_time_in_future"),
        (b"somebody else", NOW_MS, "key_is_not_user_id"),
        (None, NOW_MS, "key_is_not_user_id"),
    ],
)
def test_watch_that_breaks_a_rule_of_the_log_is_refused(
    key: bytes | None, event_time_ms: int, reason: str | None
) -> None:
    found = Sealing()
    found.add(0, record("a", event_time_ms=event_time_ms), key=key)
    filled, _ = found.shard()
    assert [letter.reason for _, letter in filled.dead_letters] == ([reason] if reason else [])


def test_append_times_span_all_records() -> None:
    found = Sealing()
    for offset, append_time_ms in enumerate([50, 40, 60]):
        found.add(offset, record(str(offset), event_time_ms=0), append_time_ms=append_time_ms)
    filled, contents = found.shard()
    assert filled.append_times_ms == (40, 60)
    assert sorted(contents.append_times_ms) == [40, 50, 60]


def test_bytes_of_all_values_are_counted_however_long() -> None:
    found = Sealing()
    long = record("b", query="x" * 5_000)
    values: list[bytes | None] = [record("a"), None, long, record("c", query="\u00e9")]
    found.builder.add(records(*((offset, b"u", value) for offset, value in enumerate(values))))
    refused = 2 * (len(b"u") + REFUSED_BYTES)  # no value; the query is too long
    assert found.builder.num_bytes == sum(len(value or b"") for value in values) + refused


def test_watch_behind_the_watermark_is_kept_and_marked() -> None:
    found = Sealing()  # 10 s late
    for offset, event_time_ms in enumerate(
        [NOW_MS - 10_001, NOW_MS, NOW_MS - 10_000, NOW_MS - 10_001]
    ):
        found.add(offset, record(f"e{offset}", event_time_ms=event_time_ms))
    filled, contents = found.shard()
    [row] = rows_of(contents)
    assert {each.event_id: each.late for each in row.watches} == {
        "e0": False, "e1": False, "e2": False, "e3": True,
    }  # fmt: skip
    assert (contents.watches, contents.late) == (4, 1)
    assert filled.newest_event_times_ms == {0: NOW_MS, 1: 0}


def test_watermark_goes_on_where_the_last_sealer_was() -> None:
    found = Sealing(Restored(0, newest_event_time_ms=NOW_MS))
    found.add(0, record("a", event_time_ms=NOW_MS - 10_001))
    assert found.shard()[1].late == 1
