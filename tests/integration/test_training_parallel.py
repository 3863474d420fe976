"""A round on two Ray Train workers: the same as on one, when one of them is killed, too; and none is left behind."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import ray
import torch

from infra.errors import TransientError
from infra.settings import Settings, with_values
from infra.storage import ObjectStore
from models.training import TrainingConfig
from streams.client import wait_until
from streams.events import LRM_MODEL_NAME
from streams.shards import ShardRow
from tests.lrm_factories import shard_row, some_videos, tiny_lrm
from workers import training_parallel
from workers.training_actor import (
    BEHIND_SERVING,
    LrmTrainer,
    LrmTrainerActor,
    RoundOutcome,
    RoundTask,
)
from workers.training_parallel import RUNS_KEY
from workers.training_state import (
    Positions,
    TrainingState,
    checkpoint_versions,
    load_state,
    new_state,
    save_state,
)

pytestmark = pytest.mark.integration


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return with_store(tmp_path, workers=2)


def with_store(folder: Path, *, workers: int) -> Settings:
    """Settings whose object store holds an untrained checkpoint."""
    settings = with_values(
        Settings(),
        var_dir=folder / "var",
        storage__root=str(folder / "store"),
        training__workers=workers,
        training__evaluate_max=0,
    )
    # Blocks that leave one of two workers without any in the last step.
    state = new_state(
        tiny_lrm(), TrainingConfig(block_tokens=128, blocks_per_step=3, dropout=0.0), seed=1
    )
    record = {"shard_ids": [], "metrics": {}, "refused": ""}
    store = ObjectStore(settings.storage.root)
    save_state(state, store, LRM_MODEL_NAME, scratch=folder / "scratch", record=record)
    return settings


def round_task(users: int) -> RoundTask:
    rows: list[ShardRow] = [
        shard_row(f"u{user}", [f"v{(user + step) % 24}" for step in range(5)])
        for user in range(users)
    ]
    return RoundTask(rows=rows, shard_ids=("a",), new_video_ids=(), positions=Positions())


def trained(settings: Settings, users: int) -> tuple[RoundOutcome, TrainingState]:
    trainer = LrmTrainer(settings, LRM_MODEL_NAME)
    trainer.update_videos(some_videos())
    outcome = trainer.run_round(round_task(users))
    store = ObjectStore(settings.storage.root)
    return outcome, load_state(store, LRM_MODEL_NAME, 1, cache=settings.var_dir / "cache")


def worker_processes() -> list[psutil.Process]:
    """Ray Train's, of this process's Ray."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "RayTrainWorker" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def in_training() -> list[psutil.Process]:
    """Workers that have begun their part: the thread that computes it is nice from then on."""
    return [each for each in worker_processes() if BEHIND_SERVING in niceness(each)]


def niceness(process: psutil.Process) -> set[int]:
    found = set()
    with suppress(psutil.NoSuchProcess, ProcessLookupError):
        for thread in process.threads():
            with suppress(ProcessLookupError):
                found.add(os.getpriority(os.PRIO_PROCESS, thread.id))
    return found


class Killing(threading.Thread):
    """Kills one worker that trains."""

    def __init__(self) -> None:
        super().__init__()
        self.killed = False
        self.start()

    def run(self) -> None:
        wait_until(lambda: bool(in_training()), timeout_s=120, what="a worker's part")
        os.kill(in_training()[-1].pid, signal.SIGKILL)
        self.killed = True


@pytest.mark.long  # what it adds up to is a unit test, too: test_training_parts.py
def test_round_of_two_workers_is_that_of_one_though_one_is_killed(
    ray_cluster: None, tmp_path: Path, settings: Settings
) -> None:
    expected, alone = trained(with_store(tmp_path / "alone", workers=1), 400)
    killing = Killing()
    outcome, together = trained(settings, 400)
    killing.join()
    assert killing.killed
    assert outcome.metrics == pytest.approx(expected.metrics, rel=1e-3)
    assert together.steps == alone.steps > 20
    for one, other in zip(
        together.lrm.model.parameters(), alone.lrm.model.parameters(), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
    assert ObjectStore(settings.storage.root).list(RUNS_KEY) == []


@pytest.mark.long
def test_workers_that_die_too_often_fail_the_round_and_change_nothing(
    ray_cluster: None, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_parallel, "DEATHS_MAX", 0)
    killing = Killing()
    with pytest.raises(TransientError, match="2 training workers did not finish a round, 1 time"):
        trained(settings, 400)
    killing.join()
    store = ObjectStore(settings.storage.root)
    assert checkpoint_versions(store, LRM_MODEL_NAME) == [0]
    assert store.list(RUNS_KEY) == []


@pytest.mark.long
def test_no_worker_outlives_the_actor_that_called_them(
    ray_cluster: None, settings: Settings
) -> None:
    actor = LrmTrainerActor.remote(settings, LRM_MODEL_NAME)  # type: ignore[attr-defined]
    actor.update_videos.remote(some_videos())
    actor.run_round.remote(round_task(2000))
    wait_until(lambda: len(in_training()) == 2, timeout_s=120, what="both workers' part")
    ray.kill(actor)  # as the loop does when it is told to stop, or starts another
    wait_until(lambda: not worker_processes(), timeout_s=120, what="the workers' end")
