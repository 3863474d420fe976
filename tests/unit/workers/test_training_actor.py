"""The trainer on bad rounds, without Ray: what passes no gate, and a checkpoint for which there is no room."""

from __future__ import annotations

import math
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from infra.errors import TransientError
from infra.settings import Settings, with_values
from infra.storage import ObjectStore
from models.training import TrainingConfig
from tests.lrm_factories import shard_row, some_videos, tiny_lrm
from workers.training_actor import LrmTrainer, RoundTask
from workers.training_state import (
    Positions,
    TrainingState,
    checkpoint_key,
    checkpoint_versions,
    load_state,
    new_state,
    read_record,
    save_state,
)

NAME = "lrm"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings whose object store holds checkpoint 1."""
    settings = with_values(
        Settings(),
        var_dir=tmp_path / "var",
        storage__root=str(tmp_path / "store"),
        training__evaluate_max=2,
    )
    state = new_state(tiny_lrm(), TrainingConfig(block_tokens=128, blocks_per_step=2), seed=1)
    state.model_version = 1
    state.anchor_rows = [shard_row("anchor", ["v1", "v2"])]
    store = ObjectStore(settings.storage.root)
    save_state(state, store, NAME, scratch=tmp_path / "scratch", record={"refused": ""})
    return settings


def trainer(settings: Settings) -> LrmTrainer:
    made = LrmTrainer(settings, NAME)
    made.update_videos(some_videos())
    return made


def task() -> RoundTask:
    rows = [shard_row(f"u{user}", ["v1", "v5", "v9"]) for user in range(3)]
    return RoundTask(rows=rows, shard_ids=("a",), new_video_ids=(), positions=Positions(7))


@contextmanager
def room_for(file_bytes: int) -> Iterator[None]:
    """Fail this process's writes of larger files, as a full disk does in the midst of one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_loss_that_is_no_number_is_refused_and_the_weights_stay(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverge(state: TrainingState, blocks: object) -> list[float]:
        with torch.no_grad():
            for each in state.lrm.model.parameters():
                each.fill_(math.nan)
        return [math.nan]

    made = trainer(settings)
    monkeypatch.setattr(made, "_train", diverge)
    outcome = made.run_round(task())
    assert "loss is not finite" in outcome.refused
    store = ObjectStore(settings.storage.root)
    one, two = (
        load_state(store, NAME, version, cache=settings.var_dir / "cache") for version in (1, 2)
    )
    assert two.positions == Positions(7)  # its shards are not tried again
    for before, after in zip(one.lrm.model.parameters(), two.lrm.model.parameters(), strict=True):
        assert torch.equal(before, after)


@pytest.mark.parametrize("file_bytes", [60_000, 200_000], ids=["weights", "optimizer"])
def test_checkpoint_without_room_is_none_and_comes_out_the_same_when_there_is(
    settings: Settings, file_bytes: int
) -> None:
    with (
        room_for(file_bytes),
        pytest.raises(TransientError, match="checkpoint 2 could not be written"),
    ):
        trainer(settings).run_round(task())
    store = ObjectStore(settings.storage.root)
    assert checkpoint_versions(store, NAME) == [1]
    assert not (settings.var_dir / "scratch" / NAME).exists()
    after = trainer(settings).run_round(task())

    store.remove(checkpoint_key(NAME, 2))
    undisturbed = trainer(settings).run_round(task())
    assert (after.sha256, after.metrics) == (undisturbed.sha256, undisturbed.metrics)
    assert read_record(store, NAME, 2)["record"]["refused"] == ""
