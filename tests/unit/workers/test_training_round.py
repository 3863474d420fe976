from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from msgspec import structs

from infra.errors import GateError, TransientError, VersionMismatchError
from infra.storage import ObjectStore
from models.training import TrainingConfig
from tests.base_model_factories import adapted_state
from tests.lrm_factories import shard_row, some_videos, tiny_lrm
from workers.replay import Reservoir
from workers.training_intake import is_sampled
from workers.training_round import RoundInput, RoundLimits, run_round
from workers.training_state import (
    OPTIMIZER_FILE,
    Plan,
    Positions,
    TrainingState,
    checkpoint_key,
    checkpoint_versions,
    load_plan,
    load_state,
    new_state,
    save_plan,
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


def test_round_weighs_watches_by_how_much_was_watched_if_it_is_told_to() -> None:
    new = round_input(0)
    rows = [
        structs.replace(
            row,
            watches=[
                structs.replace(watch, percent=10 if place % 2 else 100)
                for place, watch in enumerate(row.watches)
            ],
        )
        for row in new.rows
    ]
    new = replace(new, rows=rows)
    equal = run_round(fresh_state(), new, LIMITS)
    told = replace(LIMITS, recipe=replace(LIMITS.recipe, reward_share=1.0))
    weighed = run_round(fresh_state(), new, told)
    assert len(equal.losses) == len(weighed.losses)
    assert equal.losses != weighed.losses


def test_round_counts_watches_of_videos_without_a_semantic_id() -> None:
    rows = [shard_row("u", ["v1", "unknown", "v2"])]
    result = run_round(fresh_state(), RoundInput(rows=rows, new_videos=[], videos=VIDEOS), LIMITS)
    assert result.metrics["unknown_video_watches"] == 1


def test_new_watches_are_scored_by_how_often_their_video_was_learned_before() -> None:
    state = fresh_state()
    state.watch_counts.update({"v1": 4, "v2": 5})
    rows = [shard_row("u", ["v0", "v1", "v2", "v3"])]
    new = RoundInput(rows=rows, new_videos=[], videos=VIDEOS)
    metrics = run_round(state, new, LIMITS).metrics
    found = {name: value for name, value in metrics.items() if "prequential_requests" in name}
    assert found == {
        "prequential_requests": 4,
        "prequential_requests_watched_0": 2,
        "prequential_requests_watched_1-4": 1,
        "prequential_requests_watched_5+": 1,
    }
    assert state.watch_counts == {"v0": 1, "v1": 5, "v2": 6, "v3": 1}


def test_erased_users_and_removed_videos_leave_replay_and_anchors() -> None:
    state = fresh_state()
    state.anchor_rows.append(shard_row("u1", ["v1"]))
    run_round(state, round_input(0), LIMITS)
    left = {video_id: video for video_id, video in VIDEOS.items() if video_id != "v3"}
    rows = [shard_row("u1", ["v5"], history=["v3", "v4"])]
    new = RoundInput(rows=rows, new_videos=[], videos=left, erased_users=frozenset({"u1", "u2"}))
    run_round(state, new, LIMITS)
    held = {row.user_id: row for row in state.reservoir.rows}
    assert held.keys() == {"u0", "u1", "u3", "u4", "u5"}
    assert [watch.video_id for watch in held["u1"].watches] == ["v5"]  # watched after the erasure
    assert [watch.video_id for watch in held["u0"].watches] == ["v0", "v1", "v2", "v4", "v5"]
    assert [row.user_id for row in state.anchor_rows] == ["anchor"]
    assert [watch.video_id for watch in state.anchor_rows[0].watches] == ["v1", "v2"]
    assert "v3" not in state.watch_counts
    assert (state.reservoir.seen, state.reservoir.vacant) == (6, 1)  # two were dropped, one came


def test_round_without_anything_to_learn_still_ends() -> None:
    state = fresh_state()
    run_round(state, RoundInput(rows=[shard_row("u", [])], new_videos=[], videos=VIDEOS), LIMITS)
    assert state.steps == 0


@pytest.mark.parametrize("adapted", [False, True], ids=["all weights", "adapters"])
def test_interrupted_and_resumed_rounds_equal_uninterrupted_ones(
    tmp_path: Path, adapted: bool
) -> None:
    store = ObjectStore(str(tmp_path / "store"))
    whole = adapted_state(tmp_path / "base", CONFIG) if adapted else fresh_state()
    run_round(whole, round_input(0), LIMITS)
    save_state(whole, store, "lrm", scratch=tmp_path / "scratch", record={})
    counts = dict(whole.watch_counts)
    expected = run_round(whole, round_input(7), LIMITS).losses

    resumed = load_state(store, "lrm", 1, cache=tmp_path / "cache")
    assert resumed.watch_counts == counts
    assert run_round(resumed, round_input(7), LIMITS).losses == expected
    assert math.isfinite(sum(expected))
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


def test_plan_is_found_until_its_checkpoint_is_there(tmp_path: Path) -> None:
    store = ObjectStore(str(tmp_path))
    assert load_plan(store, "lrm", 5) is None
    plan = Plan(5, Positions(17, {0: 3, 1: 0}), 0.25)
    save_plan(store, "lrm", plan)
    assert load_plan(store, "lrm", 5) == plan
    assert load_plan(store, "lrm", 6) is None
    assert checkpoint_versions(store, "lrm") == []


def test_sample_of_rows_has_its_share_and_is_always_the_same() -> None:
    rows = [shard_row(f"u{number}", ["v1"]) for number in range(2000)]
    sampled = [row.user_id for row in rows if is_sampled("shard", row, 0.25)]
    assert 400 < len(sampled) < 600  # 500 expected, sd 19
    assert sampled == [row.user_id for row in rows if is_sampled("shard", row, 0.25)]
    assert sampled != [row.user_id for row in rows if is_sampled("other", row, 0.25)]
    assert all(is_sampled("shard", row, 1.0) for row in rows)


def test_forgetting_leaves_the_reservoir_a_uniform_sample() -> None:
    rng = random.Random(0)
    held = [0] * 40
    for _ in range(500):
        reservoir = Reservoir(10)
        for number in range(40):
            if number == 20:
                users = {str(user) for user in range(0, 20, 2)}
                reservoir.forget(VIDEOS, users)
            reservoir.add(shard_row(str(number), ["v1"]), rng)
        for row in reservoir.rows:
            held[int(row.user_id)] += 1
    assert not any(held[user] for user in range(0, 20, 2))
    early, late = sum(held[:20]) / 10, sum(held[20:]) / 20
    assert 0.9 < early / late < 1.1


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
