"""Watches and histories in, rows and histories out."""

from __future__ import annotations

import json
from collections.abc import Iterator

from hypothesis import given, settings
from hypothesis import strategies as st

from infra.settings import WatchSettings
from streams.codec import decode
from streams.events import UserHistory
from streams.history import History, decode_history
from streams.packed_history import (
    _merge,
    _unpack,
    decode_histories,
    encode_histories,
    new_names,
)
from streams.recent_ids import _take
from streams.shards import read_erased_users
from streams.watch_scan import _scan
from streams.watches import Watch, decode_watch
from tests.sealing_in_memory import NOW_MS, Sealing, erasure, record, rows_of
from workers.shard_builder import Restored
from workers.shard_contents import UserHistories, compile_sealing, shard_contents
from workers.video_labels import VideoLabel
from workers.watch_table import _copy


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


def test_videos_without_a_semantic_id_stay_null() -> None:
    found = Sealing()
    found.add(0, record("a"))
    _, contents = found.shard()
    [row] = rows_of(contents)
    assert (row.watches[0].semantic_id, row.watches[0].channel) == (None, None)
    assert contents.unknown_videos == 1


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
    assert read_erased_users(contents.file) == {"u"}


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


def test_compiling_ahead_leaves_nothing_to_compile_for_plain_watches() -> None:
    compiled = (_scan, _take, _copy, _merge, _unpack)
    compile_sealing(WatchSettings())
    signatures = [each.signatures for each in compiled]
    assert all(signatures)
    found = Sealing()
    for offset in range(2):
        plain = record(f"e{offset}", context_video_id="c", query="q", arm="x", user={"age": 7})
        found.add(offset, plain)
        _, contents = found.shard()
    assert rows_of(contents)[0].history
    assert list(contents.updated_histories())
    assert [each.signatures for each in compiled] == signatures
