"""Watches in, shards out, on a real broker: nothing missing, nothing twice, whatever happens in between."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import TopicPartition

from infra.clock import Deadline
from infra.kafka.broker import LocalBroker
from infra.settings import KafkaSettings, Settings, StorageSettings, WatchSettings, as_environment
from infra.storage import ObjectStore
from streams.admin import create_topics
from streams.client import TopicReader, consumer, flush, producer, send
from streams.codec import decode
from streams.events import DeadLetter, SemanticIdAssigned, ShardSealed, UserHistory
from streams.shards import NewWatch, ShardRow, read_ranges, read_shard, verify_shards
from streams.topics import DEAD_LETTERS, HISTORIES, SEMANTIC_IDS, SHARDS, WATCHES, Topic
from workers.member_slot import MemberSlot
from workers.orphans import collect_orphans
from workers.restoring import high_watermarks
from workers.sealing import SealStep
from workers.watches import GROUP, Sealer

pytestmark = pytest.mark.integration

NOW_MS = 1_700_000_000_000
TIMEOUT_S = 150.0
REPOSITORY = Path(__file__).parents[2]


def watch(event_id: str, **changed: Any) -> dict[str, Any]:
    return {
        "event_id": event_id,
        "event_time_ms": NOW_MS,
        "user_id": "u0",
        "video_id": "v0",
        "surface": "home",
        "watched_s": 30.5,
        "duration_s": 61.0,
    } | changed


def traffic(seed: int = 0, count: int = 400) -> list[tuple[str, bytes]]:
    """Return keys and values: a few users, some events late, some delivered again, some poison."""
    chance = random.Random(seed)
    records: list[tuple[str, bytes]] = []
    for number in range(count):
        user_id = f"u{chance.randrange(12)}"
        if records and chance.random() < 0.1:
            records.append(records[-chance.randrange(1, min(len(records), 5) + 1)])
        elif chance.random() < 0.05:
            records.append((user_id, chance.choice([b"{", b"\xff", b'{"schema_version": 7}'])))
        else:
            event = watch(
                f"e{number}",
                user_id=user_id,
                video_id=f"v{chance.randrange(30)}",
                event_time_ms=NOW_MS + 1000 * (number - chance.choice([0, 0, 0, 7])),
                user={"region": chance.choice(["de", "tr"])},
            )
            records.append((user_id, json.dumps(event).encode()))
    return records


@dataclass(frozen=True)
class Outcome:
    """Everything that a reader of the topics and the store can see."""

    shards: list[ShardSealed]
    rows: list[ShardRow]
    histories: dict[str, UserHistory]
    dead_letters: list[DeadLetter]

    @property
    def watches(self) -> list[NewWatch]:
        return [each for row in self.rows for each in row.watches]

    def positions(self) -> list[tuple[int, int]]:
        return sorted((each.partition, each.offset) for each in self.watches)


class Stage:
    """One deployment on the shared broker, with topics and a store of its own."""

    def __init__(self, broker: LocalBroker, folder: Path, **limits: Any) -> None:
        self.settings = Settings(
            var_dir=folder,
            kafka=KafkaSettings(
                bootstrap_servers=broker.bootstrap_servers,
                topic_prefix=f"{uuid.uuid4().hex[:8]}.",
                partitions=2,
            ),
            storage=StorageSettings(root=str(folder / "store")),
            watches=WatchSettings(
                **{"shard_max_rows": 60, "shard_max_age_s": 0.5, "history_length": 20} | limits
            ),
        )
        self.kafka = self.settings.kafka
        self.store = ObjectStore(self.settings.storage.root)
        create_topics(self.kafka)
        self._producer = producer(self.kafka)

    def produce(self, records: list[tuple[str, bytes]]) -> None:
        for key, value in records:
            self._producer.produce(WATCHES.in_cluster(self.kafka), key=key, value=value)
        flush(self._producer)

    def assign_semantic_id(self, video_id: str, codes: tuple[int, ...]) -> None:
        event = SemanticIdAssigned(
            video_id=video_id,
            title="",
            channel="c",
            codes=codes,
            disambiguation_code=0,
            codebook_version=3,
            embedding_f16="",
            upload_time_ms=0,
            upload_append_time_ms=0,
            upload_position=0,
            assigned_time_ms=0,
        )
        send(self._producer, self.kafka, SEMANTIC_IDS, f"{video_id}:3", event)
        flush(self._producer)

    @contextmanager
    def sealer(self) -> Iterator[Sealer]:
        """A sealer in the first free slot: the one of a process that died."""
        slot = MemberSlot(self.settings.var_dir / "sealers")
        sealer = Sealer(self.settings, member=slot.name, store=self.store)
        try:
            yield sealer
        finally:
            sealer.close()
            slot.close()

    def process(self, signal_name: str, moment: str, count: int) -> subprocess.Popen[bytes]:
        script = Path(__file__).with_name("sealer_process.py")
        return subprocess.Popen(
            [sys.executable, str(script), signal_name, moment, str(count)],
            cwd=REPOSITORY,
            env=as_environment(self.settings) | {"PYTHONPATH": str(REPOSITORY)},
        )

    def drain(self, *sealers: Sealer) -> None:
        """Let the sealers work until every watch is covered by an announcement."""
        deadline = Deadline(TIMEOUT_S)
        with TopicReader(self.kafka, [SHARDS]) as reader, TopicReader(self.kafka, [WATCHES]) as log:
            ends = log.end_offsets()
            covered = {at: 0 for at in ends}
            while covered != ends:
                assert not deadline.expired(), f"covered {covered} of {ends}"
                for sealer in sealers:
                    sealer.step()
                for _, message in reader.poll(timeout_s=0.01):
                    for found in decode(ShardSealed, message.value()).ranges:
                        covered[WATCHES.name, found.partition] = found.last_offset + 1

    def _values(self, topic: Topic) -> list[tuple[bytes, bytes]]:
        """Return all keys and values; a commit that was just acknowledged is waited for."""
        ends = high_watermarks(self.kafka, topic, range(topic.num_partitions(self.kafka)))
        found = []
        deadline = Deadline(TIMEOUT_S)
        with TopicReader(self.kafka, [topic]) as reader:
            while any(reader.next_offsets[topic.name, at] < end for at, end in ends.items()):
                assert not deadline.expired()
                found += [(each.key(), each.value()) for _, each in reader.poll()]
        return found

    def outcome(self) -> Outcome:
        shards = [decode(ShardSealed, value) for _, value in self._values(SHARDS)]
        files = [self.store.get_bytes(shard.path, sha256=shard.sha256) for shard in shards]
        assert [read_ranges(file) for file in files] == [shard.ranges for shard in shards]
        letters = [
            DeadLetter.model_validate_json(value)
            for _, value in self._values(DEAD_LETTERS[WATCHES.name])
        ]
        return Outcome(
            shards=shards,
            rows=[row for file in files for row in read_shard(file)],
            histories={
                key.decode(): decode(UserHistory, value) for key, value in self._values(HISTORIES)
            },
            dead_letters=sorted(letters, key=lambda letter: (letter.partition, letter.offset)),
        )

    def committed_offsets(self) -> dict[int, int]:
        client = consumer(self.kafka, group=GROUP)
        name = WATCHES.in_cluster(self.kafka)
        wanted = [TopicPartition(name, partition) for partition in range(self.kafka.partitions)]
        found = {at.partition: at.offset for at in client.committed(wanted, timeout=30)}
        client.close()
        return found


def assert_same(found: Outcome, expected: Outcome) -> None:
    """Every offset once, and the same rows, histories and dead letters as in the other run."""
    assert verify_shards(found.shards) == []
    assert found.positions() == expected.positions()
    assert _by_offset(found) == _by_offset(expected)
    assert found.histories == expected.histories
    assert _refused(found) == _refused(expected)
    for count in ("watches", "duplicates", "dead_letters", "empty_offsets"):
        totals = [sum(getattr(shard, count) for shard in run.shards) for run in (found, expected)]
        assert totals[0] == totals[1], count


def _by_offset(outcome: Outcome) -> dict[tuple[int, int], tuple[str, str]]:
    return {
        (each.partition, each.offset): (row.user_id, each.event_id)
        for row in outcome.rows
        for each in row.watches
    }


def _refused(outcome: Outcome) -> list[tuple[int, int, str]]:
    return [(each.partition, each.offset, each.reason) for each in outcome.dead_letters]


@pytest.fixture(scope="module")
def uninterrupted(broker: LocalBroker, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """What the traffic becomes when nothing goes wrong."""
    stage = Stage(broker, tmp_path_factory.mktemp("uninterrupted"))
    stage.produce(traffic())
    with stage.sealer() as sealer:
        stage.drain(sealer)
    return stage.outcome()


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
        before += [(each.event_time_ms, each.video_id) for each in row.watches]
        before.sort(key=lambda found: found[0])
        del before[:-20]
    assert with_history
    for user_id, history in uninterrupted.histories.items():
        kept = [(entry.event_time_ms, entry.video_id) for entry in history.entries]
        assert sorted(kept) == sorted(seen[user_id])


def test_rows_carry_semantic_ids_that_are_known_when_sealed(
    broker: LocalBroker, tmp_path: Path
) -> None:
    stage = Stage(broker, tmp_path)
    stage.assign_semantic_id("known", (4, 2))
    stage.produce([("u0", json.dumps(watch("e1", video_id="known")).encode())])
    with stage.sealer() as sealer:
        stage.drain(sealer)
        stage.assign_semantic_id("later", (1, 1))
        stage.produce([("u0", json.dumps(watch("e2", video_id="later")).encode())])
        stage.produce([("u0", json.dumps(watch("e3", video_id="never")).encode())])
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
        ("u0", json.dumps(watch("e", schema_version=2)).encode(), "unknown_schema_version"),
        ("u0", json.dumps(watch("e", watched_s=-1)).encode(), "invalid_event"),
        ("u0", json.dumps(watch("e", user_id="u" * 1_000_000)).encode(), "invalid_event"),
        ("u0", json.dumps(watch("e", event_time_ms=4_000_000_000_000)).encode(), "event_time_in_future"),
        ("u1", json.dumps(watch("e")).encode(), "key_is_not_user_id"),
        ("k" * 1_000_000, b" " * 9_000_000, "too_large"),
    ]  # fmt: skip
    stage.produce([(key, value) for key, value, _ in poison])
    with stage.sealer() as sealer:
        stage.drain(sealer)
        only_poison = stage.outcome()
        stage.produce([("u0", json.dumps(watch("good")).encode())])
        stage.drain(sealer)
    outcome = stage.outcome()
    assert {shard.rows for shard in only_poison.shards} == {0}
    assert sorted(letter.reason for letter in outcome.dead_letters) == sorted(
        reason for _, _, reason in poison
    )
    assert [each.event_id for each in outcome.watches] == ["good"]
    assert verify_shards(outcome.shards) == []


def test_redelivered_event_is_dropped_also_after_a_restart(
    broker: LocalBroker, tmp_path: Path
) -> None:
    stage = Stage(broker, tmp_path)
    record = ("u0", json.dumps(watch("e1")).encode())
    stage.produce([record, record])
    with stage.sealer() as sealer:
        stage.drain(sealer)
    stage.produce([record, ("u0", json.dumps(watch("e2")).encode())])
    with stage.sealer() as sealer:
        stage.drain(sealer)
    outcome = stage.outcome()
    assert [each.event_id for each in outcome.watches] == ["e1", "e2"]
    assert sum(shard.duplicates for shard in outcome.shards) == 2


MOMENTS = ["HALF_WRITTEN", *(step.name for step in SealStep)]
KILLS = [(moment, count) for moment in MOMENTS for count in (1, 2, 4)]
SAMPLE = random.Random(5).sample(KILLS, 2)


@pytest.mark.parametrize(
    ("moment", "count"),
    [
        pytest.param(*kill, marks=[] if kill in SAMPLE else pytest.mark.long, id=f"{kill[0]}-{kill[1]}")
        for kill in KILLS
    ],
)  # fmt: skip
def test_sealer_killed_at_any_step_leaves_nothing_missing_and_nothing_twice(
    broker: LocalBroker, tmp_path: Path, uninterrupted: Outcome, moment: str, count: int
) -> None:
    stage = Stage(broker, tmp_path)
    stage.produce(traffic())
    killed = stage.process("SIGKILL", moment, count)
    assert killed.wait(TIMEOUT_S) == -signal.SIGKILL
    with stage.sealer() as sealer:
        stage.drain(sealer)
    assert_same(stage.outcome(), uninterrupted)
    announced = {shard.path for shard in stage.outcome().shards}
    assert collect_orphans(stage.kafka, stage.store) == []  # too young
    collect_orphans(stage.kafka, stage.store, grace_s=0)
    left = stage.store.unchanged_for(f"{stage.kafka.topic_prefix}shards", 0)
    assert set(left) == announced


def test_sealer_that_is_stopped_seals_what_it_has(broker: LocalBroker, tmp_path: Path) -> None:
    stage = Stage(broker, tmp_path, shard_max_rows=1000, shard_max_age_s=3600)
    stage.produce(traffic())
    stopping = threading.Event()
    with stage.sealer() as sealer:
        deadline = Deadline(TIMEOUT_S)
        while sealer._builder is None or sealer._builder.records < 400:
            assert not deadline.expired()
            sealer.step()
        stopping.set()
        sealer.run(stopping)
    [shard] = stage.outcome().shards
    assert stage.committed_offsets() == {at.partition: at.last_offset + 1 for at in shard.ranges}


def test_sigterm_while_sealing_finishes_the_shard(broker: LocalBroker, tmp_path: Path) -> None:
    stage = Stage(broker, tmp_path)
    stage.produce(traffic())
    process = stage.process("SIGTERM", SealStep.OFFSETS_SENT.name, 2)
    assert process.wait(TIMEOUT_S) == 0
    outcome = stage.outcome()
    assert len(outcome.shards) == 2
    assert verify_shards(outcome.shards) == []


def test_second_member_joining_mid_shard_shares_the_work(
    broker: LocalBroker, tmp_path: Path, uninterrupted: Outcome
) -> None:
    stage = Stage(broker, tmp_path, shard_max_age_s=1.0)
    records = traffic()
    stage.produce(records[:30])
    with stage.sealer() as first:
        deadline = Deadline(TIMEOUT_S)
        while first._builder is None or not first._builder.records:
            assert not deadline.expired()
            first.step()
        with stage.sealer() as second:
            while len(first._assigned) != 1 or len(second._assigned) != 1:
                assert not deadline.expired()
                first.step()
                second.step()
            stage.produce(records[30:])
            stage.drain(first, second)
    outcome = stage.outcome()
    assert_same(outcome, uninterrupted)
    assert len({shard.shard_id.split("-")[2] for shard in outcome.shards}) == 2  # writers


@pytest.mark.parametrize(
    "moment",
    [
        "FILE_WRITTEN",
        *(
            pytest.param(each, marks=pytest.mark.long)  # 60 s each, until the broker ends a transaction
            for each in ("TRANSACTION_BEGUN", "RESULTS_PRODUCED", "OFFSETS_SENT")
        ),
    ],
)  # fmt: skip
def test_zombie_that_wakes_up_commits_nothing(
    broker: LocalBroker, tmp_path: Path, uninterrupted: Outcome, moment: str
) -> None:
    stage = Stage(broker, tmp_path)
    stage.produce(traffic())
    zombie = stage.process("SIGSTOP", moment, 2)
    try:
        _, status = os.waitpid(zombie.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        with stage.sealer() as sealer:
            stage.drain(sealer)
            before = stage.outcome()
            zombie.send_signal(signal.SIGCONT)
            zombie.send_signal(signal.SIGTERM)
            deadline = Deadline(TIMEOUT_S)
            while zombie.poll() is None:
                assert not deadline.expired()
                sealer.step()
    finally:
        zombie.kill()
    assert_same(before, uninterrupted)
    assert stage.outcome() == before
