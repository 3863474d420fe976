"""The operators' commands for shards and users, on the real broker."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from confluent_kafka import OFFSET_END, TopicPartition
from confluent_kafka.admin import AdminClient

import freshet
from infra.kafka.broker import LocalBroker
from infra.log import hashed
from infra.settings import as_environment
from streams.client import client_config, flush, producer, send
from streams.codec import decode
from streams.events import ShardSealed
from streams.shards import read_shard
from streams.topics import DEAD_LETTERS, SHARDS, WATCHES, Topic
from tests.integration.sealer_stage import Stage, traffic, watch_event

pytestmark = pytest.mark.integration

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def stage(broker: LocalBroker, tmp_path: Path) -> Stage:
    """A deployment whose watches are all sealed."""
    found = Stage(broker, tmp_path)
    found.produce(traffic())
    with found.sealer() as sealer:
        found.drain(sealer)
    return found


@pytest.fixture
def run(stage: Stage, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The command line: exit status, and what it printed."""
    for name, value in as_environment(stage.settings).items():
        monkeypatch.setenv(name, value)

    def call(*arguments: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            freshet.main(list(arguments))
        printed = capsys.readouterr()
        failed = ended.value.code == 2  # what is wrong with shards goes to stdout
        return ended.value.code, printed.err if failed else printed.out  # type: ignore[return-value]

    return call


def test_list_names_what_is_announced(stage: Stage, run: Run) -> None:
    announced = stage.outcome().shards
    _, text = run("shards", "list")
    assert all(shard.shard_id in text for shard in announced)
    _, text = run("shards", "list", "--json", "--last", "2")
    assert [ShardSealed.model_validate(each) for each in json.loads(text)] == announced[-2:]


def test_show_prints_counts_and_rows_without_user_ids(stage: Stage, run: Run) -> None:
    outcome = stage.outcome()
    shard = outcome.shards[-1]
    status, text = run("shards", "show", shard.shard_id, "--rows", "100")
    rows = read_shard(stage.store.get_bytes(shard.path))
    assert status == 0
    assert f"watches {shard.watches}" in text
    assert text.count("user ") == len(rows)
    assert all(hashed(row.user_id) in text for row in rows)
    assert text.count("  + ") == shard.watches
    status, text = run("shards", "show", "nobody")
    assert (status, "`freshet shards list`" in text) == (2, True)


def test_verify_proves_that_every_offset_is_accounted_for(stage: Stage, run: Run) -> None:
    status, text = run("shards", "verify")
    assert (status, "every offset is accounted for exactly once" in text) == (0, True)
    assert f"{len(traffic())} offsets" in text


def test_verify_finds_what_is_wrong(stage: Stage, run: Run) -> None:
    first, second, third, *_ = stage.outcome().shards
    stage.store.remove(first.path)
    stage.store.put_bytes(second.path, b"something else")
    client = producer(stage.kafka)
    repeated = third.model_copy(
        update={"shard_id": "again", "dead_letters": third.dead_letters + 1}
    )
    send(client, stage.kafka, SHARDS, "0", repeated)
    flush(client)
    stage.store.put_bytes(f"{stage.kafka.topic_prefix}shards/orphan.parquet", b"")
    status, text = run("shards", "verify")
    assert status == 1
    for problem in (
        f"{first.path} is not in the object store",
        f"{second.path} has sha256",
        "again overlaps",
        "again announces",
        "1 files are not announced",
    ):
        assert problem in text, text
    assert "every offset" not in text


@pytest.mark.parametrize("topic", [SHARDS, DEAD_LETTERS[WATCHES.name]])
def test_verify_misses_nothing_that_has_outlived_its_retention(
    stage: Stage, run: Run, topic: Topic
) -> None:
    assert sum(shard.dead_letters for shard in stage.outcome().shards) > 0
    admin = AdminClient(client_config(stage.kafka))
    name = topic.in_cluster(stage.kafka)
    everything = [
        TopicPartition(name, at, OFFSET_END) for at in range(topic.num_partitions(stage.kafka))
    ]
    for done in admin.delete_records(everything).values():
        done.result(timeout=60)
    status, text = run("shards", "verify")
    assert status == 0, text


def test_rebuilt_shards_hold_the_rows_of_the_announced_ones(stage: Stage, run: Run) -> None:
    outcome = stage.outcome()
    status, text = run("shards", "rebuild", "--name", "all")
    assert (status, f"{len(outcome.watches)} watches" in text) == (0, True)
    folder = f"{stage.kafka.topic_prefix}rebuilt/all"
    lines = stage.store.get_bytes(f"{folder}/shards.jsonl").splitlines()
    rebuilt = [decode(ShardSealed, line) for line in lines]
    rows = [
        row
        for each in rebuilt
        for row in read_shard(stage.store.get_bytes(each.path, sha256=each.sha256))
    ]
    found = {(each.partition, each.offset): each for row in rows for each in row.watches}
    assert found == {(each.partition, each.offset): each for each in outcome.watches}
    assert run("shards", "rebuild", "--name", "all")[0] == 2
    assert run("shards", "rebuild", "--name", "../out")[0] == 2


def test_rebuilt_range_begins_with_the_histories_before_it(stage: Stage, run: Run) -> None:
    outcome = stage.outcome()
    run("shards", "rebuild", "--name", "part", "--from-offset", "100", "--to-offset", "140")
    folder = f"{stage.kafka.topic_prefix}rebuilt/part"
    lines = stage.store.get_bytes(f"{folder}/shards.jsonl").splitlines()
    rebuilt = [decode(ShardSealed, line) for line in lines]
    rows = [row for each in rebuilt for row in read_shard(stage.store.get_bytes(each.path))]
    wanted = {(each.partition, each.offset) for each in outcome.watches if 100 <= each.offset < 140}
    assert {(each.partition, each.offset) for row in rows for each in row.watches} == wanted
    before = sorted(each.offset for row in rows[:1] for each in row.watches)[0]
    [row] = [row for row in rows[:1]]
    watched = [
        each.video_id
        for announced in outcome.rows
        if announced.user_id == row.user_id
        for each in announced.watches
        if each.partition == row.watches[0].partition and each.offset < min(before, 100)
    ]
    assert sorted(each.video_id for each in row.history) == sorted(watched[-20:])
    assert {at.first_offset for each in rebuilt[:1] for at in each.ranges} == {100}
    assert {at.last_offset for each in rebuilt[-1:] for at in each.ranges} == {139}


def test_erased_user_is_in_no_later_shard(stage: Stage, run: Run) -> None:
    user_id = next(iter(stage.outcome().histories))
    status, text = run("users", "erase", user_id)
    assert (status, hashed(user_id) in text, user_id in text) == (0, True, False)
    stage.produce([(user_id, json.dumps(watch_event("anew", user_id=user_id)).encode())])
    with stage.sealer() as sealer:
        stage.drain(sealer)
    outcome = stage.outcome()
    [row] = [row for row in outcome.rows if row.watches[-1].event_id == "anew"]
    assert row.history == []
    assert outcome.histories[user_id].video_ids == ("v0",)
    assert run("shards", "verify")[0] == 0
