"""Training and ranking for models that predict the next item by its number: full softmax, full ranking.

The peers of the LRM are written on this; it knows nothing of how a model reads a history, of text and of videos.
Items are numbered from 0 in the order in which they came, so that "what was there then" is a prefix of the catalogue.

Legend: B windows or requests, T items of a window, N items of the catalogue, D dimension of states and item vectors,
P positions that are learned.
"""

from __future__ import annotations

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

RANK_BATCH = 128
_BATCHES_PER_BUCKET = (
    32  # windows are sorted by length within so many batches: little padding, much chance
)


class NextItemModel(nn.Module, ABC):
    """A model whose score of an item is the product of a state of the history and a vector of the item."""

    history_max: int
    """Newest items that a state knows of."""

    @property
    @abstractmethod
    def num_items(self) -> int:
        """Items in the catalogue so far."""

    @abstractmethod
    def states(self, items_BT: Tensor) -> Tensor:
        """Return one state more than there are items: state t knows the first t items and nothing after.

        Shapes: items_BT int64, filled on the right with any valid number -> float32 [B, T + 1, D].
        """

    @abstractmethod
    def item_vectors(self) -> Tensor:
        """Return every item's vector; shape [N, D]."""


class Window(NamedTuple):
    """A stretch of somebody's items, of which those from `first_learned` on are to be predicted.

    `weights` say how much each item counts where it is predicted; without them each counts once.
    """

    items: tuple[int, ...]
    first_learned: int
    weights: tuple[float, ...] = ()


def sliding_windows(
    items: Sequence[int],
    *,
    first_new: int = 0,
    history_max: int,
    weights: Sequence[float] = (),
) -> Iterator[Window]:
    """Yield windows in which each item from `first_new` on is learned once, behind what came before it.

    A window has `history_max` items and one to predict, at most; where there are more, each window but the first opens
    with at least half as many items that are known already.
    """
    length = history_max + 1
    while first_new < len(items):
        context = max(length // 2, length - (len(items) - first_new))
        start = max(0, first_new - context)
        end = min(len(items), start + length)
        yield Window(tuple(items[start:end]), first_new - start, tuple(weights[start:end]))
        first_new = end


@dataclass(frozen=True, kw_only=True, slots=True)
class NextItemTraining:
    """How a next-item model is fitted once, and then refreshed."""

    peak_learning_rate: float = 2e-3
    """Of the first fit, after its warm-up."""
    round_learning_rate: float = 5e-4
    """Of every refresh; the first fit falls to it along a cosine."""
    warmup_share: float = 0.05
    """Share of the first fit in which the learning rate rises."""
    gradient_norm_max: float = 1.0
    positions_per_step: int = 1024
    """Items, padding included, whose successors are learned in one step."""

    def __post_init__(self) -> None:
        if not 0 < self.round_learning_rate <= self.peak_learning_rate:
            raise ValueError(
                f"round_learning_rate {self.round_learning_rate} is not in (0, {self.peak_learning_rate}]"
            )

    def learning_rate(self, share: float) -> float:
        """Return the first fit's learning rate when this share of it is done: linear warm-up, then a cosine."""
        if share < self.warmup_share:
            return self.peak_learning_rate * max(share / self.warmup_share, 0.01)
        done = min(1.0, (share - self.warmup_share) / (1 - self.warmup_share))
        fall = self.peak_learning_rate - self.round_learning_rate
        return self.round_learning_rate + fall * 0.5 * (1 + math.cos(math.pi * done))


def make_optimizer(model: NextItemModel, training: NextItemTraining) -> torch.optim.Adam:
    """Return Adam with the paper's second moment (Kang & McAuley, 1808.09781, sec. IV-D)."""
    return torch.optim.Adam(
        model.parameters(), lr=training.round_learning_rate, betas=(0.9, 0.98), fused=True
    )


def train_pass(
    model: NextItemModel,
    optimizer: torch.optim.Adam,
    windows: Sequence[Window],
    training: NextItemTraining,
    *,
    rng: random.Random,
    learning_rate: Callable[[float], float] | None = None,
    is_over: Callable[[], bool] | None = None,
) -> list[float]:
    """Make one pass over the windows, in an order drawn from `rng`, and return the loss of each step in nats.

    Args:
        model: its weights change in place.
        optimizer: as `make_optimizer` returned it; kept between passes, it remembers.
        windows: of any number of people.
        training: rates and sizes.
        rng: of the order and of dropout; the same state gives the same weights.
        learning_rate: from the share of this pass that is done; by default that of a refresh.
        is_over: asked before each step; a pass that is over ends early.
    """
    batches = _batches(windows, training.positions_per_step, rng)
    losses = []
    model.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rng.getrandbits(63))
        for step, batch in enumerate(batches):
            if is_over is not None and is_over():
                break
            rate = learning_rate(step / len(batches)) if learning_rate else None
            for group in optimizer.param_groups:
                group["lr"] = training.round_learning_rate if rate is None else rate
            loss = next_item_loss(model, batch)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), training.gradient_norm_max)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(float(loss.detach()))
    model.eval()
    return losses


def next_item_loss(model: NextItemModel, batch: Sequence[Window]) -> Tensor:
    """Return the weighted mean cross-entropy of the learned items, in nats, the softmax over the whole catalogue.

    Source: Klenitskiy & Vasilev 2023 (2309.07602): with it SASRec passes BERT4Rec, with one sampled negative it
    does not.
    """
    items_BT = _padded([window.items for window in batch])
    lengths_B1 = torch.tensor([[len(window.items)] for window in batch])
    first_B1 = torch.tensor([[window.first_learned] for window in batch])
    position_T = torch.arange(items_BT.shape[1])
    learned_BT = (position_T >= first_B1) & (position_T < lengths_B1)
    states_PD = model.states(items_BT[:, :-1])[learned_BT]
    losses_P = cross_entropy(
        states_PD @ model.item_vectors().T, items_BT[learned_BT], reduction="none"
    )
    weights_P = torch.tensor(
        [
            weight
            for window in batch
            for weight in (window.weights or [1.0] * len(window.items))[window.first_learned :]
        ]
    )
    return (losses_P * weights_P).sum() / weights_P.sum()


def _batches(
    windows: Sequence[Window], positions_per_step: int, rng: random.Random
) -> list[list[Window]]:
    """Cut shuffled windows into batches of similar lengths and at most so many positions."""
    shuffled = list(windows)
    rng.shuffle(shuffled)
    mean_length = sum(len(window.items) for window in windows) / max(1, len(windows))
    bucket = max(1, round(_BATCHES_PER_BUCKET * positions_per_step / max(1.0, mean_length)))
    batches: list[list[Window]] = []
    for start in range(0, len(shuffled), bucket):
        batch: list[Window] = []
        for window in sorted(shuffled[start : start + bucket], key=lambda one: len(one.items)):
            if batch and (len(batch) + 1) * len(window.items) > positions_per_step:
                batches.append(batch)
                batch = []
            batch.append(window)
        batches.append(batch)
    rng.shuffle(batches)
    return batches


def _padded(rows: Sequence[Sequence[int]]) -> Tensor:
    """Return the rows as one tensor, filled on the right with item 0, which no earlier state sees."""
    longest = max(len(row) for row in rows)
    return torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], dtype=torch.int64)


@torch.inference_mode()
def rank(
    model: NextItemModel,
    histories: Sequence[Sequence[int]],
    *,
    top_k: int,
    excluded: Sequence[Collection[int]] | None = None,
    num_live: Sequence[int] | None = None,
) -> list[list[int]]:
    """Return the items with the highest scores for each history, best first; ties go to the smaller number.

    Args:
        model: in evaluation mode.
        histories: items in time order; one may be empty.
        top_k: items wanted; there are fewer where fewer are live and not excluded.
        excluded: per history, items that must not be returned.
        num_live: per history, how many of the catalogue's items there were; by default all.
    """
    vectors_ND = model.item_vectors()
    found: list[list[int]] = []
    for start in range(0, len(histories), RANK_BATCH):
        rows = range(start, min(start + RANK_BATCH, len(histories)))
        newest = [list(histories[row])[-model.history_max :] for row in rows]
        states_BTD = model.states(_padded(newest))
        last_B = torch.tensor([len(row) for row in newest])
        scores_BN = states_BTD[torch.arange(len(newest)), last_B] @ vectors_ND.T
        for row, scores_N in zip(rows, scores_BN, strict=True):
            if excluded is not None:
                scores_N[list(excluded[row])] = -torch.inf
            if num_live is not None:
                scores_N[num_live[row] :] = -torch.inf
        found += [highest(scores_N, top_k) for scores_N in scores_BN]
    return found


def highest(scores_N: Tensor, top_k: int) -> list[int]:
    """Return where the highest scores are; of equals, which topk may pick as it likes, the smaller numbers."""
    wanted = min(top_k, len(scores_N))
    if wanted == 0:
        return []
    (number_M,) = torch.where(scores_N >= scores_N.topk(wanted).values[-1])
    values_M, order_M = scores_N[number_M].sort(descending=True, stable=True)
    first = order_M[:wanted][values_M[:wanted] > -torch.inf]
    numbers: list[int] = number_M[first].tolist()
    return numbers
