from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from msgspec import structs
from safetensors import safe_open
from safetensors.torch import save_file

from infra.errors import GateError, VersionMismatchError
from infra.storage import ObjectStore
from models.retriever import SIDECAR, WEIGHTS, load_retriever
from streams.events import TWO_TOWER_CLUSTER, TWO_TOWER_HASH
from streams.shards import ShardRow
from tests.lrm_factories import shard_row
from tests.two_tower_factories import content, some_content, tiny_two_tower
from workers.training_round import RoundResult
from workers.training_state import checkpoint_key
from workers.two_tower_round import first_two_tower_fit, run_two_tower_round
from workers.two_tower_state import (
    TWO_TOWERS,
    TwoTowerState,
    load_two_tower,
    save_two_tower,
)

VIDEOS = some_content()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for each other take longer than such small steps."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def some_rows(first: int = 0) -> list[ShardRow]:
    """Six people, each of whom watches videos of one kind."""
    return [
        shard_row(
            f"u{user}",
            [f"v{(first + user + 4 * step) % 24}" for step in range(1, 6)],
            history=[f"v{(first + user) % 24}"],
        )
        for user in range(6)
    ]


def fitted(model_name: str = TWO_TOWER_CLUSTER) -> TwoTowerState:
    state = tiny_two_tower(model_name)
    first_two_tower_fit(state, some_rows(), epochs=3)
    return state


def one_round(state: TwoTowerState, rows: list[ShardRow]) -> RoundResult:
    return run_two_tower_round(state, rows, VIDEOS, evaluate_max=8)


def saved(state: TwoTowerState, root: Path, model_name: str) -> str:
    record = {"shard_ids": [], "metrics": {}, "refused": ""}
    return save_two_tower(
        state, ObjectStore(str(root)), model_name, scratch=root / "scratch", record=record
    )


@pytest.mark.parametrize("model_name", list(TWO_TOWERS))
def test_round_after_loading_equals_the_round_of_who_never_stopped(
    tmp_path: Path, model_name: str
) -> None:
    whole = fitted(model_name)
    one_round(whole, some_rows(1))
    saved(whole, tmp_path, model_name)
    resumed = load_two_tower(ObjectStore(str(tmp_path)), model_name, 2, cache=tmp_path)
    rows = [*some_rows(2), shard_row("single", ["v3"])]
    expected, found = one_round(whole, rows), one_round(resumed, rows)
    assert found.losses == expected.losses
    assert found.metrics == expected.metrics
    assert resumed.rng.getstate() == whole.rng.getstate()
    assert resumed.watch_counts == whole.watch_counts
    assert saved(resumed, tmp_path / "a", model_name) == saved(whole, tmp_path / "b", model_name)


def test_round_scores_new_watches_before_it_learns_them() -> None:
    state = fitted()
    ranked = state.retriever.rank([["v3"]], top_k=24)
    found = one_round(state, some_rows(3)).metrics
    assert found["prequential_requests"] == 8
    assert found["prequential_requests_watched_1-4"] > 0
    assert state.retriever.rank([["v3"]], top_k=24) != ranked
    assert state.model_version == 2
    assert state.reservoir.seen == 12
    assert found["loss"] > 0


def test_video_is_ranked_from_its_first_round_on_and_gone_from_that_of_its_removal() -> None:
    state = fitted()
    videos = VIDEOS | {"new": content(24)}
    run_two_tower_round(state, [], videos, evaluate_max=4)
    assert "new" in state.retriever.rank([["v0", "v4"]], top_k=25)[0]
    del videos["new"], videos["v4"]
    run_two_tower_round(state, [shard_row("u", ["v4", "v8"])], videos, evaluate_max=4)
    assert len(state.retriever.rank([["v0", "v4"]], top_k=25)[0]) == 23
    held = state.reservoir.rows[:-1]  # the last one was told of a removed video
    assert not any(watch.video_id == "v4" for row in held for watch in row.watches)


def test_erased_user_is_forgotten() -> None:
    state = fitted()
    run_two_tower_round(state, [], VIDEOS, erased_users=frozenset({"u1", "anchor"}), evaluate_max=4)
    assert {row.user_id for row in state.reservoir.rows} == {"u0", "u2", "u3", "u4", "u5"}
    assert state.anchor_rows == []


def test_catalogue_that_grows_much_is_no_forgetting() -> None:
    state = fitted()
    state.anchor_rows = some_rows()[:1]
    videos = VIDEOS | {f"new-{number}": content(number) for number in range(2000)}
    result = run_two_tower_round(state, some_rows(1), videos, evaluate_max=4)
    assert result.metrics["videos"] == 2024


@pytest.mark.parametrize("gate", ["finite", "anchor_loss"])
def test_gates_refuse_what_must_not_be_promoted(gate: str) -> None:
    state = fitted()
    state.anchor_rows = some_rows()[:1]
    if gate == "finite":
        with torch.no_grad():
            state.retriever.model.start_D[0] = torch.nan
    else:
        state.training = replace(state.training, peak_learning_rate=5.0, round_learning_rate=5.0)
    with pytest.raises(GateError) as refused:
        one_round(state, some_rows(2))
    assert refused.value.gate.startswith(gate)


def test_loaded_retriever_ranks_as_the_trained_one_and_damage_is_refused(tmp_path: Path) -> None:
    state = fitted()
    sha256 = saved(state, tmp_path, TWO_TOWER_CLUSTER)
    folder = tmp_path / checkpoint_key(TWO_TOWER_CLUSTER, 1)
    loaded = load_retriever(folder, sha256=sha256, codebook_version=1)
    asked = [["v0", "unheard-of", "v4"], []]
    ranked = loaded.rank(asked, top_k=5, excluded=asked)
    assert ranked == state.retriever.rank(asked, top_k=5, excluded=asked)
    assert not {"v0", "v4"} & set(ranked[0])

    with pytest.raises(VersionMismatchError, match="announced was"):
        load_retriever(folder, sha256="0" * 64)
    with pytest.raises(VersionMismatchError, match="live is 2"):
        load_retriever(folder, codebook_version=2)
    sidecar = folder / SIDECAR
    whole = sidecar.read_bytes()
    sidecar.write_bytes(whole.replace(b'"v0"', b'"vX"'))
    with pytest.raises(VersionMismatchError, match="its weights name"):
        load_retriever(folder, sha256=sha256)
    sidecar.write_bytes(whole)
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        earlier = {name: file.get_tensor(name) for name in file.keys() if name != "table.weight"}  # noqa: SIM118
        named = file.metadata()
    save_file(earlier, folder / WEIGHTS, metadata=named)
    with pytest.raises(VersionMismatchError, match=r"earlier two-tower.*bootstrap"):
        load_retriever(folder)
    (folder / WEIGHTS).write_bytes(b"cut")
    with pytest.raises(VersionMismatchError, match="incomplete"):
        load_retriever(folder)


def test_watches_count_by_how_much_was_watched_if_it_is_told_to() -> None:
    """Whoever begins with v0 leaves v1 at once and watches v2 to its end; only the weights tell them apart."""
    rows = [
        structs.replace(row, watches=[structs.replace(row.watches[0], percent=percent)])
        for user in range(40)
        for video_id, percent in (("v1", 0), ("v2", 100))
        for row in [shard_row(f"{user}-{video_id}", [video_id], history=["v0"])]
    ]

    def preferred_by(reward_share: float) -> float:
        state = tiny_two_tower(TWO_TOWER_HASH)
        first_two_tower_fit(state, rows, epochs=30, reward_share=reward_share)
        model = state.retriever.model
        number = state.retriever.numbers(["v0", "v1", "v2"])
        with torch.inference_mode():
            scores = model.states(torch.tensor([number[:1]]))[0, -1] @ model.item_vectors().T
        return float(scores[number[2]] - scores[number[1]])  # in nats

    assert abs(preferred_by(0.0)) < 0.5
    assert preferred_by(1.0) > 1.5
