"""Two-towers and offline tables are swapped by the rules of the LRM, and rank what is live."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from shutil import rmtree

import pytest
import torch

from infra.storage import ObjectStore, sha256_of
from models.offline_table import DATA
from models.retriever import SIDECAR, WEIGHTS, build_retriever
from models.two_tower import ItemContents, TwoTowerConfig
from serve.model_slots import ModelSlots
from serve.views import CatalogueView, EventClock
from streams.events import TABLE_MODEL_NAME, TWO_TOWER_CLUSTER, TWO_TOWER_HASH, CheckpointPromoted
from tests.table_factories import save_table, some_table
from tests.tiny_serving import (
    NOON_MS,
    SPACE,
    assigned,
    record_of,
    removal_of,
    save_checkpoint,
    save_two_tower,
    some_contents,
    tiny_retriever,
    with_content,
)

NUM_VIDEOS = 12
NAMES = (TWO_TOWER_CLUSTER, TWO_TOWER_HASH)
Damage = Callable[[Path], CheckpointPromoted]


def announced_table(root: Path, version: int, context: str, related: str) -> CheckpointPromoted:
    path = f"tables/{version:06d}"
    save_table(some_table({context: [related]}), root / path)
    return CheckpointPromoted(
        model_name=TABLE_MODEL_NAME,
        model_version=version,
        codebook_version=1,
        path=path,
        sha256=sha256_of(root / path / DATA),
        metrics={},
        promoted_time_ms=NOON_MS,
    )


@pytest.fixture
def catalogue() -> CatalogueView:
    catalogue = CatalogueView(SPACE, EventClock())
    numbers = range(NUM_VIDEOS)
    catalogue.take([record_of(with_content(assigned(number), number)) for number in numbers])
    return catalogue


@pytest.fixture
def slots(catalogue: CatalogueView, tmp_path: Path) -> ModelSlots:
    return slots_of(catalogue, tmp_path)


def slots_of(catalogue: CatalogueView, root: Path) -> ModelSlots:
    slots = ModelSlots(
        ObjectStore(str(root)),
        catalogue,
        replica="r",
        cache=root / "cache",
        beam_width=10,
    )
    for items in slots._items.values():
        items._worked_s = lambda: 0.0  # the next refresh may be at once
    return slots


def ranked(slots: ModelSlots, name: str, *history: str) -> list[str]:
    bundle = slots.two_tower(name)
    assert bundle is not None
    return bundle.retriever.rank([history], top_k=100)[0]


def version_of(slots: ModelSlots, name: str) -> int:
    bundle = slots.table if name == TABLE_MODEL_NAME else slots.two_tower(name)
    return bundle.model_version if bundle else 0


def live(*without: int) -> set[str]:
    return {f"v-{number}" for number in range(NUM_VIDEOS) if number not in without}


@pytest.mark.parametrize("name", NAMES)
def test_two_tower_ranks_the_live_videos_and_not_those_it_was_trained_on(
    slots: ModelSlots, catalogue: CatalogueView, tmp_path: Path, name: str
) -> None:
    assert slots.two_tower(name) is None
    catalogue.take([removal_of("v-3")])
    [report] = slots.follow([save_two_tower(tmp_path, name, 1)])
    assert (report.model_name, report.outcome, report.previous_version) == (name, "succeeded", 0)
    assert set(ranked(slots, name, "v-1")) == live(3)


@pytest.mark.parametrize("name", NAMES)
def test_order_is_that_of_the_same_weights_told_of_the_same_videos_at_once(
    slots: ModelSlots, tmp_path: Path, name: str
) -> None:
    slots.follow([save_two_tower(tmp_path, name, 1)])
    ids = sorted(live())
    expected = tiny_retriever(name, seed=1)
    expected.set_items(some_contents([int(one.removeprefix("v-")) for one in ids]))
    history = ["v-7", "v-2"]
    assert ranked(slots, name, *history) == expected.rank([history], top_k=100)[0]


def test_upload_edit_and_removal_reach_the_ranking_and_not_a_request_in_hand(
    slots: ModelSlots, catalogue: CatalogueView, tmp_path: Path
) -> None:
    slots.follow([save_two_tower(tmp_path, TWO_TOWER_CLUSTER, 1)])
    in_hand = slots.two_tower(TWO_TOWER_CLUSTER)
    assert in_hand is not None
    before = in_hand.retriever.rank([["v-1"]], top_k=100)
    edited = with_content(assigned(5), 40)
    uploaded = with_content(assigned(20), 20)
    catalogue.take([removal_of("v-3"), record_of(edited), record_of(uploaded)])
    assert slots.follow([]) == []  # no swap, so no report
    assert in_hand.retriever.rank([["v-1"]], top_k=100) == before
    found = slots.two_tower(TWO_TOWER_CLUSTER)
    assert found is not None
    assert found.model_version == 1
    assert set(found.retriever.item_ids) == live(3) | {"v-20"}
    at = found.retriever.item_ids.index("v-5"), in_hand.retriever.item_ids.index("v-5")
    changed = found.retriever.vectors_ND[at[0]] - in_hand.retriever.vectors_ND[at[1]]
    assert float(changed.abs().max()) > 1e-3
    slots.follow([])
    assert slots.two_tower(TWO_TOWER_CLUSTER) is found  # nothing changed since


def test_video_without_content_or_with_one_of_another_kind_is_passed_over(
    slots: ModelSlots, catalogue: CatalogueView, tmp_path: Path
) -> None:
    odd = [
        assigned(20),
        with_content(assigned(21), 21).model_copy(update={"cluster_id": 4}),
        with_content(assigned(22), 22).model_copy(update={"embedding_f16": "AAA"}),
        with_content(assigned(23), 23).model_copy(update={"embedding_f16": "AAAA"}),
        with_content(assigned(24), 24).model_copy(update={"embedding_f16": "AHwAfAB8AHw="}),
    ]
    catalogue.take([record_of(video) for video in odd])
    slots.follow([save_two_tower(tmp_path, TWO_TOWER_CLUSTER, 1)])
    assert set(ranked(slots, TWO_TOWER_CLUSTER)) == live()


def test_two_tower_is_loaded_before_any_video_is_live(tmp_path: Path) -> None:
    catalogue = CatalogueView(SPACE, EventClock())
    slots = slots_of(catalogue, tmp_path)
    slots.follow([save_two_tower(tmp_path, TWO_TOWER_HASH, 1)])
    assert ranked(slots, TWO_TOWER_HASH, "v-1") == []
    catalogue.take([record_of(with_content(assigned(1), 1))])
    slots.follow([])
    assert ranked(slots, TWO_TOWER_HASH, "v-1") == ["v-1"]


def flipped_bit(root: Path) -> CheckpointPromoted:
    promoted = save_two_tower(root, TWO_TOWER_CLUSTER, 2)
    path = root / promoted.path / WEIGHTS
    weights = bytearray(path.read_bytes())
    weights[-1] ^= 1
    path.write_bytes(weights)
    return promoted


def truncated_before_it_was_announced(root: Path) -> CheckpointPromoted:
    promoted = save_two_tower(root, TWO_TOWER_CLUSTER, 2)
    path = root / promoted.path / WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])
    return promoted.model_copy(update={"sha256": sha256_of(path)})


def with_other_ids(root: Path) -> CheckpointPromoted:
    promoted = save_two_tower(root, TWO_TOWER_CLUSTER, 2)
    path = root / promoted.path / SIDECAR
    path.write_text(path.read_text().replace("v-1", "v-2"))
    return promoted


def missing(root: Path) -> CheckpointPromoted:
    promoted = save_two_tower(root, TWO_TOWER_CLUSTER, 2)
    (root / promoted.path / SIDECAR).unlink()
    return promoted


def not_a_number(root: Path) -> CheckpointPromoted:
    return with_weights_of(root, float("nan"))


def that_overflows(root: Path) -> CheckpointPromoted:
    return with_weights_of(root, 1e30)


def with_weights_of(root: Path, value: float) -> CheckpointPromoted:
    retriever = tiny_retriever(TWO_TOWER_CLUSTER)
    with torch.no_grad():
        for parameter in retriever.model.parameters():
            parameter.fill_(value)
    return save_two_tower(root, TWO_TOWER_CLUSTER, 2, retriever)


def of_another_codebook(root: Path) -> CheckpointPromoted:
    retriever = tiny_retriever(TWO_TOWER_CLUSTER, codebook_version=2)
    return save_two_tower(root, TWO_TOWER_CLUSTER, 2, retriever)


def that_lies_about_its_codebook(root: Path) -> CheckpointPromoted:
    return of_another_codebook(root).model_copy(update={"codebook_version": 1})


def of_another_shape(root: Path) -> CheckpointPromoted:
    contents = ItemContents(["v-1"], torch.ones(1, 7), torch.tensor([0]))
    config = TwoTowerConfig(size=8, hidden_size=8, num_clusters=4)
    retriever = build_retriever(contents, config=config, codebook_version=1)
    return save_two_tower(root, TWO_TOWER_CLUSTER, 2, retriever)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (flipped_bit, "announced was"),
        (truncated_before_it_was_announced, "incomplete"),
        (with_other_ids, "its weights name"),
        (missing, "incomplete"),
        (not_a_number, "not finite"),
        (that_overflows, "trial ranking"),
        (of_another_codebook, "announced for codebook 2, live is 1"),
        (that_lies_about_its_codebook, "is of codebook 2, live is 1"),
        (of_another_shape, "can rank none of 12 live videos"),
    ],
)
def test_bad_two_tower_is_rejected_and_the_old_one_serves_on(
    slots: ModelSlots, tmp_path: Path, damage: Damage, reason: str
) -> None:
    slots.follow([save_two_tower(tmp_path, TWO_TOWER_CLUSTER, 1)])
    before = slots.two_tower(TWO_TOWER_CLUSTER)
    [report] = slots.follow([damage(tmp_path)])
    assert report.outcome == "rejected"
    assert re.search(reason, report.reason)
    assert slots.two_tower(TWO_TOWER_CLUSTER) is before


def test_rolled_back_two_tower_needs_no_file_and_ranks_what_has_come_since(
    slots: ModelSlots, catalogue: CatalogueView, tmp_path: Path
) -> None:
    first, second = (save_two_tower(tmp_path, TWO_TOWER_CLUSTER, version) for version in (1, 2))
    slots.follow([first])
    slots.follow([second])
    rmtree(tmp_path / "checkpoints")
    catalogue.take([record_of(with_content(assigned(20), 20)), removal_of("v-0")])
    [report] = slots.follow([first])
    assert (report.outcome, report.previous_version) == ("succeeded", 2)
    assert set(ranked(slots, TWO_TOWER_CLUSTER)) == live(0) | {"v-20"}


def test_table_is_swapped_rejected_and_rolled_back_like_a_model(
    slots: ModelSlots, tmp_path: Path
) -> None:
    first, second = (announced_table(tmp_path, number, "v-1", f"v-{number}") for number in (1, 2))
    assert slots.table is None
    slots.follow([first])
    slots.follow([second])
    assert slots.table is not None
    assert slots.table.table.lookup("v-1") == (("v-2", -0.5),)
    bad = second.model_copy(update={"model_version": 3, "sha256": "0"})
    assert [one.outcome for one in slots.follow([bad])] == ["rejected"]
    rmtree(tmp_path / "tables")
    slots.follow([first])
    assert version_of(slots, TABLE_MODEL_NAME) == 1
    assert slots.table.table.lookup("v-1") == (("v-1", -0.5),)


def test_each_model_follows_its_own_pointers_and_unknown_ones_are_passed_over(
    slots: ModelSlots, tmp_path: Path
) -> None:
    reports = slots.follow(
        [
            announced_table(tmp_path, 7, "v-1", "v-2"),
            save_two_tower(tmp_path, TWO_TOWER_HASH, 5),
            save_checkpoint(tmp_path, 1).model_copy(update={"model_name": "another"}),
            save_two_tower(tmp_path, TWO_TOWER_CLUSTER, 4),
            save_checkpoint(tmp_path, 2),
        ]
    )
    assert [one.model_name for one in reports] == ["lrm", *NAMES, TABLE_MODEL_NAME]
    assert [version_of(slots, name) for name in (*NAMES, TABLE_MODEL_NAME)] == [4, 5, 7]
    assert slots.lrm is not None
    assert slots.lrm.model_version == 2
    assert slots.previous_lrm is None
