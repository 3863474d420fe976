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
from models.sasrec import Sasrec, SasrecConfig, add_items, build_sasrec

CONFIG = SasrecConfig(hidden_size=16, num_blocks=1, num_heads=1, history_max=6, dropout=0.1)
TRAINING = NextItemTraining(
    peak_learning_rate=2e-2, round_learning_rate=1e-2, positions_per_step=256
)
NUM_ITEMS = 12


def walk(start: int, length: int) -> list[int]:
    """Items by a planted rule: each is followed by the one five further on."""
    return [(start + 5 * step) % NUM_ITEMS for step in range(length)]


def fitted(passes: int = 30) -> tuple[Sasrec, torch.optim.Adam]:
    model = build_sasrec(NUM_ITEMS, config=CONFIG)
    optimizer = make_optimizer(model, TRAINING)
    windows = [
        window
        for start in range(NUM_ITEMS)
        for window in sliding_windows(walk(start, 9), history_max=CONFIG.history_max)
    ]
    rng = random.Random(0)
    for _ in range(passes):
        train_pass(model, optimizer, windows, TRAINING, rng=rng)
    return model, optimizer


def test_planted_transition_is_learned() -> None:
    model, _ = fitted()
    histories = [walk(start, 4) for start in range(NUM_ITEMS)]
    wanted = [(history[-1] + 5) % NUM_ITEMS for history in histories]
    assert [first for [first] in rank(model, histories, top_k=1)] == wanted


def test_no_state_knows_what_comes_after_it() -> None:
    model = build_sasrec(NUM_ITEMS, config=CONFIG)
    items_BT = torch.tensor([[1, 2, 3, 4, 5]])
    before = model.states(items_BT)
    for place in range(5):
        changed_BT = items_BT.clone()
        changed_BT[0, place] = 9
        differs_T = (model.states(changed_BT) - before).abs().amax(dim=(0, 2)) > 1e-6
        assert differs_T.tolist() == [False] * (place + 1) + [True] * (5 - place)


def test_newest_items_alone_are_read_of_a_long_history() -> None:
    model = build_sasrec(NUM_ITEMS, config=CONFIG)
    long, newest = [7, 7, 7, *walk(0, 6)], walk(0, 6)
    assert rank(model, [long], top_k=12) == rank(model, [newest], top_k=12)


def test_padding_beside_a_longer_history_changes_nothing() -> None:
    model, _ = fitted(passes=2)
    alone = rank(model, [[3]], top_k=12)
    assert rank(model, [[3], [1, 2, 3, 4, 5]], top_k=12)[:1] == alone


def test_added_items_leave_the_old_scores_alone_and_can_be_learned() -> None:
    model, optimizer = fitted()
    states = model.states(torch.tensor([walk(0, 4)]))
    old_scores = (states @ model.item_vectors().T).detach()
    add_items(model, 2, optimizer=optimizer)
    assert model.num_items == NUM_ITEMS + 2
    new_scores = model.states(torch.tensor([walk(0, 4)])) @ model.item_vectors().T
    assert torch.equal(new_scores[..., :NUM_ITEMS], old_scores)

    moments = optimizer.state[model.items_ND]
    assert moments["exp_avg"].shape == model.items_ND.shape
    assert moments["exp_avg"][:NUM_ITEMS].abs().sum() > 0
    assert moments["exp_avg"][NUM_ITEMS:].abs().sum() == 0
    windows = [Window((0, NUM_ITEMS + 1), 1)] * 8
    for _ in range(30):
        train_pass(model, optimizer, windows, TRAINING, rng=random.Random(0))
    assert rank(model, [[0]], top_k=1) == [[NUM_ITEMS + 1]]


def test_passes_with_a_kept_optimizer_differ_from_those_with_a_new_one() -> None:
    ends = []
    for keep in (True, False):
        model, optimizer = fitted(passes=2)
        if not keep:
            optimizer = make_optimizer(model, TRAINING)
        train_pass(model, optimizer, [Window((0, 1, 2), 0)], TRAINING, rng=random.Random(0))
        ends.append(model.items_ND.detach())
    assert not torch.equal(*ends)


def test_same_seed_builds_the_same_model() -> None:
    one, same, other = (build_sasrec(5, config=CONFIG, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one.items_ND, same.items_ND)
    assert not torch.equal(one.items_ND, other.items_ND)


def test_impossible_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="no multiple of num_heads"):
        SasrecConfig(hidden_size=10, num_heads=4)
    with pytest.raises(ValueError, match="dropout is 1"):
        SasrecConfig(dropout=1.0)
