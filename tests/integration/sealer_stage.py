"""One deployment of the sealer on the shared broker, the traffic it gets, and all that its readers can see."""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from confluent_kafka import TopicPartition

from infra.clock import Deadline
from infra.kafka.broker import LocalBroker
from infra.settings import KafkaSettings, Settings, StorageSettings, WatchSettings, as_environment
from infra.storage import ObjectStore
from streams.admin import create_topics
from streams.client import TopicReader, consumer, flush, producer, send
from streams.codec import decode
from streams.events import DeadLetter, SemanticIdAssigned, ShardSealed, UserHistory, VideoCounts
from streams.shards import NewWatch, ShardRow, read_ranges, read_shard, verify_shards
from streams.topics import COUNTS, DEAD_LETTERS, HISTORIES, SEMANTIC_IDS, SHARDS, WATCHES, Topic
from workers.member_slot import MemberSlot
from workers.restoring import high_watermarks
from workers.watches import GROUP, Sealer

NOW_MS = 1_700_000_000_000
TIMEOUT_S = 150.0
REPOSITORY = Path(__file__).parents[2]


def watch_event(event_id: str, **changed: Any) -> dict[str, Any]:
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
            event = watch_event(
                f"e{number}",
                user_id=user_id,
                video_id=f"v{chance.randrange(30)}",
                event_time_ms=NOW_MS + 1000 * (number - chance.choice([0, 0, 0, 3, 7])),
                user={"region": chance.choice(["de", "tr"])},
                liked=chance.random() < 0.2,
                watched_s=chance.choice([10, 61]),
                arm=chance.choice([None, "lrm"]),
            )
            records.append((user_id, json.dumps(event).encode()))
    return records


CountKey = tuple[str, str, str, int]


@dataclass(frozen=True)
class Outcome:
    """Everything that a reader of the topics and the store can see."""

    shards: list[ShardSealed]
    rows: list[ShardRow]
    histories: dict[str, UserHistory]
    dead_letters: list[DeadLetter]
    counts: dict[CountKey, list[float]]
    """Views, completed views, likes and watched seconds, summed up."""

    @property
    def watches(self) -> list[NewWatch]:
        return [each for row in self.rows for each in row.watches]

    def positions(self) -> list[tuple[int, int]]:
        return sorted((each.partition, each.offset) for each in self.watches)


def erasure(event_id: str, user_id: str) -> tuple[str, bytes]:
    """Return key and value."""
    event = {"type": "erased", "event_id": event_id, "event_time_ms": NOW_MS, "user_id": user_id}
    return user_id, json.dumps(event).encode()


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
                **{
                    "shard_max_rows": 60,
                    "shard_max_age_s": 0.5,
                    "history_length": 20,
                    "lateness_s": 5,
                    "counts_window_s": 60,
                }
                | limits
            ),
        )
        self.kafka = self.settings.kafka
        self.store = ObjectStore(self.settings.storage.root)
        self.settings.var_dir.mkdir(parents=True, exist_ok=True)
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

    def process(
        self, signal_name: str, moment: str, count: int, *, file_bytes_max: int | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a sealer that a signal hits at a moment; `file_bytes_max` fails the writes of larger files."""
        script = Path(__file__).with_name("sealer_process.py")
        with (self.settings.var_dir / "sealer.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, str(script), signal_name, moment, str(count)],
                cwd=REPOSITORY,
                env=as_environment(self.settings) | {"PYTHONPATH": str(REPOSITORY)},
                stdout=log,
                stderr=log,
            )
        if file_bytes_max is not None:
            hard = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)[1]
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (file_bytes_max, hard))
        return process

    def lift_limit(self, process: subprocess.Popen[bytes]) -> None:
        """Let a process write files of any size again."""
        hard = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)[1]
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (hard, hard))

    def is_covered(self) -> bool:
        """Return whether every watch that is there is covered by an announcement."""
        with TopicReader(self.kafka, [SHARDS]) as reader, TopicReader(self.kafka, [WATCHES]) as log:
            covered = dict.fromkeys(log.next_offsets, 0)
            for _, message in reader.read_to_end():
                for found in decode(ShardSealed, message.value()).ranges:
                    covered[WATCHES.name, found.partition] = found.last_offset + 1
            return covered == log.end_offsets()

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

    def values(self, topic: Topic) -> list[tuple[bytes, bytes | None]]:
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
        """Return what the topics and the store hold now."""
        shards = [decode(ShardSealed, value) for _, value in self.values(SHARDS)]
        files = [self.store.get_bytes(shard.path, sha256=shard.sha256) for shard in shards]
        assert [read_ranges(file) for file in files] == [shard.ranges for shard in shards]
        letters = [
            DeadLetter.model_validate_json(value or b"")
            for _, value in self.values(DEAD_LETTERS[WATCHES.name])
        ]
        return Outcome(
            shards=shards,
            rows=[row for file in files for row in read_shard(file)],
            histories=self._histories(),
            dead_letters=sorted(letters, key=lambda letter: (letter.partition, letter.offset)),
            counts=self._counts(),
        )

    def _histories(self) -> dict[str, UserHistory]:
        found: dict[str, UserHistory] = {}
        for key, value in self.values(HISTORIES):
            if value is None:
                found.pop(key.decode(), None)
            else:
                found[key.decode()] = decode(UserHistory, value)
        return found

    def _counts(self) -> dict[CountKey, list[float]]:
        found: dict[CountKey, list[float]] = {}
        for _, value in self.values(COUNTS):
            each = decode(VideoCounts, value)
            sums = found.setdefault(
                (each.video_id, each.surface, each.arm, each.window_start_ms), [0, 0, 0, 0]
            )
            for at, count in enumerate(
                (each.views, each.completed_views, each.likes, each.watched_s)
            ):
                sums[at] = round(sums[at] + count, 1)
        return found

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
    assert found.counts == expected.counts
    for count in ("watches", "duplicates", "dead_letters", "empty_offsets", "erased", "late"):
        totals = [sum(getattr(shard, count) for shard in run.shards) for run in (found, expected)]
        assert totals[0] == totals[1], count


def _by_offset(outcome: Outcome) -> dict[tuple[int, int], tuple[str, str, bool]]:
    return {
        (each.partition, each.offset): (row.user_id, each.event_id, each.late)
        for row in outcome.rows
        for each in row.watches
    }


def _refused(outcome: Outcome) -> list[tuple[int, int, str]]:
    return [(each.partition, each.offset, each.reason) for each in outcome.dead_letters]


def uninterrupted_outcome(broker: LocalBroker, folder: Path) -> Outcome:
    """Return what the traffic becomes when nothing goes wrong."""
    stage = Stage(broker, folder)
    stage.produce(traffic())
    with stage.sealer() as sealer:
        stage.drain(sealer)
    return stage.outcome()
