from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from infra.errors import GateError, TransientError, VersionMismatchError
from infra.storage import ObjectStore
from models.training import TrainingConfig
from tests.lrm_factories import shard_row, some_videos, tiny_lrm
from workers.training_round import RoundInput, RoundLimits, run_round
from workers.training_state import (
    OPTIMIZER_FILE,
    Reservoir,
    TrainingState,
    checkpoint_key,
    checkpoint_versions,
    load_state,
    new_state,
    save_state,
)

VIDEOS = some_videos()
LIMITS = RoundLimits(replay_share=0.25, evaluate_max=8)
CONFIG = TrainingConfig(block_tokens=128, blocks_per_step=2)


def fresh_state() -> TrainingState:
    state = new_state(tiny_lrm(), CONFIG, seed=3)
    state.anchor_rows = [shard_row("anchor", ["v1", "v2", "v3"])]
    return state


def round_input(first: int) -> RoundInput:
    rows = [
        shard_row(
            f"u{user}", [f"v{(first + user + step) % 24}" for step in range(6)], history=["v0"]
        )
        for user in range(6)
    ]
    return RoundInput(rows=rows, new_videos=[VIDEOS[f"v{first}"]], videos=VIDEOS)


def test_round_scores_new_watches_and_moves_the_state_on() -> None:
    state = fresh_state()
    result = run_round(state, round_input(0), LIMITS)
    assert result.metrics["prequential_requests"] == 8
    assert state.model_version == 1
    assert state.steps == len(result.losses) > 0
    assert state.reservoir.seen == 6
    assert state.newest_event_time_ms == 1005


def test_round_counts_watches_of_videos_without_a_semantic_id() -> None:
    rows = [shard_row("u", ["v1", "unknown", "v2"])]
    result = run_round(fresh_state(), RoundInput(rows=rows, new_videos=[], videos=VIDEOS), LIMITS)
    assert result.metrics["unknown_video_watches"] == 1


def test_round_without_anything_to_learn_still_ends() -> None:
    state = fresh_state()
    run_round(state, RoundInput(rows=[shard_row("u", [])], new_videos=[], videos=VIDEOS), LIMITS)
    assert state.steps == 0


def test_interrupted_and_resumed_rounds_equal_uninterrupted_ones(tmp_path: Path) -> None:
    store = ObjectStore(str(tmp_path / "store"))
    whole = fresh_state()
    run_round(whole, round_input(0), LIMITS)
    save_state(whole, store, "lrm", scratch=tmp_path / "scratch", record={})
    expected = run_round(whole, round_input(7), LIMITS).losses

    resumed = load_state(store, "lrm", 1, cache=tmp_path / "cache")
    assert run_round(resumed, round_input(7), LIMITS).losses == expected
    for one, other in zip(
        whole.lrm.model.parameters(), resumed.lrm.model.parameters(), strict=True
    ):
        assert torch.equal(one, other)


def test_nan_weights_do_not_pass_the_gates() -> None:
    state = fresh_state()
    with torch.no_grad():
        next(iter(state.lrm.model.parameters()))[:] = float("nan")
    with pytest.raises(GateError) as refused:
        run_round(state, round_input(0), LIMITS)
    assert refused.value.gate == "finite_loss"


def test_forgetting_does_not_pass_the_gates() -> None:
    state = fresh_state()
    state.anchor_loss = 0.001
    with pytest.raises(GateError) as refused:
        run_round(state, round_input(0), LIMITS)
    assert refused.value.gate == "anchor_loss"


def test_state_without_its_last_file_is_no_checkpoint(tmp_path: Path) -> None:
    store = ObjectStore(str(tmp_path))
    state = fresh_state()
    state.model_version = 4
    save_state(state, store, "lrm", scratch=tmp_path / "scratch", record={})
    assert checkpoint_versions(store, "lrm") == [4]
    store.remove(f"{checkpoint_key('lrm', 4)}/state.json")
    assert checkpoint_versions(store, "lrm") == []
    with pytest.raises(TransientError):
        load_state(store, "lrm", 4, cache=tmp_path / "cache")


def test_state_with_a_changed_file_is_refused(tmp_path: Path) -> None:
    store = ObjectStore(str(tmp_path))
    state = fresh_state()
    save_state(state, store, "lrm", scratch=tmp_path / "scratch", record={})
    store.put_bytes(f"{checkpoint_key('lrm', 0)}/{OPTIMIZER_FILE}", b"other")
    with pytest.raises(VersionMismatchError, match=OPTIMIZER_FILE):
        load_state(store, "lrm", 0, cache=tmp_path / "cache")


def test_reservoir_holds_a_uniform_sample() -> None:
    rng = random.Random(0)
    held = [0] * 20
    for _ in range(500):
        reservoir = Reservoir(5)
        for number in range(20):
            reservoir.add(shard_row(str(number), []), rng)
        for row in reservoir.rows:
            held[int(row.user_id)] += 1
    assert sum(held) == 2500
    assert 80 < min(held) <= max(held) < 175  # 125 expected, sd about 10
