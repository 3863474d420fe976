"""The Ray actor that owns the model in training: one process, one state, rounds one after the other.

A thin shell: it loads, calls `run_round`, saves. Its caller (`workers.training`) decides what a round is given, and
may kill it at any moment: what counts is the last checkpoint.
"""

from __future__ import annotations

import os
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import ray
import torch
from safetensors import SafetensorError

from infra import log
from infra.clock import Laps
from infra.errors import GateError, TransientError
from infra.settings import Settings
from infra.storage import ObjectStore
from models.semantic_id import SemanticId
from models.tasks import Recipe
from streams.events import SemanticIdAssigned
from streams.shards import ShardRow
from workers.adapter_rounds import AdapterRecord, run_adapters
from workers.impression_intake import Shown
from workers.training_round import (
    RoundInput,
    RoundLimits,
    RoundResult,
    Train,
    run_round,
    train_alone,
)
from workers.training_state import (
    Positions,
    RoundState,
    TrainingState,
    checkpoint_versions,
    load_state,
    save_state,
)

BEHIND_SERVING = 10  # niceness: where cores are few, answers go first


class Video(NamedTuple):
    """What training needs to know of a video."""

    semantic_id: SemanticId
    title: str
    channel: str
    topics: tuple[str, ...]
    language: str = ""
    duration_s: float | None = None
    upload_time_ms: int = 0

    @classmethod
    def of(cls, assigned: SemanticIdAssigned) -> Video:
        """Return that part of an assignment."""
        return cls(
            assigned.semantic_id,
            assigned.title,
            assigned.channel,
            assigned.topics,
            assigned.language,
            assigned.duration_s,
            assigned.upload_time_ms,
        )


@dataclass(frozen=True)
class RoundTask:
    """What a round is given.

    Attributes:
        rows: of the shards between the last checkpoint's positions and these.
        shard_ids: which shards those are.
        erased_users: are to be forgotten, but for the rows.
        watches_left_out: of the shards, because the loop is behind.
        new_video_ids: assigned between the last checkpoint's positions and these.
        positions: what the next round starts from.
        shown: to the users of the rows, for the ranking adapter.
        first_append_time_ms: of the oldest watch in the shards; 0 without shards.
    """

    rows: Sequence[ShardRow]
    shard_ids: tuple[str, ...]
    new_video_ids: Sequence[str]
    positions: Positions
    erased_users: frozenset[str] = frozenset()
    watches_left_out: int = 0
    shown: Sequence[Shown] = ()
    first_append_time_ms: int = 0


@dataclass(frozen=True)
class RoundOutcome:
    """What came of a round; `refused` names the gate's reason, or is empty.

    `laps_s` says where the seconds went, by part: those of `RoundResult`, "adapters" and "checkpoint".
    """

    model_version: int
    sha256: str
    metrics: dict[str, float]
    seconds: float
    laps_s: dict[str, float]
    refused: str


class Trainer(ABC):
    """The state of a model in training, moved forward by rounds; testable without Ray."""

    _state: RoundState

    def __init__(self, settings: Settings, model_name: str) -> None:
        log.configure("train.actor", level=settings.log.level, format=settings.log.format)
        torch.set_num_threads(settings.training.threads)
        self._settings = settings
        self._model_name = model_name
        self._store = ObjectStore(settings.storage.root)
        self._videos: dict[str, Any] = {}
        self._load_newest()

    def _load_newest(self) -> None:
        version = checkpoint_versions(self._store, self._model_name)[-1]
        cache = self._settings.var_dir / "cache"
        self._state = self._load(version, cache)

    @abstractmethod
    def _load(self, version: int, cache: Path) -> RoundState:
        """Return the state of a checkpoint."""

    @abstractmethod
    def _learn(self, task: RoundTask) -> tuple[RoundResult, dict[str, AdapterRecord]]:
        """Move the state one round forward, and its adapters; raises GateError where it must not be promoted."""

    @abstractmethod
    def _write(self, scratch: Path, record: dict[str, Any]) -> str:
        """Save the state as a checkpoint and return its weights' sha256."""

    def pid(self) -> int:
        """Return this process's id."""
        return os.getpid()

    def update_videos(self, changes: Mapping[str, Any]) -> int:
        """Take in assigned, changed and (None) removed videos; return how many are live."""
        for video_id, video in changes.items():
            if video is None:
                self._videos.pop(video_id, None)
            else:
                self._videos[video_id] = video
        return len(self._videos)

    def run_round(self, task: RoundTask) -> RoundOutcome:
        """Train one round and save it as the next checkpoint, promoted or refused.

        Delivery: killed before the checkpoint is complete, nothing has happened; the same task is to be given again.

        Raises:
            TransientError: the checkpoint could not be written, or workers died; the same task is to be given to
                another actor, as this one's state is neither that from before nor that from after.
        """
        started = time.monotonic()
        refused = ""
        adapters: dict[str, AdapterRecord] = {}
        try:
            result, adapters = self._learn(task)
            metrics, laps = result.metrics, result.laps
        except GateError as error:
            refused, metrics, laps = str(error), {}, Laps()
            self._load_newest()  # the weights from before, the positions from after: these shards are not retried
            self._state.forget(self._videos, task.erased_users)
            self._state.model_version += 1
        metrics["watches_left_out"] = float(task.watches_left_out)
        self._state.positions = task.positions
        sha256 = self._save(task, metrics, refused, adapters)
        laps.end("checkpoint")
        return RoundOutcome(
            model_version=self._state.model_version,
            sha256=sha256,
            metrics=metrics,
            seconds=time.monotonic() - started,
            laps_s=laps.seconds,
            refused=refused,
        )

    def _save(
        self,
        task: RoundTask,
        metrics: dict[str, float],
        refused: str,
        adapters: dict[str, AdapterRecord],
    ) -> str:
        record: dict[str, Any] = {
            "shard_ids": task.shard_ids,
            "first_append_time_ms": task.first_append_time_ms,
            "metrics": metrics,
            "refused": refused,
            "adapters": adapters,
        }
        scratch = self._settings.var_dir / "scratch" / self._model_name
        try:
            return self._write(scratch, record)
        except (OSError, SafetensorError) as error:
            raise TransientError(
                f"checkpoint {self._state.model_version} could not be written to {self._store.root} by way of "
                f"{scratch}: {error}; is there room?"
            ) from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


class LrmTrainer(Trainer):
    """That of the LRM."""

    _state: TrainingState

    def __init__(self, settings: Settings, model_name: str) -> None:
        super().__init__(settings, model_name)
        self._train = self._trainer()

    def _trainer(self) -> Train:
        training = self._settings.training
        if training.workers == 1:
            return train_alone
        from workers.training_parallel import ParallelTraining  # two seconds that one worker spares

        return ParallelTraining(
            self._store.root, self._model_name, training.workers, training.threads
        )

    def _load(self, version: int, cache: Path) -> TrainingState:
        return load_state(self._store, self._model_name, version, cache=cache)

    def _learn(self, task: RoundTask) -> tuple[RoundResult, dict[str, AdapterRecord]]:
        training = self._settings.training
        new = RoundInput(
            rows=task.rows,
            new_videos=[self._videos[one] for one in task.new_video_ids if one in self._videos],
            videos=self._videos,
            erased_users=task.erased_users,
        )
        limits = RoundLimits(
            training.replay_share,
            training.evaluate_max,
            recipe=Recipe(reward_share=training.reward_share),
        )
        result = run_round(self._state, new, limits, train=self._train)
        adapters = run_adapters(self._state, new, limits, names=training.adapters, shown=task.shown)
        result.laps.end("adapters")
        return result, adapters

    def _write(self, scratch: Path, record: dict[str, Any]) -> str:
        return save_state(
            self._state, self._store, self._model_name, scratch=scratch, record=record
        )


@ray.remote(num_cpus=0, max_restarts=0)
class LrmTrainerActor(LrmTrainer):
    """The same in a process of its own."""

    def __init__(self, settings: Settings, model_name: str) -> None:
        os.nice(BEHIND_SERVING)
        super().__init__(settings, model_name)
