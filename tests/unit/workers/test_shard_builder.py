"""Records in, a shard out, in memory."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.settings import WatchSettings
from streams.codec import decode
from streams.events import OffsetRange, UserHistory
from streams.history import History, decode_history
from streams.packed_history import decode_histories, new_names
from streams.shards import ShardRow, read_shard
from streams.watches import Watch, decode_watch
from workers.shard_builder import Restored, ShardBuilder
from workers.video_labels import VideoLabel

NOW_MS = 1_700_000_000_000


def builder(*, next_offset: int = 0, history_length: int = 100) -> ShardBuilder:
    return ShardBuilder(
        {0: Restored(next_offset, {}), 1: Restored(0, {})},
        names=new_names(),
        settings=WatchSettings(history_length=history_length, future_slack_s=60, lateness_s=10),
    )


def rows_of(
    target: ShardBuilder, videos: dict[str, VideoLabel] | None = None, codebook_version: int = 0
) -> list[ShardRow]:
    return read_shard(target.contents(videos or {}, codebook_version).file)


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


def add(
    target: ShardBuilder, offset: int, value: bytes | None, *, key: bytes | None = b"u"
) -> None:
    target.add(0, offset, key, value, NOW_MS)


def test_every_record_is_a_watch_a_duplicate_or_a_dead_letter() -> None:
    found = builder()
    for offset, value in enumerate([record("a"), record("a"), b"{", None, record("b")]):
        add(found, offset, value)
    assert (found.watches, found.duplicates, len(found.dead_letters), found.records) == (2, 1, 2, 5)
    assert found.ranges() == (OffsetRange(partition=0, first_offset=0, last_offset=4),)


def test_offsets_without_a_record_are_inside_the_range_and_counted() -> None:
    found = builder(next_offset=5)
    add(found, 7, record("a"))
    add(found, 9, record("b"))
    assert found.ranges() == (OffsetRange(partition=0, first_offset=5, last_offset=9),)
    assert found.empty_offsets == 3


def test_record_before_the_next_offset_is_our_own_mistake() -> None:
    found = builder(next_offset=5)
    with pytest.raises(AssertionError, match="offset=4 expected 5"):
        add(found, 4, record("a"))


def test_row_holds_history_before_the_shard_and_new_watches_by_event_time() -> None:
    found = builder()
    add(found, 0, record("a", video_id="first"))
    found.begin_next()
    add(found, 1, record("b", event_time_ms=NOW_MS + 20, user={"region": "de"}))
    add(found, 2, record("c", event_time_ms=NOW_MS + 10, liked=True, query="cats"))
    [row] = rows_of(found, {"first": VideoLabel((1, 2), "c"), "v": VideoLabel((3, 4), None)}, 7)
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


def test_videos_without_a_semantic_id_stay_null() -> None:
    found = builder()
    add(found, 0, record("a"))
    [row] = rows_of(found)
    assert (row.watches[0].semantic_id, row.watches[0].channel) == (None, None)


def test_next_shard_begins_where_the_last_ended_and_still_knows_duplicates() -> None:
    found = builder()
    add(found, 0, record("a"))
    found.begin_next()
    assert (found.ranges(), found.records, found.started) == ((), 0, None)
    add(found, 1, record("a"))
    assert found.duplicates == 1
    assert found.ranges() == (OffsetRange(partition=0, first_offset=1, last_offset=1),)
    assert rows_of(found) == []
    assert list(found.updated_histories()) == []


def test_updated_histories_are_bounded_contract_events_with_their_partition() -> None:
    found = builder(history_length=2)
    for offset in range(3):
        add(
            found,
            offset,
            record(f"e{offset}", video_id=f"v{offset}", event_time_ms=NOW_MS + offset),
        )
    found.contents({}, 0)
    [(partition, user_id, value)] = found.updated_histories()
    assert (partition, user_id) == (0, "u")
    history = decode(UserHistory, value)
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
    found = builder()
    add(found, 0, record("a", event_time_ms=event_time_ms), key=key)
    assert [letter.reason for _, letter in found.dead_letters] == ([reason] if reason else [])


def test_append_times_span_all_records() -> None:
    found = builder()
    for offset, append_time_ms in enumerate([50, 40, 60]):
        found.add(0, offset, b"u", record(str(offset), event_time_ms=0), append_time_ms)
    assert found.append_times_ms == (40, 60)
    found.contents({}, 0)
    assert sorted(found.watch_append_times_ms()) == [40, 50, 60]


def erasure(event_id: str, user_id: str = "u") -> bytes:
    event = {"type": "erased", "event_id": event_id, "event_time_ms": NOW_MS, "user_id": user_id}
    return json.dumps(event).encode()


def test_erased_user_leaves_the_shard_at_hand_and_the_histories() -> None:
    found = builder()
    add(found, 0, record("a"))
    found.begin_next()
    for offset, value in enumerate([record("b"), record("b"), erasure("x")], start=1):
        add(found, offset, value)
    add(found, 4, record("c", user_id="other"), key=b"other")
    assert (found.watches, found.duplicates, found.erased, found.records) == (1, 1, 2, 4)
    assert [row.user_id for row in rows_of(found)] == ["other"]
    histories = {user_id: value for _, user_id, value in found.updated_histories()}
    assert histories["u"] is None
    assert histories["other"] is not None
    assert [json.loads(counts)["views"] for _, counts in found.counts()] == [1]


def test_user_who_watches_on_after_the_erasure_begins_anew() -> None:
    found = builder()
    add(found, 0, record("a"))
    found.begin_next()
    add(found, 1, erasure("x"))
    add(found, 2, record("b"))
    [row] = rows_of(found)
    assert (row.history, [each.event_id for each in row.watches]) == ([], ["b"])
    [(_, _, value)] = found.updated_histories()
    assert value is not None
    assert len(decode(UserHistory, value).video_ids) == 1
    found.begin_next()
    add(found, 3, record("c"))
    [row] = rows_of(found)
    assert len(row.history) == 1


def test_erasure_of_somebody_unknown_is_counted_and_leaves_a_tombstone() -> None:
    found = builder()
    add(found, 0, erasure("x"))
    assert (found.erased, found.records) == (1, 1)
    found.contents({}, 0)
    assert list(found.updated_histories()) == [(0, "u", None)]
    found.begin_next()
    found.contents({}, 0)
    assert list(found.updated_histories()) == []


def test_watch_behind_the_watermark_is_kept_and_marked() -> None:
    found = builder()  # 10 s late
    for offset, event_time_ms in enumerate(
        [NOW_MS - 10_001, NOW_MS, NOW_MS - 10_000, NOW_MS - 10_001]
    ):
        add(found, offset, record(f"e{offset}", event_time_ms=event_time_ms))
    [row] = rows_of(found)
    assert {each.event_id: each.late for each in row.watches} == {
        "e0": False, "e1": False, "e2": False, "e3": True,
    }  # fmt: skip
    assert (found.watches, found.contents({}, 0).late) == (4, 1)
    assert found.newest_event_times_ms() == {0: NOW_MS, 1: 0}


def test_watermark_goes_on_where_the_last_sealer_was() -> None:
    found = ShardBuilder(
        {0: Restored(0, {}, newest_event_time_ms=NOW_MS)},
        names=new_names(),
        settings=WatchSettings(lateness_s=10),
    )
    add(found, 0, record("a", event_time_ms=NOW_MS - 10_001))
    assert found.contents({}, 0).late == 1


def test_erased_event_that_is_delivered_again_stays_out() -> None:
    found = builder()
    for offset, value in enumerate([record("a"), erasure("x"), record("a")]):
        add(found, offset, value)
    assert (found.watches, found.duplicates, found.erased) == (0, 1, 2)


some_watches = st.lists(
    st.tuples(st.sampled_from(["u", "w"]), st.integers(0, 8_000), st.booleans()), max_size=30
)


@settings(deadline=None)
@given(some_watches, st.sets(st.integers(0, 30)), st.integers(0, 30), st.integers(1, 6))
def test_histories_are_the_same_wherever_shards_end_and_a_sealer_is_restored(
    seen: list[tuple[str, int, bool]], cuts: set[int], restored_at: int, length: int
) -> None:
    expected: dict[str, History] = {}
    target, written = builder(history_length=length), dict[str, bytes]()
    for offset, (user_id, time_ms, with_features) in enumerate([*seen, ("u", 0, False)]):
        if offset in cuts or offset in (restored_at, len(seen)):
            target.contents({}, 0)
            written |= {user: value for _, user, value in target.updated_histories() if value}
            target.begin_next()
        if offset == restored_at:
            names = new_names()
            users, packed = decode_histories(written.values(), names)
            target = ShardBuilder(
                {0: Restored(offset, dict(zip(users, packed, strict=True)))},
                names=names,
                settings=WatchSettings(history_length=length),
            )
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
        add(target, offset, event, key=user_id.encode())
        watch = decode_watch(event)
        assert isinstance(watch, Watch)
        expected.setdefault(user_id, History()).add(watch, length=length)
    found = {user: decode_history(value)[1] for user, value in written.items()}
    assert {user: (each.entries, each.user) for user, each in found.items()} == {
        user: (each.entries, each.user) for user, each in expected.items()
    }
