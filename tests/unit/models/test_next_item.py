from __future__ import annotations

import random
from collections import Counter

import pytest
import torch
from torch import Tensor, nn

from models.next_item import (
    NextItemModel,
    NextItemTraining,
    Window,
    make_optimizer,
    next_item_loss,
    rank,
    sliding_windows,
    train_pass,
)
from models.sasrec import SasrecConfig, build_sasrec

CONFIG = SasrecConfig(hidden_size=16, num_blocks=1, num_heads=1, history_max=6, dropout=0.1)
TRAINING = NextItemTraining(
    peak_learning_rate=2e-2, round_learning_rate=1e-2, positions_per_step=64
)


class FixedScores(NextItemModel):
    """Scores every item by the same given numbers, whatever the history."""

    history_max = 3

    def __init__(self, scores: list[float]) -> None:
        super().__init__()
        self.scores_N1 = nn.Parameter(torch.tensor(scores)[:, None])

    @property
    def num_items(self) -> int:
        return len(self.scores_N1)

    def states(self, items_BT: Tensor) -> Tensor:
        return torch.ones(len(items_BT), items_BT.shape[1] + 1, 1)

    def item_vectors(self) -> Tensor:
        return self.scores_N1


@pytest.mark.parametrize("first_new", [0, 5, 39])
def test_windows_learn_each_new_item_once_and_no_earlier_one(first_new: int) -> None:
    items = list(range(40))
    weights = [item / 10 for item in items]
    windows = list(sliding_windows(items, first_new=first_new, history_max=6, weights=weights))
    assert all(window.weights == tuple(item / 10 for item in window.items) for window in windows)
    learned = [item for window in windows for item in window.items[window.first_learned :]]
    assert learned == items[first_new:]
    assert all(len(window.items) <= 7 for window in windows)
    assert all(window.first_learned >= 3 for window in windows if window.items[0] > 0)


def test_windows_of_nothing_new_are_none() -> None:
    assert list(sliding_windows([1, 2], first_new=2, history_max=6)) == []


def test_ties_go_to_the_smaller_number() -> None:
    scores = [float(number % 3) for number in range(300)]  # so many that an unstable sort shows
    wanted = sorted(range(300), key=lambda number: (-scores[number], number))
    assert rank(FixedScores(scores), [[]], top_k=300) == [wanted]


def test_ranking_leaves_out_what_is_excluded_or_not_there_yet() -> None:
    model = FixedScores([0.0, 1.0, 3.0, 4.0])
    found = rank(
        model, [[1], [], [0, 1, 2, 3, 0]], top_k=3, excluded=[{2}, (), {0, 1}], num_live=[4, 3, 2]
    )
    assert found == [[3, 1, 0], [2, 1, 0], []]


def test_training_is_a_function_of_the_seed_and_leaves_the_global_generator_alone() -> None:
    def losses(seed: int) -> list[float]:
        model = build_sasrec(8, config=CONFIG, seed=1)
        windows = [Window((0, 1, 2, 3, 4), 0)] * 40
        optimizer = make_optimizer(model, TRAINING)
        return train_pass(model, optimizer, windows, TRAINING, rng=random.Random(seed))

    torch.manual_seed(3)
    first = losses(0)
    after = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(after, torch.rand(1))
    assert first == losses(0)
    assert first != losses(1)


def test_pass_gives_every_window_once_and_ends_when_it_is_over() -> None:
    model = build_sasrec(300, config=CONFIG)
    windows = [Window((number, number), 1) for number in range(300)]
    seen: Counter[int] = Counter()
    forward = model.states

    def watched(items_BT: Tensor) -> Tensor:
        seen.update(items_BT[:, 0].tolist())
        return forward(items_BT)

    model.states = watched  # type: ignore[method-assign]
    optimizer = make_optimizer(model, TRAINING)
    whole = train_pass(model, optimizer, windows, TRAINING, rng=random.Random(0))
    assert seen == Counter(range(300))
    left = iter([False, False, True])
    part = train_pass(
        model, optimizer, windows, TRAINING, rng=random.Random(0), is_over=lambda: next(left)
    )
    assert (len(whole), len(part)) == (10, 2)


def test_loss_counts_the_learned_items_only_and_no_padding() -> None:
    model = build_sasrec(9, config=CONFIG, seed=2)
    short, long = Window((1, 2), 1), Window((3, 4, 5, 6, 7), 3)
    together = next_item_loss(model, [short, long]).item()
    alone = [next_item_loss(model, [one]).item() for one in (short, long)]
    assert together == pytest.approx((alone[0] + 2 * alone[1]) / 3, abs=1e-5)


def test_loss_counts_items_by_their_weights() -> None:
    model = build_sasrec(9, config=CONFIG, seed=2)
    light, heavy = Window((1, 2), 1, (7.0, 0.5)), Window((3, 4), 1, (7.0, 1.5))
    together = next_item_loss(model, [light, heavy]).item()
    alone = [next_item_loss(model, [one]).item() for one in (light, heavy)]
    assert alone[0] == pytest.approx(next_item_loss(model, [Window((1, 2), 1)]).item(), abs=1e-5)
    assert together == pytest.approx((0.5 * alone[0] + 1.5 * alone[1]) / 2, abs=1e-5)


def test_first_fits_learning_rate_rises_then_falls_to_that_of_a_refresh() -> None:
    rates = [TRAINING.learning_rate(step / 100) for step in range(101)]
    peak = rates.index(max(rates))
    assert 0 < peak < 10
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert rates[-1] == pytest.approx(TRAINING.round_learning_rate)


def test_rates_in_the_wrong_order_are_refused() -> None:
    with pytest.raises(ValueError, match=r"round_learning_rate 0\.1 is not in"):
        NextItemTraining(peak_learning_rate=0.01, round_learning_rate=0.1)
