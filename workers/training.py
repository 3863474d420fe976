"""The training loop: new shards and new videos in, checkpoints out; `freshet train`.

    loop        consumes                                waits for             produces
    supervisor  training.shards, video.semantic_ids     the actor's round     model.checkpoints
    actor       rows and videos of one round            nothing               a checkpoint folder

Exactly once in effect: the positions in both topics are in the checkpoint, never in a consumer group. A round is
(1) read what is new, (2) train, (3) save the checkpoint with the new positions, (4) announce it. Killed at any point,
the loop goes on from the newest complete checkpoint: before (3) the same ranges are consumed again by the same state,
after (3) they are not, and an announcement that is missing is made up for at the start.

Knows nothing of how the model learns (`workers.training_round`) and of serving.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ray
from confluent_kafka import Message
from ray.exceptions import RayActorError

from infra import metrics
from infra.claim import claim
from infra.clock import now_ms
from infra.errors import ConfigError, DecodeError, TransientError, VersionMismatchError
from infra.log import configure, get_logger
from infra.ray_cluster import ensure_ray
from infra.settings import Settings
from infra.storage import ObjectStore
from models.codebook import current_manifest
from streams.catalogue import Catalogue
from streams.client import TopicReader, flush, producer, send
from streams.codec import decode
from streams.events import LRM_MODEL_NAME, CheckpointPromoted, ShardSealed
from streams.shards import ShardRow, read_shard
from streams.topics import CHECKPOINTS, SEMANTIC_IDS, SHARDS
from workers.training_actor import LrmTrainerActor, RoundOutcome, RoundTask, Video
from workers.training_state import (
    Positions,
    checkpoint_key,
    checkpoint_versions,
    load_positions,
    read_record,
)

log = get_logger()
ACTOR_DEATHS_MAX = 3  # in a row; then the process ends, and says so


@dataclass
class Pending:
    """What was read since the last checkpoint; cleared only when the next one is complete."""

    shards: list[tuple[int, ShardSealed]] = field(default_factory=list)  # with their offsets
    new_video_ids: dict[str, None] = field(default_factory=dict)
    positions: Positions = field(default_factory=Positions)


class TrainingLoop:
    """Reads, gives rounds to the actor, announces what passed."""

    def __init__(self, settings: Settings, *, model_name: str = LRM_MODEL_NAME) -> None:
        self._settings = settings
        self._model_name = model_name
        self._store = ObjectStore(settings.storage.root)
        version = self._newest_version()
        positions = load_positions(self._store, model_name, version)
        self._actor_deaths = 0
        self._pending = Pending(positions=positions)
        self._learned = dict(positions.next_semantic_id_offsets)
        self._catalogue = Catalogue(self._agreed_codebook(version))
        self._changes: dict[str, Video | None] = {}
        self._videos_reader = TopicReader(settings.kafka, [SEMANTIC_IDS])
        start = {(SHARDS.name, 0): positions.next_shard_offset}
        self._shards_reader = TopicReader(settings.kafka, [SHARDS], start=start)
        self._producer = producer(settings.kafka)
        self._announce_missing(version)
        for _, message in self._videos_reader.read_to_end():
            self._take_video(message)
        self._actor = self._start_actor()

    def _newest_version(self) -> int:
        versions = checkpoint_versions(self._store, self._model_name)
        if not versions:
            raise ConfigError(
                f"no checkpoint of {self._model_name!r} in {self._settings.storage.root}: "
                "run `freshet bootstrap` first"
            )
        return versions[-1]

    def _agreed_codebook(self, model_version: int) -> int:
        """Return the codebook_version that checkpoint and object store agree on."""
        current = current_manifest(self._store).codebook_version
        spoken = read_record(self._store, self._model_name, model_version)["codebook_version"]
        if spoken != current:
            raise VersionMismatchError(
                f"checkpoint {model_version} speaks codebook {spoken}, the object store's current one is {current}: "
                "run `freshet bootstrap` to fit a model to it"
            )
        return current

    def _start_actor(self) -> Any:
        actor = LrmTrainerActor.remote(self._settings, self._model_name)  # type: ignore[attr-defined]
        self._changes = {
            video_id: Video.of(found) for video_id, found in self._catalogue.videos.items()
        }
        return actor

    def actor_pid(self) -> Any:
        """Return a reference to the actor's process id, for operators."""
        return self._actor.pid.remote()

    def _take_video(self, message: Message) -> None:
        partition, offset = message.partition(), message.offset()
        try:
            change = self._catalogue.apply(message.key(), message.value())
        except DecodeError as error:
            log.warning(
                "record_refused", topic=SEMANTIC_IDS.name, offset=offset, reason=error.reason
            )
            metrics.DEAD_LETTERS.labels(SEMANTIC_IDS.name, error.reason).inc()
            return
        if change is None:
            return
        self._changes[change.video_id] = Video.of(change.current) if change.current else None
        if offset >= self._learned.get(partition, 0):
            self._pending.new_video_ids[change.video_id] = None

    def poll(self) -> None:
        """Read what is new; videos first, so that a shard's videos are known when it is trained on."""
        shards = self._shards_reader.poll(timeout_s=self._settings.training.idle_poll_s)
        for _, message in shards:
            try:
                sealed = decode(ShardSealed, message.value())
                self._pending.shards.append((message.offset(), sealed))
            except DecodeError as error:
                metrics.DEAD_LETTERS.labels(SHARDS.name, error.reason).inc()
                log.warning("record_refused", topic=SHARDS.name, reason=error.reason)
        for _, message in self._videos_reader.read_to_end():
            self._take_video(message)
        metrics.BACKLOG.set(len(self._pending.shards))

    def run(
        self, stopping: threading.Event, *, on_round: Callable[[RoundOutcome], None] | None = None
    ) -> None:
        """Train rounds until told to stop."""
        while not stopping.is_set():
            self.poll()
            enough_videos = (
                len(self._pending.new_video_ids) >= self._settings.training.new_videos_min
            )
            if not self._pending.shards and not enough_videos:
                continue
            outcome = self._round(stopping)
            if outcome is not None and on_round is not None:
                on_round(outcome)

    def _round(self, stopping: threading.Event) -> RoundOutcome | None:
        """Give the actor what is pending and wait; None when stopped, or when the actor died and must try again."""
        taken = self._take_shards()
        rows, shard_ids = self._rows([shard for _, shard in taken])
        task = RoundTask(
            rows=rows,
            shard_ids=shard_ids,
            new_video_ids=tuple(self._pending.new_video_ids),
            positions=self._positions(taken),
        )
        try:
            self._actor.update_videos.remote(self._changes)
            reference = self._actor.run_round.remote(task)
            while not ray.wait([reference], timeout=0.5)[0]:
                if stopping.is_set():
                    return None
            outcome: RoundOutcome = ray.get(reference)
        except RayActorError as error:
            self._replace_actor(error, task.positions, len(taken))
            return None
        self._actor_deaths = 0
        self._changes = {}
        self._move_on(task.positions, len(taken))
        self._conclude(outcome, task.shard_ids)
        return outcome

    def _take_shards(self) -> list[tuple[int, ShardSealed]]:
        """Return the next shards, as many as a round may have watches, and one at least."""
        watches = 0
        for number, (_, shard) in enumerate(self._pending.shards):
            watches += shard.watches
            if watches >= self._settings.training.round_watches_max:
                return self._pending.shards[: number + 1]
        return list(self._pending.shards)

    def _positions(self, taken: list[tuple[int, ShardSealed]]) -> Positions:
        if len(taken) < len(self._pending.shards):
            next_shard = taken[-1][0] + 1
        else:
            next_shard = self._shards_reader.next_offsets[SHARDS.name, 0]
        videos = {at: to for (_, at), to in self._videos_reader.next_offsets.items()}
        return Positions(next_shard, videos)

    def _move_on(self, positions: Positions, num_taken: int) -> None:
        self._learned = dict(positions.next_semantic_id_offsets)
        self._pending = Pending(shards=self._pending.shards[num_taken:], positions=positions)

    def _replace_actor(self, error: RayActorError, positions: Positions, num_taken: int) -> None:
        """Start another actor; it goes on from the newest checkpoint, which may be that of the round it died in."""
        self._actor_deaths += 1
        metrics.ROUNDS.labels("actor_died").inc()
        log.warning("training_actor_died", error=str(error), in_a_row=self._actor_deaths)
        if self._actor_deaths >= ACTOR_DEATHS_MAX:
            raise TransientError(
                f"the training actor died {self._actor_deaths} times in a row: {error}"
            )
        newest = self._newest_version()
        if load_positions(self._store, self._model_name, newest) == positions:
            self._announce_missing(newest)
            self._move_on(positions, num_taken)
        self._actor = self._start_actor()

    def _rows(self, shards: list[ShardSealed]) -> tuple[list[ShardRow], tuple[str, ...]]:
        """Return the rows of all shards that are what was announced, and those shards' ids; others are counted.

        Raises:
            TransientError: a shard is not in the object store; it may come back, and must not be skipped.
        """
        rows: list[ShardRow] = []
        learned = []
        for shard in shards:
            try:
                rows += read_shard(self._store.get_bytes(shard.path, sha256=shard.sha256))
                learned.append(shard.shard_id)
            except (VersionMismatchError, DecodeError) as error:
                metrics.SHARDS.labels("skipped").inc()
                log.error("shard_skipped", shard_id=shard.shard_id, error=str(error))
        return rows, tuple(learned)

    def _conclude(self, outcome: RoundOutcome, shard_ids: tuple[str, ...]) -> None:
        verdict = "refused" if outcome.refused else "promoted"
        metrics.ROUNDS.labels(verdict).inc()
        for name, value in outcome.metrics.items():
            if name == "prequential_recall_at_10":
                metrics.PREQUENTIAL_RECALL.set(value)
            elif name == "unknown_video_watches":
                metrics.UNKNOWN_VIDEOS.inc(value)
        measured = {name: round(value, 4) for name, value in outcome.metrics.items()}
        log.info(
            f"checkpoint_{verdict}",
            model_version=outcome.model_version,
            shards=len(shard_ids),
            seconds=round(outcome.seconds, 2),
            reason=outcome.refused,
            **measured,
        )
        if not outcome.refused:
            self._announce(
                outcome.model_version,
                outcome.sha256,
                outcome.metrics,
                shard_ids,
                outcome.newest_event_time_ms,
            )
            metrics.LAST_SUCCESS.labels("shard_to_checkpoint").set_to_current_time()
        self._collect()

    def _announce(
        self,
        model_version: int,
        sha256: str,
        measured: dict[str, float],
        shard_ids: tuple[str, ...],
        newest_event_time_ms: int,
    ) -> None:
        event = CheckpointPromoted(
            model_name=self._model_name,
            model_version=model_version,
            codebook_version=self._catalogue.codebook_version,
            path=checkpoint_key(self._model_name, model_version),
            sha256=sha256,
            metrics=measured,
            shard_ids=shard_ids,
            newest_event_time_ms=newest_event_time_ms,
            promoted_time_ms=now_ms(),
        )
        send(self._producer, self._settings.kafka, CHECKPOINTS, self._model_name, event)
        flush(self._producer)

    def _announce_missing(self, newest: int) -> None:
        """Announce the newest promoted checkpoint if a crash came between saving and announcing it."""
        announced = 0
        with TopicReader(self._settings.kafka, [CHECKPOINTS]) as reader:
            for _, message in reader.read_to_end():
                if message.key() != self._model_name.encode():
                    continue
                try:
                    announced = max(
                        announced, decode(CheckpointPromoted, message.value()).model_version
                    )
                except DecodeError as error:
                    log.warning("record_refused", topic=CHECKPOINTS.name, reason=error.reason)
        record = read_record(self._store, self._model_name, newest)
        if newest > announced and not record["record"]["refused"]:
            self._announce(
                newest,
                record["sha256"],
                record["record"]["metrics"],
                tuple(record["record"]["shard_ids"]),
                record["newest_event_time_ms"],
            )

    def _collect(self) -> None:
        """Remove all but the newest checkpoints; the promoted one and the one before it are always among those."""
        versions = checkpoint_versions(self._store, self._model_name)
        promoted = [
            one
            for one in versions
            if not read_record(self._store, self._model_name, one)["record"]["refused"]
        ]
        kept = {*versions[-self._settings.training.keep_checkpoints :], *promoted[-2:]}
        for version in versions:
            if version not in kept:
                self._store.remove(checkpoint_key(self._model_name, version))

    def close(self) -> None:
        """End the actor and leave the brokers; nothing is lost that the next start needs."""
        ray.kill(self._actor)
        self._videos_reader.close()
        self._shards_reader.close()


def run(settings: Settings) -> None:
    """Be the training process until SIGTERM or SIGINT; a round that is under way is given up and repeated later."""
    configure("train", level=settings.log.level, format=settings.log.format)
    metrics.expose(settings.metrics.host, settings.metrics.training_port)
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    with claim(settings.var_dir / "training.lock", "training loop"), ensure_ray(settings):
        loop = TrainingLoop(settings)
        try:
            loop.run(stopping)
        finally:
            loop.close()
