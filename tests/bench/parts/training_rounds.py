"""Rounds of the real training loop on a real broker and Ray, and where the seconds of each went.

A shard is announced as the sealer does it, and the clock stops when a consumer has read of its checkpoint.
Knows nothing of how the model was fitted before.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from infra.clock import Laps
from infra.errors import FreshetError
from infra.kafka.broker import start_broker
from infra.ray_cluster import ensure_ray
from infra.settings import Settings, load_settings, with_values
from infra.storage import ObjectStore
from streams.admin import create_topics
from streams.catalogue import semantic_id_key
from streams.client import TopicReader, flush, producer, send, wait_until
from streams.codec import decode
from streams.events import (
    LRM_MODEL_NAME,
    CheckpointPromoted,
    SemanticIdAssigned,
    ShardSealed,
)
from streams.shards import ShardRow, write_shard
from streams.topics import CHECKPOINTS, SEMANTIC_IDS, SHARDS
from tests.bench.parts.marks import say
from tests.bench.parts.movielens_rows import SPACE
from tests.sealed_shards import sealed_shard
from tests.tiny_serving import publish_tiny_codebook
from workers.training import TrainingLoop
from workers.training_actor import RoundOutcome
from workers.training_intake import ShardRows
from workers.training_state import Plan, TrainingState, save_state

PARTS = (
    "notice",
    "read",
    "score",
    "examples",
    "train",
    "gates",
    "adapters",
    "checkpoint",
    "announce",
    "other",
)
"""Of a round: until the loop has the announcement and a plan, read the shard, score what is new, make examples and pack
them, train, gates, train adapters where there are any, save the checkpoint, announce it until a consumer knows; other
is Ray and what is none of these."""
TIMEOUT_S = 300.0
POLL_S = 0.01


@dataclass(frozen=True)
class Round:
    """From a shard's announcement to its checkpoint's, with the seconds by part."""

    seconds: float
    parts: dict[str, float]


class TimedLoop(TrainingLoop):
    """The loop, with laps of its own for what it does around the actor's work."""

    laps = Laps()

    def _round(self, plan: Plan, stopping: threading.Event) -> RoundOutcome | None:
        self.laps.end("notice")
        read_rows = self._intake.read_rows

        def timed_rows(plan: Plan) -> ShardRows:
            rows = read_rows(plan)
            self.laps.end("read")
            return rows

        with patch.object(self._intake, "read_rows", timed_rows):
            return super()._round(plan, stopping)

    def _conclude(self, outcome: RoundOutcome, shard_ids: tuple[str, ...]) -> None:
        self.laps.end("actor")
        super()._conclude(outcome, shard_ids)


def timed_rounds(
    folder: Path,
    state: TrainingState,
    assigned: Sequence[SemanticIdAssigned],
    shards: Iterable[Sequence[ShardRow]],
) -> list[Round]:
    """Save the state as the first checkpoint, then announce one shard after the other, each when the last is learned.

    Raises:
        FreshetError: a round was refused by a gate, so that nothing was promoted.
    """
    jars_dir = load_settings().kafka.jars_dir
    with start_broker(folder / "broker", jars_dir=jars_dir, timeout_s=180) as broker:
        settings = with_values(
            Settings(var_dir=folder / "var"),
            kafka__bootstrap_servers=broker.bootstrap_servers,
            storage__root=str(folder / "store"),
        )
        _prepare(settings, state, assigned)
        with ensure_ray(settings), _Running(settings) as running:
            return [running.round(number, rows) for number, rows in enumerate(shards)]


def _prepare(
    settings: Settings, state: TrainingState, assigned: Sequence[SemanticIdAssigned]
) -> None:
    create_topics(settings.kafka)
    store = ObjectStore(settings.storage.root)
    publish_tiny_codebook(store, SPACE)
    client = producer(settings.kafka)
    for one in assigned:
        send(client, settings.kafka, SEMANTIC_IDS, semantic_id_key(one.video_id, 1), one)
    flush(client)
    with TopicReader(settings.kafka, [SEMANTIC_IDS], from_end=True) as reader:
        state.positions.next_semantic_id_offsets = {
            at: to for (_, at), to in reader.next_offsets.items()
        }
    record: dict[str, Any] = {"shard_ids": [], "metrics": {}, "refused": ""}
    scratch = settings.var_dir / "scratch"
    save_state(state, store, LRM_MODEL_NAME, scratch=scratch, record=record)


class _Running:
    """A loop in a thread, a producer of shards and a consumer of checkpoints."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._outcomes: list[RoundOutcome] = []
        self._promoted: dict[str, float] = {}
        self._stopping = threading.Event()
        self._loop = TimedLoop(settings)
        self._checkpoints = TopicReader(settings.kafka, [CHECKPOINTS])
        self._announcer = producer(settings.kafka, transactional_id="sealer")
        self._announcer.init_transactions()
        self._thread = threading.Thread(
            target=self._loop.run,
            args=(self._stopping,),
            kwargs={"on_round": self._outcomes.append},
        )

    def __enter__(self) -> _Running:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()
        self._checkpoints.close()
        self._loop.close()

    def round(self, number: int, rows: Sequence[ShardRow]) -> Round:
        """Announce a shard and wait until its checkpoint is."""
        sealed = _stored(ObjectStore(self._settings.storage.root), number, rows)
        self._loop.laps = Laps()
        started = time.monotonic()
        self._announcer.begin_transaction()
        send(self._announcer, self._settings.kafka, SHARDS, "0", sealed)
        self._announcer.commit_transaction()
        promoted = f"the promotion of {sealed.shard_id}"
        wait_until(
            lambda: self._is_over(sealed.shard_id, number),
            timeout_s=TIMEOUT_S,
            what=promoted,
            interval_s=0,
        )
        outcome = self._outcomes[number]
        if outcome.refused:
            raise FreshetError(f"no {promoted}: {outcome.refused}")
        seconds = self._promoted[sealed.shard_id] - started
        parts = parts_of(seconds, self._loop.laps.seconds, outcome.laps_s)
        say(f"  {sealed.watches} watches, {outcome.metrics['tokens']:.0f} tokens: {seconds:.2f} s")
        return Round(seconds, parts)

    def _is_over(self, shard_id: str, number: int) -> bool:
        for _, message in self._checkpoints.poll(timeout_s=POLL_S):
            now = time.monotonic()
            for one in decode(CheckpointPromoted, message.value()).shard_ids:
                self._promoted.setdefault(one, now)
        if len(self._outcomes) <= number:
            return False
        return shard_id in self._promoted or bool(self._outcomes[number].refused)


def parts_of(
    seconds: float, around: dict[str, float], within: dict[str, float]
) -> dict[str, float]:
    """Return the seconds of each part; the actor's own laps replace the time that the loop waited for it."""
    announce = seconds - sum(around.values())
    parts = {"notice": around["notice"], "read": around["read"], **within, "announce": announce}
    return parts | {"other": around["actor"] - sum(within.values())}


def _stored(store: ObjectStore, number: int, rows: Sequence[ShardRow]) -> ShardSealed:
    path = f"shards/bench-{number}.parquet"
    return sealed_shard(
        f"shard-{number}",
        (0, number, number),
        path=path,
        sha256=store.put_bytes(path, write_shard(list(rows))),
        rows=len(rows),
        watches=sum(len(row.watches) for row in rows),
    )


def in_shards(
    rows: Sequence[ShardRow], *, watches: int, count: int, rng: random.Random
) -> list[list[ShardRow]]:
    """Draw rows, each at most once, into `count` shards of at least so many watches, as far as there are rows."""
    left = rng.sample(list(rows), len(rows))
    shards: list[list[ShardRow]] = []
    while left and len(shards) < count:
        shard: list[ShardRow] = []
        while left and sum(len(row.watches) for row in shard) < watches:
            shard.append(left.pop())
        shards.append(shard)
    return shards
