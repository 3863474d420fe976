"""Records in, a shard out, in memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.settings import WatchSettings
from streams.codec import decode
from streams.events import OffsetRange, UserHistory
from streams.history import History, decode_history
from streams.packed_history import decode_histories, encode_histories, new_names
from streams.shards import ShardRow, read_shard
from streams.watches import Watch, decode_watch
from workers.shard_builder import FilledShard, Restored, ShardBuilder
from workers.shard_contents import ShardContents, UserHistories, shard_contents
from workers.video_labels import VideoLabel
from workers.watch_intake import REFUSED_BYTES, Records

NOW_MS = 1_700_000_000_000


class Sealing:
    """A builder and the histories that its shards are merged into, one record at a time."""

    def __init__(
        self,
        restored: Restored | None = None,
        *,
        users: UserHistories | None = None,
        length: int = 100,
    ) -> None:
        settings = WatchSettings(history_length=length, future_slack_s=60, lateness_s=10)
        self.builder = ShardBuilder({0: restored or Restored(0), 1: Restored(0)}, settings=settings)
        self.users = users or UserHistories()
        self._length = length

    def add(
        self,
        offset: int,
        value: bytes | None,
        *,
        key: bytes | None = b"u",
        append_time_ms: int = NOW_MS,
    ) -> None:
        self.builder.add(records((offset, key, value), append_time_ms=append_time_ms))

    def shard(
        self, videos: dict[str, VideoLabel] | None = None, codebook_version: int = 0
    ) -> tuple[FilledShard, ShardContents]:
        """Return the shard and what becomes of it, which is then committed."""
        filled = self.builder.take_shard()
        contents = shard_contents(
            filled, self.users, videos or {}, codebook_version, history_length=self._length
        )
        self.users.apply(contents)
        return filled, contents


def records(
    *found: tuple[int, bytes | None, bytes | None], append_time_ms: int = NOW_MS
) -> Records:
    """Return records of partition 0: offset, key and value."""
    offsets, keys, values = zip(*found, strict=True)
    num = len(found)
    return Records(
        np.zeros(num, np.int64), np.array(offsets), np.full(num, append_time_ms), keys, values
    )


def rows_of(contents: ShardContents) -> list[ShardRow]:
    return read_shard(contents.file)


def record(event_id: str, **changed: Any) -> bytes:
    event = {
        "event_id": event_id,
        "event_time_ms": NOW_MS,
        "user_id": "u",
        "video_id": "v",
        "surface": "home",
        "watched_s": 15,
        "duration_s": 60,
    }
    return json.dumps(event | changed).encode()


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


def test_row_holds_history_before_the_shard_and_new_watches_by_event_time() -> None:
    found = Sealing()
    found.add(0, record("a", video_id="first"))
    found.shard()
    found.add(1, record("b", event_time_ms=NOW_MS + 20, user={"region": "de"}))
    found.add(2, record("c", event_time_ms=NOW_MS + 10, liked=True, query="cats"))
    _, contents = found.shard({"first": VideoLabel((1, 2), "c"), "v": VideoLabel((3, 4), None)}, 7)
    [row] = rows_of(contents)
    assert (row.user_id, row.region, row.age, row.codebook_version) == ("u", "de", None, 7)
    [past] = row.history
    assert (past.video_id, past.semantic_id, past.channel, past.percent) == (
        "first",
        (1, 2),
        "c",
        25,
    )
    assert [each.event_id for each in row.watches] == ["c", "b"]
    late = row.watches[0]
    assert (late.offset, late.liked, late.query, late.semantic_id) == (2, True, "cats", (3, 4))
    assert (late.duration_s, late.append_time_ms, late.partition) == (60, NOW_MS, 0)


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


def test_videos_without_a_semantic_id_stay_null() -> None:
    found = Sealing()
    found.add(0, record("a"))
    _, contents = found.shard()
    [row] = rows_of(contents)
    assert (row.watches[0].semantic_id, row.watches[0].channel) == (None, None)
    assert contents.unknown_videos == 1


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


def test_shard_that_is_not_committed_changes_no_history() -> None:
    found = Sealing()
    found.add(0, record("a"))
    shard_contents(found.builder.take_shard(), found.users, {}, 0, history_length=100)
    assert found.users.by_partition == {}


def test_updated_histories_are_bounded_contract_events_with_their_partition() -> None:
    found = Sealing(length=2)
    for offset in range(3):
        value = record(f"e{offset}", video_id=f"v{offset}", event_time_ms=NOW_MS + offset)
        found.add(offset, value)
    _, contents = found.shard()
    [(partition, user_id, written)] = contents.updated_histories()
    assert (partition, user_id) == (0, "u")
    history = decode(UserHistory, written)
    assert history.video_ids == ("v1", "v2")


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


def test_names_that_are_in_no_history_any_more_are_forgotten() -> None:
    found = Sealing(length=2)
    for offset in range(5):
        user = {"region": f"r{offset}"}
        found.add(
            offset, record(f"e{offset}", video_id=f"v{offset}", context_video_id="c", user=user)
        )
        found.shard()
    before = dict(spelled(found.users))
    assert len(found.users.names.videos) == 6
    found.users.forget_names()
    assert list(found.users.names.videos) == ["v3", "v4"]
    assert [each and each.region for each in found.users.names.features] == [None, "r4"]
    assert dict(spelled(found.users)) == before
    found.add(5, record("e5", video_id="v0"))
    found.shard()
    [(_, history)] = spelled(found.users)
    assert decode(UserHistory, history).video_ids == ("v4", "v0")


def spelled(users: UserHistories) -> Iterator[tuple[str, bytes]]:
    """Yield users and their histories in bytes."""
    for held in users.by_partition.values():
        yield from zip(
            held, encode_histories(list(held), list(held.values()), users.names), strict=True
        )


def erasure(event_id: str, user_id: str = "u") -> bytes:
    event = {"type": "erased", "event_id": event_id, "event_time_ms": NOW_MS, "user_id": user_id}
    return json.dumps(event).encode()


def test_erased_user_leaves_the_shard_at_hand_and_the_histories() -> None:
    found = Sealing()
    found.add(0, record("a"))
    found.shard()
    for offset, value in enumerate([record("b"), record("b"), erasure("x")], start=1):
        found.add(offset, value)
    found.add(4, record("c", user_id="other"), key=b"other")
    filled, contents = found.shard()
    assert (filled.duplicates, filled.erasures, filled.watches, filled.records) == (1, 1, 2, 4)
    assert contents.watches == 1
    assert [row.user_id for row in rows_of(contents)] == ["other"]
    histories = {user_id: value for _, user_id, value in contents.updated_histories()}
    assert histories["u"] is None
    assert histories["other"] is not None
    assert [json.loads(counts)["views"] for _, counts in contents.counts(window_s=60)] == [1]
    assert found.users.by_partition[0].keys() == {"other"}


def test_user_who_watches_on_after_the_erasure_begins_anew() -> None:
    found = Sealing()
    found.add(0, record("a"))
    found.shard()
    found.add(1, record("dropped", user={"region": "de"}))
    found.add(2, erasure("x"))
    found.add(3, record("b"))
    _, contents = found.shard()
    [row] = rows_of(contents)
    assert (row.history, row.region, [each.event_id for each in row.watches]) == ([], None, ["b"])
    [tombstone, (_, _, value)] = contents.updated_histories()
    assert tombstone == (0, "u", None)
    assert value is not None
    assert len(decode(UserHistory, value).video_ids) == 1
    found.add(4, record("c"))
    [row] = rows_of(found.shard()[1])
    assert len(row.history) == 1


def test_erasure_of_somebody_unknown_is_counted_and_leaves_a_tombstone() -> None:
    found = Sealing()
    found.add(0, erasure("x"))
    filled, contents = found.shard()
    assert (filled.erasures, filled.records) == (1, 1)
    assert list(contents.updated_histories()) == [(0, "u", None)]
    assert list(found.shard()[1].updated_histories()) == []


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


def test_erased_event_that_is_delivered_again_stays_out() -> None:
    found = Sealing()
    for offset, value in enumerate([record("a"), erasure("x"), record("a")]):
        found.add(offset, value)
    filled, contents = found.shard()
    assert (contents.watches, filled.duplicates, filled.erasures) == (0, 1, 1)


some_watches = st.lists(
    st.tuples(st.sampled_from(["u", "w"]), st.integers(0, 8_000), st.booleans()), max_size=30
)


@settings(deadline=None)
@given(some_watches, st.sets(st.integers(0, 30)), st.integers(0, 30), st.integers(1, 6))
def test_histories_are_the_same_wherever_shards_end_and_a_sealer_is_restored(
    seen: list[tuple[str, int, bool]], cuts: set[int], restored_at: int, length: int
) -> None:
    expected: dict[str, History] = {}
    target, written = Sealing(length=length), dict[str, bytes]()
    for offset, (user_id, time_ms, with_features) in enumerate([*seen, ("u", 0, False)]):
        if offset in cuts or offset in (restored_at, len(seen)):
            _, contents = target.shard()
            written |= {user: value for _, user, value in contents.updated_histories() if value}
        if offset == restored_at:
            names = new_names()
            users, packed = decode_histories(written.values(), names)
            histories = UserHistories(names, {0: dict(zip(users, packed, strict=True))})
            target = Sealing(Restored(offset), users=histories, length=length)
        if offset == len(seen):
            break
        event = record(
            f"e{offset}",
            user_id=user_id,
            video_id=f"v{offset}",
            event_time_ms=time_ms,
            watched_s=offset,
            user={"region": f"r{offset}"} if with_features else None,
        )
        target.add(offset, event, key=user_id.encode())
        watch = decode_watch(event)
        assert isinstance(watch, Watch)
        expected.setdefault(user_id, History()).add(watch, length=length)
    found = {user: decode_history(value)[1] for user, value in written.items()}
    assert {user: (each.entries, each.user) for user, each in found.items()} == {
        user: (each.entries, each.user) for user, each in expected.items()
    }
