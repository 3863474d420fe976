"""One round of a two-tower: score what is new, learn it with replay, pass the gates; plain functions.

As `workers.training_round`, and scored by the same figures; knows nothing of Kafka, Ray and files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence

import torch

from models.examples import reward
from models.next_item import Window, next_item_loss, sliding_windows, train_pass
from models.retriever import Retriever
from streams.shards import ShardRow
from workers.gates import check_anchor_loss, check_finite
from workers.training_round import (
    RoundResult,
    by_earlier_watches,
    sampled_watches,
)
from workers.two_tower_state import Content, TwoTowerState

PASSES = 2
"""Over the new watches and as many old ones, drawn anew for each; as the quality benchmark's validation chose."""
_ANCHORS_AT_ONCE = 32


def run_two_tower_round(
    state: TwoTowerState,
    rows: Sequence[ShardRow],
    videos: Mapping[str, Content],
    *,
    erased_users: Container[str] = (),
    evaluate_max: int,
    reward_share: float = 0.0,
) -> RoundResult:
    """Move the state one round forward and return what was measured.

    Args:
        state: changes in place.
        rows: of all new shards.
        videos: all live ones; watches of others are left out and counted, and forgotten where they were learned.
        erased_users: are forgotten, but for the rows.
        evaluate_max: new watches scored before anything is learned from them.
        reward_share: how much of what a watch counts follows from how much was watched; see `models.examples.reward`.

    Raises:
        GateError: the result must not be promoted; the caller goes on from the last checkpoint.
    """
    result = RoundResult()
    state.forget(videos, erased_users)
    state.set_catalogue(videos)
    result.metrics |= two_tower_prequential(state, rows, videos, evaluate_max)
    result.laps.end("score")
    unknown = sum(watch.video_id not in videos for row in rows for watch in row.watches)
    result.metrics["unknown_video_watches"] = float(unknown)
    loss_before = anchor_loss(state)  # over the catalogue as it is now
    fresh = list(windows_of(state.retriever, rows, reward_share))
    result.laps.end("examples")
    for _ in range(PASSES):
        num_replayed = min(len(rows), len(state.reservoir.rows))
        replayed = state.rng.sample(state.reservoir.rows, num_replayed)
        old = list(windows_of(state.retriever, replayed, reward_share))
        state.rng.shuffle(old)
        result.losses += train_pass(
            state.retriever.model,
            state.optimizer,
            [*fresh, *old[: len(fresh)]],
            state.training,
            rng=state.rng,
        )
    result.laps.end("train")
    state.steps += len(result.losses)
    state.model_version += 1
    state.count(rows)
    check_finite(result.losses, state.retriever.model.parameters())
    state.anchor_loss = anchor_loss(state)
    check_anchor_loss(state.anchor_loss, loss_before)
    result.metrics |= {
        "loss": sum(result.losses) / max(1, len(result.losses)),
        "steps": float(len(result.losses)),
        "videos": float(len(videos)),
        "anchor_loss": state.anchor_loss,
    }
    result.laps.end("gates")
    return result


def windows_of(
    retriever: Retriever, rows: Iterable[ShardRow], reward_share: float = 0.0
) -> Iterator[Window]:
    """Yield windows in which each watch of the rows is learned once, behind the history before it."""
    for row in rows:
        history = [watch for watch in row.history if watch.video_id in retriever]
        watches = [*history, *(watch for watch in row.watches if watch.video_id in retriever)]
        yield from sliding_windows(
            retriever.numbers([watch.video_id for watch in watches]),
            first_new=len(history),
            history_max=retriever.model.history_max,
            weights=[reward(watch, reward_share) for watch in watches],
        )


def two_tower_prequential(
    state: TwoTowerState,
    rows: Sequence[ShardRow],
    videos: Mapping[str, Content],
    evaluate_max: int,
) -> dict[str, float]:
    """Return recall@10 and NDCG@10 on a sample of new watches, before anything is learned from them."""
    sample = sampled_watches(rows, videos, evaluate_max, state.rng)
    before = [
        [watch.video_id for watch in (*row.history, *row.watches[:index])] for row, index in sample
    ]
    ranked = state.retriever.rank(before, top_k=10, excluded=before)
    return by_earlier_watches(state, sample, ranked)


@torch.inference_mode()
def anchor_loss(state: TwoTowerState) -> float:
    """Return the loss on the anchor rows, in nats, over the catalogue as it is; 0 when there are none."""
    windows = list(windows_of(state.retriever, state.anchor_rows))
    total, learned = 0.0, 0
    for start in range(0, len(windows), _ANCHORS_AT_ONCE):
        batch = windows[start : start + _ANCHORS_AT_ONCE]
        count = sum(len(window.items) - window.first_learned for window in batch)
        total += count * float(next_item_loss(state.retriever.model, batch))
        learned += count
    return total / max(1, learned)


def first_two_tower_fit(
    state: TwoTowerState,
    rows: Sequence[ShardRow],
    *,
    epochs: int,
    steps_min: int = 0,
    reward_share: float = 0.0,
    progress: Callable[[float], None] = lambda share: None,
) -> list[float]:
    """Fit a new state to rows, its anchor rows not among them, and return the loss of each step.

    There are more epochs where so few have not `steps_min` steps.

    The state is at model_version 1 then, and what the rounds go on from.
    """
    windows = list(windows_of(state.retriever, rows, reward_share))
    training = state.training
    items = sum(len(window.items) for window in windows)
    steps_of_epoch = max(1, math.ceil(items / training.positions_per_step))
    epochs = max(epochs, math.ceil(steps_min / steps_of_epoch))
    losses: list[float] = []
    for epoch in range(epochs):
        progress(epoch / epochs)

        def rate(share: float, done: int = epoch) -> float:
            return training.learning_rate((done + share) / epochs)

        losses += train_pass(
            state.retriever.model,
            state.optimizer,
            windows,
            training,
            rng=state.rng,
            learning_rate=rate,
        )
    state.count(rows)
    state.model_version, state.steps = 1, len(losses)
    state.anchor_loss = anchor_loss(state)
    return losses
