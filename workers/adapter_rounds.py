"""A round of the adapters, after that of their base: what each learns, its gates, its place in the checkpoint.

Each adapter goes on from its weights of the round before on top of the base that has just been trained, which it cannot
change. A surface's adapter learns the next videos of that surface's watches; the ranking adapter learns what share of a
video was watched and whether it was liked. Randomness follows from the adapter's name and the round's number, so the
base comes out the same with adapters and without, and a repeated round learns the same.

| in a round | its weights | announced |
| --- | --- | --- |
| there is something to learn | trained on | yes |
| there is nothing to learn | kept, for the new base | yes, once it has learned anything |
| they do not fit this release's adapters | dropped: it begins anew | no |
| a loss or weight is not finite | as before, or dropped if they were the reason; AdamW's state is dropped | no |
| it is worse than its base on held-out watches of its surface | dropped: it begins anew | no |
| the base is refused | kept | no |

Knows nothing of Kafka, Ray and files.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypedDict

from infra.errors import GateError, VersionMismatchError
from models.examples import Block, Example, behaviour_examples, pack
from models.lrm import Lrm
from models.prompts import VideoLike
from models.ranking import Judgement, Rating, ranking_examples
from models.surface_adapters import Adapter, adapted, adapter_weights
from models.training import (
    TrainingConfig,
    evaluate_loss,
    make_optimizer,
    optimizer_tensors,
    restore_optimizer,
    train_on,
)
from streams.shards import ShardRow
from workers.gates import check_anchor_loss, check_finite
from workers.impression_intake import Shown
from workers.training_round import RoundInput, RoundLimits, behaviours
from workers.training_state import TrainingState

RANKING = "ranking"
LEARNING_RATE = 1e-3  # of LoRA, which starts at nothing and moves few weights
NEGATIVES_PER_POSITIVE = 4
JUDGEMENTS_MAX = 2000  # of a round: each is a text of its own, with a history


class AdapterRecord(TypedDict):
    """What a checkpoint's record says of an adapter: what was measured, and the gate's reason, or nothing."""

    metrics: dict[str, float]
    refused: str


@dataclass(frozen=True)
class AdapterResult:
    """What a round made of one adapter; `refused` names the gate's reason, or is empty.

    Attributes:
        adapter: what the next round goes on from; None where it begins anew.
    """

    adapter: Adapter | None
    metrics: dict[str, float]
    refused: str = ""


def run_adapters(
    state: TrainingState,
    new: RoundInput,
    limits: RoundLimits,
    *,
    names: Sequence[str],
    shown: Sequence[Shown],
) -> dict[str, AdapterRecord]:
    """Move the adapters of these names on, after `run_round`; return for each what its checkpoint's record says.

    Adapters of other names are dropped. One that never had anything to learn is not among the results.
    """
    fresh_ids = {id(row) for row in new.rows}
    old = [row for row in state.reservoir.rows if id(row) not in fresh_ids]
    kept: dict[str, Adapter] = {}
    records: dict[str, AdapterRecord] = {}
    for name in names:
        rng = random.Random(f"{name}/{state.model_version}")
        if name == RANKING:
            material = _ranking_material(state, new, shown, limits, rng)
        else:
            material = _surface_material(state, new, name, old, limits, rng)
        result = _run(state, state.adapters.get(name), name, material)
        if result is None:
            continue
        records[name] = {"metrics": result.metrics, "refused": result.refused}
        if result.adapter is not None:
            kept[name] = result.adapter
    state.adapters = kept
    return records


@dataclass(frozen=True)
class _Material:
    """Blocks to learn from, a sample of what is new among them, and what is held out."""

    learned: list[Block]
    fresh: list[Block]
    held_out: list[Block]


def _surface_material(
    state: TrainingState,
    new: RoundInput,
    surface: str,
    old: Sequence[ShardRow],
    limits: RoundLimits,
    rng: random.Random,
) -> _Material:
    def examples(rows: Sequence[ShardRow]) -> list[Example]:
        some = [row for row in rows if any(watch.surface == surface for watch in row.watches)]
        return behaviour_examples(
            state.lrm,
            behaviours(some),
            new.videos,
            surface=surface,
            reward_share=limits.recipe.reward_share,
        )

    fresh = examples(new.rows)
    num_replayed = round(len(fresh) * limits.replay_share / (1 - limits.replay_share))
    on_surface = [row for row in old if any(watch.surface == surface for watch in row.watches)]
    replayed = examples(rng.sample(on_surface, min(num_replayed, len(on_surface))))
    rng.shuffle(replayed)
    learned = [*fresh, *replayed[:num_replayed]]
    return _material(state, learned, fresh, examples(state.anchor_rows), limits, rng)


def _ranking_material(
    state: TrainingState,
    new: RoundInput,
    shown: Sequence[Shown],
    limits: RoundLimits,
    rng: random.Random,
) -> _Material:
    """Without replay: the reservoir does not say what was shown and not watched, so all of it would be positive."""
    judged = judgements(new.rows, shown, new.videos, rng)
    fresh = ranking_examples(state.lrm, judged, new.videos)
    anchors = judgements(state.anchor_rows, (), new.videos, rng)
    held_out = ranking_examples(state.lrm, anchors, new.videos)
    return _material(state, fresh, fresh, held_out, limits, rng)


def _material(
    state: TrainingState,
    learned: list[Example],
    fresh: list[Example],
    held_out: list[Example],
    limits: RoundLimits,
    rng: random.Random,
) -> _Material:
    size, sample = state.config.block_tokens, min(limits.evaluate_max, len(fresh))
    parts = (learned, rng.sample(fresh, sample), held_out)
    return _Material(*(pack(some, block_tokens=size, rng=rng) for some in parts))


def judgements(
    rows: Sequence[ShardRow],
    shown: Sequence[Shown],
    videos: Mapping[str, VideoLike],
    rng: random.Random,
) -> list[Judgement]:
    """Return what the ranking adapter learns: new watches, and what was shown to the same user and not watched.

    An impression counts in the round that has the user's first watch after it; its videos that are in neither the
    user's history nor the new watches are negatives. Users without a new watch are left out, since perhaps nobody
    looked. At most `NEGATIVES_PER_POSITIVE` of a user for each of their new watches, and `JUDGEMENTS_MAX` of all.
    A video that is watched in a later round than it was left alone in has then been learned as both.
    """
    by_user: dict[str, list[Shown]] = {}
    for one in shown:
        by_user.setdefault(one.user_id, []).append(one)
    found: list[Judgement] = []
    for row in rows:
        positives = [
            Judgement(
                row,
                [*row.history, *row.watches[:place]],
                watch.surface,
                watch.video_id,
                Rating(watch.percent / 100, float(watch.liked)),
            )
            for place, watch in enumerate(row.watches)
            if watch.video_id in videos
        ]
        negatives = _left_alone(row, by_user.get(row.user_id, ()), videos)
        most = min(len(negatives), NEGATIVES_PER_POSITIVE * len(positives))
        found += [*positives, *rng.sample(negatives, most)]
    return rng.sample(found, min(len(found), JUDGEMENTS_MAX))


def _left_alone(
    row: ShardRow, shown: Sequence[Shown], videos: Mapping[str, VideoLike]
) -> list[Judgement]:
    watches = [*row.history, *row.watches]
    seen = {watch.video_id for watch in watches}
    judged_before_ms = max((watch.event_time_ms for watch in row.history), default=-1)
    newest_ms = max((watch.event_time_ms for watch in row.watches), default=-1)
    negatives: dict[str, Judgement] = {}  # shown twice, a video was left alone once
    for one in shown:
        if not judged_before_ms < one.event_time_ms <= newest_ms:
            continue
        before = [watch for watch in watches if watch.event_time_ms < one.event_time_ms]
        for video_id in one.video_ids:
            if video_id in videos and video_id not in seen:
                rating = Rating(0.0, 0.0)
                negatives[video_id] = Judgement(row, before, one.surface, video_id, rating)
    return list(negatives.values())


def _run(
    state: TrainingState, before: Adapter | None, name: str, material: _Material
) -> AdapterResult | None:
    """Train and judge one adapter; None for one that is not there and has nothing to learn."""
    if before is None and not material.learned:
        return None
    try:
        base, lrm = state.lrm, adapted(state.lrm, before, name=name)
    except VersionMismatchError as error:  # another release's: its base must not wait for that
        return AdapterResult(None, {}, str(error))
    config = adapter_config(state.config)
    metrics = {
        "base_loss": _loss(
            base, material.fresh, config
        ),  # the base has learned these, the adapter not yet
        "loss_before": _loss(lrm, material.fresh, config),
    }
    optimizer = make_optimizer(lrm, config)
    restore_optimizer(lrm.model, optimizer, before.optimizer if before else {})
    losses = train_on(lrm, optimizer, material.learned, config)
    metrics |= {"loss": sum(losses) / max(1, len(losses)), "steps": float(len(losses))}
    optimizer_state = {
        key: one.cpu() for key, one in optimizer_tensors(lrm.model, optimizer).items()
    }
    after = Adapter(adapter_weights(lrm), optimizer_state)
    try:
        check_finite(losses, after.weights.values())
    except GateError as error:
        # AdamW's state may be what is broken, and so may the weights from before.
        good = math.isfinite(metrics["loss_before"])
        kept = Adapter(before.weights) if before is not None and good else None
        return AdapterResult(kept, {"steps": float(len(losses))}, str(error))
    metrics["anchor_loss"] = _loss(lrm, material.held_out, config)
    metrics["base_anchor_loss"] = _loss(base, material.held_out, config)
    try:
        check_anchor_loss(metrics["anchor_loss"], metrics["base_anchor_loss"])
    except GateError as error:
        return AdapterResult(None, metrics, str(error))
    return AdapterResult(after, metrics)


def adapter_config(config: TrainingConfig) -> TrainingConfig:
    """Return how an adapter is trained on a base that is trained like this."""
    return replace(
        config,
        peak_learning_rate=max(LEARNING_RATE, config.peak_learning_rate),
        round_learning_rate=LEARNING_RATE,
        adapter_rank=0,
        dropout=0.0,
    )


def _loss(lrm: Lrm, blocks: Sequence[Block], config: TrainingConfig) -> float:
    return evaluate_loss(lrm, blocks, blocks_per_step=config.blocks_per_step)
