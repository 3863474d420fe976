from __future__ import annotations

import random

import pytest
import torch

from models.next_item import (
    NextItemTraining,
    Window,
    make_optimizer,
    rank,
    sliding_windows,
    train_pass,
)
from models.two_tower import ItemContents, ItemTower, TwoTower, TwoTowerConfig, build_two_tower

TRAINING = NextItemTraining(
    peak_learning_rate=2e-2, round_learning_rate=1e-2, positions_per_step=256
)
NUM_KINDS, PER_KIND = 4, 6
UNSEEN_KINDS = (1, 2)


def some_contents(kinds: list[int], *, first: int = 0) -> ItemContents:
    """Items whose content vectors lie beside those of their kind; their clusters are their kinds."""
    generator = torch.Generator().manual_seed(first)
    noise_NC = 0.05 * torch.randn(len(kinds), NUM_KINDS, generator=generator)
    content_NC = torch.eye(NUM_KINDS)[kinds] + noise_NC
    ids = [f"item-{first + number}" for number in range(len(kinds))]
    return ItemContents(ids, content_NC, torch.tensor(kinds))


SEEN = some_contents([number % NUM_KINDS for number in range(NUM_KINDS * PER_KIND)])


def config(tower: ItemTower) -> TwoTowerConfig:
    return TwoTowerConfig(
        item_tower=tower, size=16, hidden_size=16, history_max=4, hash_rows=512, num_clusters=8, dropout=0.1
    )  # fmt: skip


def of_kind(kind: int, rng: random.Random, length: int = 6) -> list[int]:
    places = rng.sample(range(PER_KIND), length)
    return [kind + NUM_KINDS * place for place in places]


def fitted(tower: ItemTower) -> TwoTower:
    """Fit to people each of whom watches one kind."""
    model = build_two_tower(SEEN, config=config(tower))
    optimizer, rng = make_optimizer(model, TRAINING), random.Random(0)
    for _ in range(40):
        windows = [
            window
            for kind in range(NUM_KINDS)
            for _ in range(4)
            for window in sliding_windows(of_kind(kind, rng), history_max=model.history_max)
        ]
        train_pass(model, optimizer, windows, TRAINING, rng=rng)
    return model


def kinds_of(items: list[int]) -> list[int]:
    return [item % NUM_KINDS for item in items]


@pytest.mark.parametrize("tower", ["hash", "cluster"])
def test_watched_kind_is_ranked_first_by_both_towers(tower: ItemTower) -> None:
    model, rng = fitted(tower), random.Random(1)
    for kind in range(NUM_KINDS):
        [found] = rank(model, [of_kind(kind, rng, 3)], top_k=PER_KIND)
        assert kinds_of(found).count(kind) >= PER_KIND - 1


def places_of_unseen(tower: ItemTower) -> list[bool]:
    """Whether, for each kind that has one, its unwatched item stands before the other kinds' in its fans' ranking."""
    model, rng = fitted(tower), random.Random(1)
    unseen = {}
    for kind in UNSEEN_KINDS:
        unseen[kind] = model.num_items
        model.add_items(some_contents([kind], first=100 + kind))
    wins = []
    for kind in UNSEEN_KINDS:
        [found] = rank(model, [of_kind(kind, rng, 3)], top_k=model.num_items)
        unlike = [
            item
            for item in range(model.num_items)
            if item != unseen[kind] and (item not in unseen.values()) and item % NUM_KINDS != kind
        ]
        other = next(item for of, item in unseen.items() if of != kind)
        mine = found.index(unseen[kind])
        wins.append(all(mine < found.index(item) for item in [*unlike, other]))
    return wins


def test_unwatched_item_like_the_watched_is_ranked_above_the_unlike_by_cluster_and_not_by_hash() -> (
    None
):
    assert places_of_unseen("cluster") == [True, True]
    assert places_of_unseen("hash") != [True, True]


def test_watched_item_is_ranked_above_its_unwatched_twin_of_the_same_content() -> None:
    model = build_two_tower(
        ItemContents(["a", "b"], SEEN.content_NC[[0, 0]], SEEN.cluster_N[[0, 0]]),
        config=config("cluster"),
    )
    optimizer, rng = make_optimizer(model, TRAINING), random.Random(0)
    assert torch.equal(*model.item_vectors())
    for _ in range(20):
        train_pass(model, optimizer, [Window((0, 0), 0)] * 40, TRAINING, rng=rng)
    assert rank(model, [[0]], top_k=2) == [[0, 1]]
    assert rank(model, [[1]], top_k=2) == [[0, 1]]


def test_added_items_leave_the_old_vectors_alone() -> None:
    for tower in ("hash", "cluster"):
        model = build_two_tower(SEEN, config=config(tower))
        before = model.item_vectors().detach()
        model.add_items(some_contents([0, 3], first=50))
        assert model.num_items == len(SEEN) + 2
        assert torch.equal(model.item_vectors()[: len(SEEN)], before)


@pytest.mark.parametrize("tower", ["hash", "cluster"])
def test_no_state_knows_what_comes_after_it_nor_what_is_too_old(tower: ItemTower) -> None:
    model = build_two_tower(SEEN, config=config(tower))
    items_BT = torch.tensor([[1, 2, 3, 4, 5, 6]])
    before = model.states(items_BT)
    changed_BT = items_BT.clone()
    changed_BT[0, 1] = 12  # of another kind; pooled by the four states after it
    differs_T = (model.states(changed_BT) - before).abs().amax(dim=(0, 2)) > 1e-6
    assert differs_T.tolist() == [False, False, True, True, True, True, False]


def test_hashed_rows_depend_on_the_id_and_not_on_the_number() -> None:
    model = build_two_tower(SEEN, config=config("hash"))
    turned = ItemContents(SEEN.item_ids[::-1], SEEN.content_NC, SEEN.cluster_N)
    other = build_two_tower(turned, config=config("hash"))
    assert torch.equal(model.item_vectors(), other.item_vectors().flip(0))


def test_empty_history_is_ranked_too() -> None:
    model = build_two_tower(SEEN, config=config("cluster"))
    assert len(rank(model, [[], [1]], top_k=3)[0]) == 3


def test_unknown_item_tower_is_refused() -> None:
    with pytest.raises(ValueError, match="item_tower is 'flat'"):
        TwoTowerConfig(item_tower="flat")  # type: ignore[arg-type]
