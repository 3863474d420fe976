"""The training loop: new shards and new videos in, checkpoints out; `freshet train`.

    loop        consumes                                waits for             produces
    supervisor  training.shards, video.semantic_ids,    the actor's round     model.checkpoints
                serving.impressions, if they rank
    actor       rows and videos of one round            nothing               a checkpoint folder

There is one such pair for each model, and none knows of another: each has its own positions, plan and checkpoints.

Exactly once in effect: the positions in all topics are in the checkpoint, never in a consumer group. A round is
(1) write down what it takes, (2) train, (3) save the checkpoint with the new positions, (4) announce it. Killed at any
point, the loop goes on from the newest complete checkpoint: between (1) and (3) the same state takes the same again,
after (3) it does not, and an announcement that is missing is made up for at the start. A round that may work later,
as when a shard is missing or the disk is full, is put off and tried again as it was, for as long as it takes.

Knows nothing of how the model learns (`workers.training_round`) and of what a round takes (`workers.training_intake`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import ray
from confluent_kafka import KafkaException
from ray.exceptions import RayActorError, RayTaskError

from infra import metrics
from infra.claim import claim
from infra.clock import now_ms
from infra.errors import ConfigError, DecodeError, TransientError, VersionMismatchError
from infra.log import configure, get_logger
from infra.ray_cluster import ensure_ray
from infra.settings import Settings
from infra.stopping import stop_on_signal
from infra.storage import ObjectStore
from models.codebook import current_manifest
from streams.client import TopicReader, flush, producer, send
from streams.codec import decode
from streams.events import LRM_MODEL_NAME, CheckpointPromoted
from streams.topics import CHECKPOINTS
from workers.promotions import log_adapters, promotions
from workers.trainers import TRAINERS
from workers.training_actor import RoundOutcome, RoundTask
from workers.training_intake import TrainingIntake
from workers.training_round import EARLIER_WATCHES, metric_name
from workers.training_state import (
    Plan,
    checkpoint_key,
    checkpoint_versions,
    load_plan,
    load_positions,
    read_record,
    save_plan,
)
from workers.two_tower_state import TWO_TOWERS

log = get_logger()
ACTOR_DEATHS_MAX = 3  # in a row; then the process ends, and says so
RETRY_S = 1.0
SHARD_STAGE = "shard_to_checkpoint"
PUT_OFF_S = (1.0, 2.0, 5.0, 10.0, 30.0)
"""What a round waits for that may work later (a shard is missing, the disk is full), by how often in a row."""


class TrainingLoop:
    """Of one model: reads, gives rounds to its actor, announces what passed."""

    def __init__(self, settings: Settings, *, model_name: str = LRM_MODEL_NAME) -> None:
        self._settings = settings
        self.model_name = model_name
        self._store = ObjectStore(settings.storage.root)
        self._trainer = TRAINERS[model_name]
        version = self._newest_version()
        # What Ray has set aside for the workers of an actor that was killed is free when this process ends, not before.
        has_workers = model_name == LRM_MODEL_NAME and settings.training.workers > 1
        self._actor_deaths_max = 1 if has_workers else ACTOR_DEATHS_MAX
        self._actor_deaths = 0
        self._put_offs = 0
        self._plan = load_plan(self._store, model_name, version + 1)
        self._intake = TrainingIntake(
            settings,
            self._store,
            model_name=model_name,
            codebook_version=self._agreed_codebook(version),
            positions=load_positions(self._store, model_name, version),
            until=self._plan,
            video_of=self._trainer.video_of,
        )
        for verdict in ("promoted", "refused"):
            metrics.ROUNDS.labels(model_name, verdict)
        for counter in (metrics.UNKNOWN_VIDEOS, metrics.WATCHES_LEFT_OUT, metrics.SHARDS_SKIPPED):
            counter.labels(model_name)
        self._producer = producer(settings.kafka)
        self._announce_missing(version)
        self._actor = self._start_actor()

    def _newest_version(self) -> int:
        versions = checkpoint_versions(self._store, self.model_name)
        if not versions:
            raise ConfigError(
                f"no checkpoint of {self.model_name!r} in {self._settings.storage.root}: "
                "run `freshet bootstrap` first"
            )
        return versions[-1]

    def _agreed_codebook(self, model_version: int) -> int:
        """Return the codebook_version that checkpoint and object store agree on."""
        current = current_manifest(self._store).codebook_version
        spoken = read_record(self._store, self.model_name, model_version)["codebook_version"]
        if spoken != current:
            raise VersionMismatchError(
                f"checkpoint {model_version} speaks codebook {spoken}, the object store's current one is {current}: "
                "run `freshet bootstrap` to fit a model to it"
            )
        return current

    def _start_actor(self) -> Any:
        actor = self._trainer.actor.remote(self._settings, self.model_name)
        self._intake.repeat_videos()
        return actor

    def actor_pid(self) -> Any:
        """Return a reference to the actor's process id, for operators."""
        return self._actor.pid.remote()

    def run(
        self, stopping: threading.Event, *, on_round: Callable[[RoundOutcome], None] | None = None
    ) -> None:
        """Train rounds until told to stop."""
        while not stopping.is_set():
            if self._plan is None:
                is_known = self._poll(stopping)
                if not is_known or not self._intake.is_enough or not self._make_plan(stopping):
                    continue
            assert self._plan is not None
            outcome = self._round(self._plan, stopping)
            if outcome is not None and on_round is not None:
                on_round(outcome)

    def _poll(self, stopping: threading.Event) -> bool:
        """Return whether what is new is known; brokers that are away are waited for, and what was read is kept."""
        try:
            self._intake.poll()
        except (KafkaException, TransientError) as error:
            log.warning("topics_unreachable", model_name=self.model_name, error=str(error))
            stopping.wait(RETRY_S)
            return False
        return True

    def _make_plan(self, stopping: threading.Event) -> bool:
        plan = self._intake.plan(self._newest_version() + 1)
        try:
            save_plan(self._store, self.model_name, plan)  # Step 1
        except OSError as error:
            self._put_off(error, stopping)
            return False
        self._plan = plan
        return True

    def _round(self, plan: Plan, stopping: threading.Event) -> RoundOutcome | None:
        """Give the actor what is planned and wait; None when stopped, or when it has to be tried again."""
        try:
            task = self._task(plan)
            outcome = self._given_to_actor(task, stopping)
        except RayActorError as error:
            self._count_death(error)
            self._replace_actor(plan)
            return None
        except TransientError as error:
            self._put_off(error, stopping)
            if isinstance(error, RayTaskError) and not stopping.is_set():
                self._replace_actor(plan)
            return None
        if outcome is None:
            return None
        self._actor_deaths = self._put_offs = 0
        self._intake.changes = {}
        sealed_times_ms = self._intake.sealed_times_ms(plan)
        self._move_on(plan)
        self._conclude(outcome, task.shard_ids)
        if not outcome.refused and self.model_name == LRM_MODEL_NAME:
            for sealed_time_ms in sealed_times_ms:
                metrics.STAGE_DELAYS[SHARD_STAGE].observe((now_ms() - sealed_time_ms) / 1000)
        return outcome

    def _task(self, plan: Plan) -> RoundTask:
        found = self._intake.read_rows(plan)
        return RoundTask(
            rows=found.rows,
            shard_ids=found.shard_ids,
            erased_users=found.erased_users,
            watches_left_out=found.watches_left_out,
            new_video_ids=self._intake.new_video_ids,
            positions=plan.positions,
            shown=self._intake.shown_to(found, plan),
            first_append_time_ms=found.first_append_time_ms,
        )

    def _given_to_actor(self, task: RoundTask, stopping: threading.Event) -> RoundOutcome | None:
        """Return what came of a round, or None when told to stop before."""
        self._actor.update_videos.remote(self._intake.changes)
        reference = self._actor.run_round.remote(task)
        while not ray.wait([reference], timeout=0.5)[0]:
            if stopping.is_set():
                return None
        outcome: RoundOutcome = ray.get(reference)
        return outcome

    def _move_on(self, plan: Plan) -> None:
        self._intake.move_on(plan)
        self._plan = None

    def _count_death(self, error: RayActorError) -> None:
        self._actor_deaths += 1
        metrics.ROUNDS.labels(self.model_name, "actor_died").inc()
        log.warning(
            "training_actor_died",
            model_name=self.model_name,
            error=str(error),
            in_a_row=self._actor_deaths,
        )
        if self._actor_deaths >= self._actor_deaths_max:
            raise TransientError(
                f"the training actor of {self.model_name} died {self._actor_deaths} times in a row, "
                f"so this process ends: {error}"
            )

    def _put_off(self, error: Exception, stopping: threading.Event) -> None:
        """Wait before the same is tried again, longer each time."""
        metrics.ROUNDS.labels(self.model_name, "put_off").inc()
        again_in_s = PUT_OFF_S[min(self._put_offs, len(PUT_OFF_S) - 1)]
        self._put_offs += 1
        reason = error.cause if isinstance(error, RayTaskError) else error
        log.error(
            "round_put_off",
            model_name=self.model_name,
            error=str(reason),
            in_a_row=self._put_offs,
            again_in_s=again_in_s,
        )
        stopping.wait(again_in_s)

    def _replace_actor(self, plan: Plan) -> None:
        """Start another actor; it goes on from the newest checkpoint, which may be that of the round that failed."""
        ray.kill(self._actor)
        newest = self._newest_version()
        if newest == plan.model_version:
            self._announce_missing(newest)
            self._move_on(plan)
        self._actor = self._start_actor()

    def _conclude(self, outcome: RoundOutcome, shard_ids: tuple[str, ...]) -> None:
        verdict, name = "refused" if outcome.refused else "promoted", self.model_name
        metrics.ROUNDS.labels(name, verdict).inc()
        metrics.UNKNOWN_VIDEOS.labels(name).inc(outcome.metrics.get("unknown_video_watches", 0))
        metrics.WATCHES_LEFT_OUT.labels(name).inc(outcome.metrics.get("watches_left_out", 0))
        for earlier in EARLIER_WATCHES:
            recall = outcome.metrics.get(metric_name("recall_at_10", earlier))
            if recall is not None:
                metrics.PREQUENTIAL_RECALL.labels(name, earlier).set(recall)
        measured = {name: round(value, 4) for name, value in outcome.metrics.items()}
        laps = {f"{name}_s": round(seconds, 2) for name, seconds in outcome.laps_s.items()}
        log.info(
            f"checkpoint_{verdict}",
            model_name=name,
            model_version=outcome.model_version,
            shards=len(shard_ids),
            seconds=round(outcome.seconds, 2),
            reason=outcome.refused,
            **measured,
            **laps,
        )
        log_adapters(read_record(self._store, self.model_name, outcome.model_version))
        if not outcome.refused:
            self._announce(outcome.model_version, {})
            if name == LRM_MODEL_NAME:  # the model that the stages lead to
                metrics.LAST_SUCCESS.labels(SHARD_STAGE).set_to_current_time()
        self._collect()

    def _announce(self, model_version: int, announced: Mapping[str, int]) -> None:
        """Announce a checkpoint and its adapters, if it was promoted, but for what was announced with it already."""
        document = read_record(self._store, self.model_name, model_version)
        for event in promotions(self.model_name, document):
            if event.model_version > announced.get(event.model_name, 0):
                send(self._producer, self._settings.kafka, CHECKPOINTS, event.model_name, event)
                flush(self._producer)  # an adapter is never there before its base

    def _announce_missing(self, newest: int) -> None:
        """Announce the newest promoted checkpoint, or its adapters, if a crash came between saving and announcing."""
        announced: dict[str, int] = {}
        with TopicReader(self._settings.kafka, [CHECKPOINTS]) as reader:
            for _, message in reader.read_to_end():
                try:
                    event = decode(CheckpointPromoted, message.value())
                except DecodeError as error:
                    log.warning("record_refused", topic=CHECKPOINTS.name, reason=error.reason)
                    continue
                # The last, not the highest: a new bootstrap counts from 1 again.
                announced[event.model_name] = event.model_version
        self._announce(newest, announced)

    def _collect(self) -> None:
        """Remove all but the newest checkpoints; the promoted one and the one before it are always among those."""
        versions = checkpoint_versions(self._store, self.model_name)
        promoted = [
            one
            for one in versions
            if not read_record(self._store, self.model_name, one)["record"]["refused"]
        ]
        kept = {*versions[-self._settings.training.keep_checkpoints :], *promoted[-2:]}
        for version in versions:
            if version not in kept:
                self._store.remove(checkpoint_key(self.model_name, version))

    def close(self) -> None:
        """End the actor and leave the brokers; nothing is lost that the next start needs."""
        ray.kill(self._actor)
        self._intake.close()


def run(settings: Settings) -> None:
    """Be the training process until SIGTERM or SIGINT; rounds that are under way are given up and repeated later."""
    configure("train", level=settings.log.level, format=settings.log.format)
    metrics.expose(settings.metrics.host, settings.metrics.training_port)
    stopping = stop_on_signal()
    with ExitStack() as stack:
        stack.enter_context(claim(settings.var_dir / "training.lock", "training loop"))
        stack.enter_context(ensure_ray(settings))
        loops = []
        for model_name in refreshed_models(settings):
            loops.append(TrainingLoop(settings, model_name=model_name))
            stack.callback(loops[-1].close)
        run_loops(loops, stopping)


def refreshed_models(settings: Settings) -> list[str]:
    """Return the models to refresh: those of the settings, without two-towers that were never fitted.

    A store that was bootstrapped before there were any has none, and its LRM must not wait for that.

    Raises:
        ConfigError: none is left.
    """
    store = ObjectStore(settings.storage.root)
    found: list[str] = []
    for name in dict.fromkeys(settings.training.models):
        if name in TWO_TOWERS and not checkpoint_versions(store, name):
            log.warning(
                "model_not_refreshed",
                model_name=name,
                reason="it has no checkpoint: run `freshet bootstrap`, or leave it out of FRESHET_TRAINING__MODELS",
            )
        else:
            found.append(name)
    if not found:
        raise ConfigError(
            f"no checkpoint of {' or '.join(settings.training.models)} in {settings.storage.root}: "
            "run `freshet bootstrap` first"
        )
    return found


def run_loops(loops: Sequence[TrainingLoop], stopping: threading.Event) -> None:
    """Run each loop in a thread until told to stop.

    An error in the LRM's loop stops all, and is raised; that of another model only ends its refreshes, unless no LRM
    is among them: what nobody is served must not keep what everybody is from learning.
    """
    vital = {loop.model_name for loop in loops}
    if LRM_MODEL_NAME in vital:
        vital = {LRM_MODEL_NAME}
    with ThreadPoolExecutor(max(1, len(loops)), thread_name_prefix="training") as pool:
        running = [
            pool.submit(_run_until, loop, stopping, is_vital=loop.model_name in vital)
            for loop in loops
        ]
    for each in running:
        each.result()


def _run_until(loop: TrainingLoop, stopping: threading.Event, *, is_vital: bool) -> None:
    """Supervise one loop, whatever it raises."""
    try:
        loop.run(stopping)
    except Exception as error:
        if is_vital:
            stopping.set()
            raise
        metrics.ROUNDS.labels(loop.model_name, "given_up").inc()
        log.error("model_no_longer_refreshed", model_name=loop.model_name, error=str(error))
