from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import torch

from infra.storage import ObjectStore
from models.base_lora import plain_weights
from models.lrm import TINY, build_lrm
from models.prompts import Ask
from models.ranking import rank
from models.recommend import Request
from models.surface_adapters import Adapter, adapted, adapter_weights, load_adapter
from models.training import TrainingConfig
from streams.shards import ShardRow
from tests.base_model_factories import adapted_state
from tests.lrm_factories import SPACE, new_watch, shard_row, some_videos, tiny_lrm
from workers.adapter_rounds import JUDGEMENTS_MAX, AdapterRecord, judgements, run_adapters
from workers.impression_intake import Shown
from workers.promotions import adapter_promotions
from workers.training_round import RoundInput, RoundLimits, run_round
from workers.training_state import (
    TrainingState,
    checkpoint_key,
    load_state,
    new_state,
    read_record,
    save_state,
)

VIDEOS = some_videos()
LIMITS = RoundLimits(replay_share=0.25, evaluate_max=8)
CONFIG = TrainingConfig(block_tokens=128, blocks_per_step=2)
NAMES = ("home", "shorts", "ranking")


def fresh_state() -> TrainingState:
    state = new_state(tiny_lrm(), CONFIG, seed=3)
    state.anchor_rows = [shard_row("anchor", ["v1", "v2", "v3"])]
    return state


def row_on(user_id: str, surfaces: list[str], first: int) -> ShardRow:
    watches = [
        new_watch(f"v{(first + place) % 24}", at_ms=1000 + place, surface=surface)
        for place, surface in enumerate(surfaces)
    ]
    return msgspec.structs.replace(shard_row(user_id, [], history=["v0"]), watches=watches)


def round_input(first: int, *, surfaces: tuple[str, ...] = ("home", "shorts")) -> RoundInput:
    rows = [row_on(f"u{user}", [*surfaces] * 3, first + user) for user in range(6)]
    return RoundInput(rows=rows, new_videos=[], videos=VIDEOS)


def shown(user_id: str, video_ids: list[str], *, at_ms: int = 1002) -> Shown:
    return Shown(user_id, "home", tuple(video_ids), at_ms)


SHOWN = [shown(f"u{user}", ["v20", "v21", "v22"]) for user in range(6)]


def one_round(
    state: TrainingState, new: RoundInput, names: tuple[str, ...] = NAMES
) -> dict[str, AdapterRecord]:
    run_round(state, new, LIMITS)
    return run_adapters(state, new, LIMITS, names=names, shown=SHOWN)


def weights_of(state: TrainingState, name: str) -> dict[str, torch.Tensor]:
    return state.adapters[name].weights


def are_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_round_trains_each_adapter_and_leaves_its_base_bit_for_bit() -> None:
    alone, state = fresh_state(), fresh_state()
    run_round(alone, round_input(0), LIMITS)
    records = one_round(state, round_input(0))
    assert are_equal(plain_weights(alone.lrm.model), plain_weights(state.lrm.model))
    assert alone.rng.getstate() == state.rng.getstate()
    assert state.adapters.keys() == records.keys() == set(NAMES)
    for name in NAMES:
        assert records[name]["refused"] == ""
        assert records[name]["metrics"]["steps"] > 0
        new = adapter_weights(adapted(state.lrm, name=name))
        assert not are_equal(weights_of(state, name), new)
    assert records["home"]["metrics"]["anchor_loss"] > 0


@pytest.mark.parametrize("folded", [False, True], ids=["all weights", "adapters"])
def test_interrupted_and_resumed_rounds_equal_uninterrupted_ones(
    tmp_path: Path, folded: bool
) -> None:
    store = ObjectStore(str(tmp_path / "store"))
    whole = adapted_state(tmp_path / "base", CONFIG) if folded else fresh_state()
    one_round(whole, round_input(0))
    save_state(whole, store, "lrm", scratch=tmp_path / "scratch", record={})
    expected = one_round(whole, round_input(7))

    resumed = load_state(store, "lrm", 1, cache=tmp_path / "cache")
    assert one_round(resumed, round_input(7)) == expected
    for name in NAMES:
        assert are_equal(weights_of(whole, name), weights_of(resumed, name))
        assert are_equal(whole.adapters[name].optimizer, resumed.adapters[name].optimizer)


def test_adapter_without_new_rows_is_kept_and_belongs_to_the_new_base(tmp_path: Path) -> None:
    store = ObjectStore(str(tmp_path / "store"))
    state = fresh_state()
    one_round(state, round_input(0), ("shorts", "music"))
    assert state.adapters.keys() == {"shorts"}  # nobody has watched music yet
    before = weights_of(state, "shorts")
    records = one_round(state, round_input(3, surfaces=("home",)), ("shorts", "music"))
    assert are_equal(weights_of(state, "shorts"), before)
    assert records["shorts"] == {"metrics": records["shorts"]["metrics"], "refused": ""}
    sha256 = save_state(
        state,
        store,
        "lrm",
        scratch=tmp_path / "scratch",
        record={"refused": "", "adapters": records},
    )
    [event] = adapter_promotions("lrm", read_record(store, "lrm", 2))
    assert (event.model_name, event.model_version) == ("lrm.shorts", 2)
    assert (event.base_model_version, event.base_sha256) == (2, sha256)
    assert event.path == f"{checkpoint_key('lrm', 2)}/adapters/shorts"
    folder = store.local_directory(event.path, tmp_path / "cache")
    load_adapter(state.lrm, folder, base_sha256=sha256, sha256=event.sha256)


def test_adapters_of_a_refused_base_and_refused_adapters_are_not_announced() -> None:
    document = {
        "model_version": 4,
        "codebook_version": 1,
        "newest_event_time_ms": 0,
        "sha256": "base",
        "files": {"adapters/home/adapter_model.safetensors": "home"},
        "record": {"refused": "", "adapters": {
            "home": {"metrics": {}, "refused": ""}, "shorts": {"metrics": {}, "refused": "a weight is not finite"},
        }},
    }  # fmt: skip
    assert [one.model_name for one in adapter_promotions("lrm", document)] == ["lrm.home"]
    refused = document | {"record": {"refused": "anchor_loss", "adapters": {}}}
    assert list(adapter_promotions("lrm", refused)) == []
    older = document | {"record": {"refused": ""}}
    assert list(adapter_promotions("lrm", older)) == []


def test_adapter_that_is_no_longer_wanted_is_dropped() -> None:
    state = fresh_state()
    one_round(state, round_input(0))
    one_round(state, round_input(1), ("home",))
    assert state.adapters.keys() == {"home"}


def scaled(adapter: Adapter, factor: float) -> Adapter:
    return Adapter({name: one * factor + factor for name, one in adapter.weights.items()})


def broken_moments(adapter: Adapter) -> Adapter:
    nan = {name: torch.full_like(one, float("nan")) for name, one in adapter.optimizer.items()}
    return Adapter(adapter.weights, nan)


def test_adapter_that_breaks_in_training_is_refused_and_goes_on_from_before() -> None:
    state = fresh_state()
    one_round(state, round_input(0), ("home", "shorts"))
    before = weights_of(state, "home")
    state.adapters["home"] = broken_moments(state.adapters["home"])
    records = one_round(state, round_input(1), ("home", "shorts"))
    assert "not finite" in records["home"]["refused"]
    assert are_equal(weights_of(state, "home"), before)
    assert records["shorts"]["refused"] == ""
    assert state.model_version == 2  # the base goes on
    assert one_round(state, round_input(2), ("home",))["home"]["refused"] == ""


def test_adapter_that_was_broken_before_is_refused_and_begins_anew() -> None:
    state = fresh_state()
    one_round(state, round_input(0), ("home",))
    state.adapters["home"] = scaled(state.adapters["home"], 1e30)
    assert "not finite" in one_round(state, round_input(1), ("home",))["home"]["refused"]
    assert state.adapters == {}


def test_adapter_that_is_worse_than_its_base_is_refused_and_begins_anew() -> None:
    state = fresh_state()
    one_round(state, round_input(0), ("home",))
    state.adapters["home"] = scaled(state.adapters["home"], 3.0)
    records = one_round(state, round_input(1), ("home",))
    assert "loss on the anchor rows is" in records["home"]["refused"]
    assert state.adapters == {}
    assert one_round(state, round_input(2), ("home",))["home"]["refused"] == ""


def test_what_was_shown_before_the_last_new_watch_and_not_watched_is_a_negative() -> None:
    row = shard_row("u", ["v5", "v6"], history=["v1", "v2"])  # at 0, 1 and 1000, 1001
    impressions = [
        shown("u", ["v3", "v1"], at_ms=1),  # judged by an earlier round
        shown("u", ["v7", "v5", "v2", "gone"], at_ms=500),
        shown("u", ["v7", "v8"], at_ms=1001),
        shown("u", ["v9"], at_ms=1002),  # its watch may still come
        shown("nobody", ["v10"], at_ms=500),
    ]
    found = judgements([row], impressions, VIDEOS, random.Random(0))
    by_video = {one.video_id: one for one in found}
    assert by_video.keys() == {"v5", "v6", "v7", "v8"}
    assert len(found) == 4
    assert {one: tuple(by_video[one].rating) for one in by_video} == {
        "v5": (1.0, 0.0), "v6": (1.0, 0.0), "v7": (0.0, 0.0), "v8": (0.0, 0.0),
    }  # fmt: skip
    assert [watch.video_id for watch in by_video["v6"].watches] == ["v1", "v2", "v5"]
    assert [watch.video_id for watch in by_video["v8"].watches] == ["v1", "v2", "v5"]


def test_negatives_are_few_for_each_watch_and_judgements_for_each_round() -> None:
    many = [f"v{number}" for number in range(2, 24)]
    rows = [shard_row(f"u{user}", ["v0", "v1"]) for user in range(300)]
    impressions = [shown(row.user_id, many, at_ms=1000) for row in rows]
    found = judgements(rows[:1], impressions, VIDEOS, random.Random(0))
    assert sum(one.rating.share == 0 for one in found) == 8
    assert len(judgements(rows, impressions, VIDEOS, random.Random(0))) == JUDGEMENTS_MAX


def test_rounds_teach_ranking_to_put_what_is_watched_above_what_is_left_alone() -> None:
    """Everybody watches videos of the first three codes, and leaves the others alone."""
    wanted = [f"v{one}" for one in range(24) if one % 8 < 3]
    others = [f"v{one}" for one in range(24) if one % 8 >= 3]
    # As wide as `nano`: behind 32 numbers no answer can be much more probable than the rest of the vocabulary.
    config = replace(TINY, hidden_size=128, num_heads=4, intermediate_size=256)
    words = [f"{video.title} Drama 100% 60s\nhome:" for video in VIDEOS.values()]
    state = new_state(build_lrm(words * 4, SPACE, config=config), CONFIG, seed=3)
    state.config = replace(CONFIG, block_tokens=256)
    rng = random.Random(0)
    for number in range(11):
        rows = [shard_row(f"u{user}", rng.sample(wanted, 4)) for user in range(8)]
        new = RoundInput(
            rows=rows, new_videos=list(VIDEOS.values()) if number < 3 else [], videos=VIDEOS
        )
        run_round(state, new, LIMITS)
        impressions = [
            shown(row.user_id, rng.sample(others, 4), at_ms=1000 + rng.randrange(4))
            for row in rows
            for _ in range(2)
        ]
        if number >= 3:  # a base is fitted first
            run_adapters(state, new, LIMITS, names=("ranking",), shown=impressions)
    ranking = adapted(state.lrm, state.adapters["ranking"])
    asked = Request(None, shard_row("new", ["v8", "v1"]).watches, Ask("home"))
    [found] = rank(ranking, [asked], [[*wanted, *others]], VIDEOS)
    watched, left = found[: len(wanted)], found[len(wanted) :]
    right = sum(one.share > other.share for one in watched for other in left)
    assert right > 0.9 * len(watched) * len(left)
