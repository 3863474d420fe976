"""Watches in, shards out, on a real broker: what a sealer makes of them when nothing goes wrong."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient
from prometheus_client import REGISTRY

from infra.kafka.broker import LocalBroker
from streams.client import client_config
from streams.history import decode_watches
from streams.partitions import partition_of
from streams.shards import verify_shards
from streams.topics import HISTORIES, WATCHES
from tests.integration.sealer_stage import (
    NOW_MS,
    Outcome,
    Stage,
    erasure,
    traffic,
    uninterrupted_outcome,
    watch_event,
)

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def uninterrupted(broker: LocalBroker, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """What the traffic becomes."""
    return uninterrupted_outcome(broker, tmp_path_factory.mktemp("uninterrupted"))


def test_every_watch_is_in_exactly_one_row_or_accounted_for(uninterrupted: Outcome) -> None:
    assert len(uninterrupted.shards) > 3
    assert verify_shards(uninterrupted.shards) == []
    first = {}
    for _, value in traffic():
        with suppress(UnicodeDecodeError, json.JSONDecodeError, KeyError):
            event = json.loads(value)
            first[event["event_id"]] = event
    assert sorted(each.event_id for each in uninterrupted.watches) == sorted(first)
    for row in uninterrupted.rows:
        for each in row.watches:
            event = first[each.event_id]
            assert row.user_id == event["user_id"]
            assert (each.video_id, each.event_time_ms) == (
                event["video_id"],
                event["event_time_ms"],
            )
        times = [each.event_time_ms for each in row.watches]
        assert times == sorted(times)
    counted = sum(
        shard.watches + shard.duplicates + shard.dead_letters for shard in uninterrupted.shards
    )
    assert counted == len(traffic())


def test_history_of_a_row_is_what_the_shards_before_it_held(uninterrupted: Outcome) -> None:
    seen: dict[str, list[tuple[int, str]]] = {}
    with_history = 0
    for row in uninterrupted.rows:
        before = seen.setdefault(row.user_id, [])
        assert [(each.event_time_ms, each.video_id) for each in row.history] == before
        with_history += bool(before)
        before += [(each.event_time_ms // 1000 * 1000, each.video_id) for each in row.watches]
        before.sort(key=lambda found: found[0])
        del before[:-20]
    assert with_history
    for user_id, history in uninterrupted.histories.items():
        times_ms = [1000 * time_s for time_s in decode_watches(history.watches)["time_s"].tolist()]
        assert sorted(zip(times_ms, history.video_ids, strict=True)) == sorted(seen[user_id])


def test_rows_carry_semantic_ids_that_are_known_when_sealed(
    broker: LocalBroker, tmp_path: Path
) -> None:
    stage = Stage(broker, tmp_path)
    stage.assign_semantic_id("known", (4, 2))
    stage.produce([("u0", json.dumps(watch_event("e1", video_id="known")).encode())])
    with stage.sealer() as sealer:
        stage.drain(sealer)
        stage.assign_semantic_id("later", (1, 1))
        stage.produce([("u0", json.dumps(watch_event("e2", video_id="later")).encode())])
        stage.produce([("u0", json.dumps(watch_event("e3", video_id="never")).encode())])
        stage.drain(sealer)
    rows = stage.outcome().rows
    labels = {
        each.video_id: (each.semantic_id, each.channel) for row in rows for each in row.watches
    }
    assert labels == {
        "known": ((4, 2, 0), "c"),
        "later": ((1, 1, 0), "c"),
        "never": (None, None),
    }
    assert rows[-1].history[0].semantic_id == (4, 2, 0)
    assert {row.codebook_version for row in rows} == {3}


def test_poison_goes_to_dead_letters_with_its_reason_and_the_stream_goes_on(
    broker: LocalBroker, tmp_path: Path
) -> None:
    stage = Stage(broker, tmp_path)
    poison = [
        ("u0", b"", "empty"),
        ("u0", b"\xff\xfe", "invalid_json"),
        ("u0", json.dumps(watch_event("e", schema_version=2)).encode(), "unknown_schema_version"),
        ("u0", json.dumps(watch_event("e", watched_s=-1)).encode(), "invalid_event"),
        ("u0", json.dumps(watch_event("e", user_id="u" * 1_000_000)).encode(), "invalid_event"),
        ("u0", json.dumps(watch_event("e", event_time_ms=4_000_000_000_000)).encode(), "event_time_in_future"),
        ("u1", json.dumps(watch_event("e")).encode(), "key_is_not_user_id"),
        ("k" * 1_000_000, b" " * 9_000_000, "too_large"),
    ]  # fmt: skip
    stage.produce([(key, value) for key, value, _ in poison])
    with stage.sealer() as sealer:
        stage.drain(sealer)
        only_poison = stage.outcome()
        stage.produce([("u0", json.dumps(watch_event("good")).encode())])
        stage.drain(sealer)
    outcome = stage.outcome()
    assert {shard.rows for shard in only_poison.shards} == {0}
    assert sorted(letter.reason for letter in outcome.dead_letters) == sorted(
        reason for _, _, reason in poison
    )
    assert [each.event_id for each in outcome.watches] == ["good"]
    assert verify_shards(outcome.shards) == []


def test_partition_of_nothing_but_poison_does_not_stop_the_others(
    broker: LocalBroker, tmp_path: Path
) -> None:
    stage = Stage(broker, tmp_path)
    users = [f"u{number}" for number in range(8)]
    poisoned = {user for user in users if partition_of(user.encode(), stage.kafka.partitions) == 0}
    assert 0 < len(poisoned) < len(users)
    good, records = set(), []
    for number in range(300):
        user_id, event_id = users[number % len(users)], f"e{number}"
        value = json.dumps(watch_event(event_id, user_id=user_id)).encode()
        if user_id not in poisoned:
            good.add(event_id)
        records.append((user_id, value[:-1] if user_id in poisoned else value))
    stage.produce(records)
    with stage.sealer() as sealer:
        stage.drain(sealer)
    outcome = stage.outcome()
    assert {each.event_id for each in outcome.watches} == good
    assert {(letter.partition, letter.reason) for letter in outcome.dead_letters} == {
        (0, "invalid_json")
    }
    assert len(outcome.dead_letters) == 300 - len(good)
    assert verify_shards(outcome.shards) == []


def test_redelivered_event_is_dropped_also_after_a_restart(
    broker: LocalBroker, tmp_path: Path
) -> None:
    stage = Stage(broker, tmp_path)
    record = ("u0", json.dumps(watch_event("e1")).encode())
    stage.produce([record, record])
    with stage.sealer() as sealer:
        stage.drain(sealer)
    stage.produce([record, ("u0", json.dumps(watch_event("e2")).encode())])
    with stage.sealer() as sealer:
        stage.drain(sealer)
    outcome = stage.outcome()
    assert [each.event_id for each in outcome.watches] == ["e1", "e2"]
    assert sum(shard.duplicates for shard in outcome.shards) == 2


def test_watches_that_expire_before_they_are_sealed_are_counted_and_leave_a_gap_in_the_proof(
    broker: LocalBroker, tmp_path: Path
) -> None:
    stage = Stage(broker, tmp_path)
    watches = [("u0", json.dumps(watch_event(f"e{number}")).encode()) for number in range(5)]
    stage.produce(watches[:2])
    with stage.sealer() as sealer:
        stage.drain(sealer)
    stage.produce(watches[2:])
    at = partition_of(b"u0", stage.kafka.partitions)
    kept_from = TopicPartition(WATCHES.in_cluster(stage.kafka), at, 4)
    admin = AdminClient(client_config(stage.kafka))  # held: its futures die with it
    for done in admin.delete_records([kept_from]).values():
        done.result(timeout=60)
    before = REGISTRY.get_sample_value("freshet_expired_watches_total") or 0
    with stage.sealer() as sealer:
        stage.drain(sealer)
    outcome = stage.outcome()
    assert [each.event_id for each in outcome.watches] == ["e0", "e1", "e4"]
    [gap] = verify_shards(outcome.shards)
    assert "begins at 4, expected 2" in gap
    assert REGISTRY.get_sample_value("freshet_expired_watches_total") == before + 2


def test_late_watches_are_marked_and_watches_are_counted_once(uninterrupted: Outcome) -> None:
    late = [each for each in uninterrupted.watches if each.late]
    assert late
    assert len(late) == sum(shard.late for shard in uninterrupted.shards)
    assert sum(shard.unknown_videos for shard in uninterrupted.shards) == len(uninterrupted.watches)
    views, completed, likes, watched_s = map(sum, zip(*uninterrupted.counts.values(), strict=True))
    watches = uninterrupted.watches
    assert views == len(watches)
    assert completed == sum(each.percent >= 90 for each in watches)
    assert likes == sum(each.liked for each in watches)
    assert watched_s == pytest.approx(sum(each.watched_s for each in watches))
    assert {arm for _, _, arm, _ in uninterrupted.counts} == {"", "lrm"}
    assert {start_ms % 60_000 for _, _, _, start_ms in uninterrupted.counts} == {0}


def test_watermark_outlives_its_sealer(broker: LocalBroker, tmp_path: Path) -> None:
    stage = Stage(broker, tmp_path)
    for event_id, event_time_ms in (("e1", NOW_MS), ("e2", NOW_MS - 5_001)):
        value = json.dumps(watch_event(event_id, event_time_ms=event_time_ms)).encode()
        stage.produce([("u0", value)])
        with stage.sealer() as sealer:
            stage.drain(sealer)
    assert [(each.event_id, each.late) for each in stage.outcome().watches] == [
        ("e1", False),
        ("e2", True),
    ]


def test_erased_user_is_in_no_history_and_in_no_later_shard(
    broker: LocalBroker, tmp_path: Path
) -> None:
    stage = Stage(broker, tmp_path, shard_max_rows=1000, shard_max_age_s=0.2)

    def watched(event_id: str, user_id: str = "u0") -> tuple[str, bytes]:
        return user_id, json.dumps(watch_event(event_id, user_id=user_id)).encode()

    with stage.sealer() as sealer:
        stage.produce([watched("sealed"), watched("other", "u1")])
        stage.drain(sealer)
        stage.produce([watched("open"), erasure("x", "u0"), watched("other too", "u1")])
        stage.drain(sealer)
        erased = stage.outcome()
    assert erased.histories.keys() == {"u1"}
    assert sum(shard.erased for shard in erased.shards) >= 1
    assert (b"u0", None) in stage.values(HISTORIES)
    stage.produce([watched("anew")])
    with stage.sealer() as sealer:
        stage.drain(sealer)
    after = stage.outcome()
    last = after.rows[-1]
    assert (last.user_id, last.history, [each.event_id for each in last.watches]) == (
        "u0",
        [],
        ["anew"],
    )
    assert verify_shards(after.shards) == []
