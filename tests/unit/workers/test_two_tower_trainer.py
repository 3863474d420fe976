"""The two-tower's trainer without Ray: what a checkpoint holds after a round, promoted or refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from infra.settings import Settings, with_values
from infra.storage import ObjectStore
from streams.events import TWO_TOWER_CLUSTER
from tests.lrm_factories import shard_row
from tests.two_tower_factories import some_content, tiny_two_tower
from workers.training_actor import RoundOutcome, RoundTask
from workers.training_state import Positions
from workers.two_tower_state import TwoTowerState, load_two_tower, save_two_tower
from workers.two_tower_trainer import TwoTowerTrainer


def one_round(tmp_path: Path, learning_rate: float) -> tuple[RoundOutcome, TwoTowerState]:
    """Return what came of a round that follows the first checkpoint, and the state that it saved."""
    settings = with_values(Settings(), var_dir=tmp_path, storage__root=str(tmp_path / "store"))
    store, state = ObjectStore(settings.storage.root), tiny_two_tower()
    state.model_version = 1
    state.anchor_rows = [shard_row("anchor", ["v1", "v5", "v9"])]
    state.training = replace(
        state.training, peak_learning_rate=learning_rate, round_learning_rate=learning_rate
    )
    record = {"shard_ids": [], "metrics": {}, "refused": ""}
    save_two_tower(state, store, TWO_TOWER_CLUSTER, scratch=tmp_path / "scratch", record=record)
    trainer = TwoTowerTrainer(settings, TWO_TOWER_CLUSTER)
    trainer.update_videos(some_content())
    rows = [shard_row("u1", ["v0", "v4", "v8"]), shard_row("u2", ["v2", "v6", "unknown"])]
    task = RoundTask(rows=rows, shard_ids=("s",), new_video_ids=(), positions=Positions(7, {0: 24}))
    outcome = trainer.run_round(task)
    return outcome, load_two_tower(store, TWO_TOWER_CLUSTER, 2, cache=tmp_path)


def test_promoted_round_is_in_the_checkpoint(tmp_path: Path) -> None:
    outcome, state = one_round(tmp_path, 1e-5)
    assert (outcome.model_version, outcome.refused) == (2, "")
    assert outcome.metrics["unknown_video_watches"] == 1
    assert state.positions == Positions(7, {0: 24})
    assert [row.user_id for row in state.reservoir.rows] == ["u1", "u2"]


def test_refused_round_moves_on_with_the_weights_from_before(tmp_path: Path) -> None:
    outcome, state = one_round(tmp_path, 5.0)
    assert "anchor rows" in outcome.refused
    assert state.positions == Positions(7, {0: 24})
    before = tiny_two_tower().retriever.model.state_dict()
    after = state.retriever.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
