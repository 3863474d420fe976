"""One round of continued pre-training: score what is new, learn it with replay, pass the gates; plain functions.

Rounds, not epochs: every shard is scored once before it is trained on (prequential evaluation), and trained on once.
Knows nothing of Kafka, Ray and files.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from infra.clock import Laps
from models.evaluation import ndcg_at_k, recall_at_k
from models.examples import (
    Behaviour,
    Block,
    Example,
    behaviour_examples,
    pack,
    text_examples,
    watch_text_examples,
)
from models.lrm import Lrm
from models.prompts import Ask, VideoLike
from models.recommend import Request, recommend
from models.tasks import Recipe, video_texts
from models.training import evaluate_loss, train_on
from models.trie import LiveTrie
from models.trie_filters import Filters
from streams.shards import NewWatch, PastWatch, ShardRow
from workers.gates import check_anchor_loss, check_finite
from workers.training_state import RoundState, TrainingState

ANY = "any"
EARLIER_WATCHES = {ANY: (0, math.inf), "0": (0, 0), "1-4": (1, 4), "5+": (5, math.inf)}
"""How many watches of a target were learned before."""
REQUESTS_AT_ONCE = 8


@dataclass(frozen=True)
class RoundInput:
    """What is new since the last checkpoint.

    Attributes:
        rows: of all new shards.
        new_videos: assigned since the last checkpoint; their text is learned before anyone has watched them.
        videos: all live videos; watches of others are left out and counted, and forgotten where they were learned.
        erased_users: are forgotten, but for the rows.
    """

    rows: Sequence[ShardRow]
    new_videos: Sequence[VideoLike]
    videos: Mapping[str, VideoLike]
    erased_users: frozenset[str] = frozenset()


@dataclass(frozen=True)
class RoundLimits:
    """How much one round may do, and of what."""

    replay_share: float
    evaluate_max: int
    recipe: Recipe = field(default_factory=Recipe)


@dataclass
class RoundResult:
    """What a round measured; the laps are "score", "examples", "train" and "gates"."""

    metrics: dict[str, float] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)
    laps: Laps = field(default_factory=Laps)


def behaviours(rows: Iterable[ShardRow]) -> list[Behaviour]:
    """Return shard rows as the LRM's examples are made from them."""
    return [Behaviour(row, row.history, row.watches) for row in rows]


Train = Callable[[TrainingState, Sequence[Block]], list[float]]
"""Makes one pass over the blocks, changing the state's weights and optimizer, and returns the loss of each step."""


def train_alone(state: TrainingState, blocks: Sequence[Block]) -> list[float]:
    """Train in this process."""
    return train_on(state.lrm, state.optimizer, blocks, state.config, seed=state.steps)


def run_round(
    state: TrainingState, new: RoundInput, limits: RoundLimits, *, train: Train = train_alone
) -> RoundResult:
    """Move the state one round forward and return what was measured.

    `train` makes the steps, here or elsewhere.

    Raises:
        GateError: the result must not be promoted; the caller goes on from the last checkpoint.
    """
    result = RoundResult()
    state.forget(new.videos, new.erased_users)
    result.metrics |= prequential(state, new, limits.evaluate_max)
    result.laps.end("score")
    unknown = sum(watch.video_id not in new.videos for row in new.rows for watch in row.watches)
    result.metrics["unknown_video_watches"] = float(unknown)
    blocks = pack(
        _examples(state, new, limits),
        block_tokens=state.config.block_tokens,
        rng=state.rng,
    )
    result.laps.end("examples")
    result.losses = train(state, blocks)
    result.laps.end("train")
    state.steps += len(result.losses)
    state.model_version += 1
    state.count(new.rows)
    result.metrics |= {
        "loss": sum(result.losses) / max(1, len(result.losses)),
        "steps": float(len(result.losses)),
        "tokens": float(sum(len(block.token_ids_T) for block in blocks)),
    }
    state.anchor_loss = pass_gates(state, result.losses, new.videos)
    result.metrics["anchor_loss"] = state.anchor_loss
    result.laps.end("gates")
    return result


def _examples(state: TrainingState, new: RoundInput, limits: RoundLimits) -> list[Example]:
    """Return the examples of new rows and new videos, and of replayed rows as a share of all rows' histories."""
    lrm, rng, recipe, share = state.lrm, state.rng, limits.recipe, limits.replay_share
    by_reward = partial(behaviour_examples, lrm, reward_share=recipe.reward_share)
    fresh = behaviours(new.rows)
    histories = by_reward(fresh, new.videos)
    num_replayed = round(len(histories) * share / (1 - share))
    replayed = rng.sample(state.reservoir.rows, min(num_replayed, len(state.reservoir.rows)))
    old = by_reward(behaviours(replayed), new.videos)
    rng.shuffle(old)
    return [
        *histories,
        *old[:num_replayed],
        *watch_text_examples(lrm, fresh, new.videos, recipe, rng),
        *text_examples(lrm, video_texts(new.new_videos, recipe, rng)),
    ]


def pass_gates(
    state: TrainingState, losses: Sequence[float], videos: Mapping[str, VideoLike]
) -> float:
    """Check a freshly trained state and return its loss on the anchor rows.

    Raises:
        GateError: a loss or weight is not finite, or old watches are predicted worse than the limit allows.
    """
    check_finite(losses, state.lrm.model.parameters())
    anchor_loss = loss_on(state, state.anchor_rows, videos)
    check_anchor_loss(anchor_loss, state.anchor_loss)
    return anchor_loss


def loss_on(
    state: TrainingState, rows: Sequence[ShardRow], videos: Mapping[str, VideoLike]
) -> float:
    """Return the loss on rows without learning from them; 0 when there are none."""
    examples = behaviour_examples(state.lrm, behaviours(rows), videos)
    blocks = pack(examples, block_tokens=state.config.block_tokens, rng=random.Random(0))
    return evaluate_loss(state.lrm, blocks, blocks_per_step=state.config.blocks_per_step)


def prequential(state: TrainingState, new: RoundInput, evaluate_max: int) -> dict[str, float]:
    """Return recall@10 and NDCG@10 on a sample of new watches, before anything is learned from them.

    Also by how many watches of the target have been learned: `metric_name` names them, and one of `EARLIER_WATCHES`
    that nothing in the sample fell into is left out.
    """
    sample = sampled_watches(new.rows, new.videos, evaluate_max, state.rng)
    ranked = _ranked(state.lrm, [_request(row, index) for row, index in sample], new.videos)
    return by_earlier_watches(state, sample, ranked)


def sampled_watches(
    rows: Sequence[ShardRow], videos: Container[str], evaluate_max: int, rng: random.Random
) -> list[tuple[ShardRow, int]]:
    """Return some watches of these videos, each as its row and its place in it."""
    asked = [
        (row, index)
        for row in rows
        for index, watch in enumerate(row.watches)
        if watch.video_id in videos
    ]
    return rng.sample(asked, min(evaluate_max, len(asked)))


def by_earlier_watches(
    state: RoundState, sample: Sequence[tuple[ShardRow, int]], ranked: Sequence[Sequence[str]]
) -> dict[str, float]:
    """Return how well sampled watches were ranked, of all and by how many watches of the video were learned before."""
    targets = [row.watches[index].video_id for row, index in sample]
    measured: dict[str, float] = {}
    for earlier, (least, most) in EARLIER_WATCHES.items():
        places = [
            place
            for place, target in enumerate(targets)
            if least <= state.watch_counts[target] <= most
        ]
        if places:
            found, wanted = [ranked[at] for at in places], [targets[at] for at in places]
            measured |= {
                metric_name("recall_at_10", earlier): recall_at_k(found, wanted),
                metric_name("ndcg_at_10", earlier): ndcg_at_k(found, wanted),
                metric_name("requests", earlier): float(len(places)),
            }
    return measured


def metric_name(what: str, earlier_watches: str) -> str:
    """Return a figure's name in a round's metrics: `prequential_recall_at_10_watched_1-4`, or without the suffix."""
    suffix = "" if earlier_watches == ANY else f"_watched_{earlier_watches}"
    return f"prequential_{what}{suffix}"


def _ranked(
    lrm: Lrm, requests: Sequence[Request], videos: Mapping[str, VideoLike]
) -> list[list[str]]:
    """Return the first ten videos for each request."""
    trie = LiveTrie(lrm.space)
    ids = list(videos)
    trie.insert_many([videos[one].semantic_id for one in ids], ids, [0] * len(ids))
    ranked: list[list[str]] = []
    for start in range(0, len(requests), REQUESTS_AT_ONCE):
        some = requests[start : start + REQUESTS_AT_ONCE]
        found = recommend(lrm, some, trie.view, videos, top_k=10, beam_width=10)
        ranked += [[candidate.video_id for candidate in one] for one in found]
    return ranked


def _request(row: ShardRow, index: int) -> Request:
    target = row.watches[index]
    before: list[PastWatch | NewWatch] = [*row.history, *row.watches[:index]]
    return Request(
        viewer=row,
        watches=before,
        ask=Ask(target.surface, target.context_video_id, target.query),
        filters=Filters(excluded_video_ids={watch.video_id for watch in before}),
    )
