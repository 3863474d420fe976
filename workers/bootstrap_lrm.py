"""The first fit of an LRM, from scratch or from a pretrained base; knows nothing of Kafka.

The state it returns is what the rounds go on from.
"""

from __future__ import annotations

import math
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from infra.settings import Settings
from infra.storage import ObjectStore
from models.base_models import NANO_MODEL, extended_lrm
from models.code_embeddings import read_code_vectors
from models.codebook import WEIGHTS_FILE, CodebookManifest, codebook_key
from models.examples import (
    Behaviour,
    Block,
    describe_texts,
    pack,
    text_examples,
    watch_text_examples,
    window_examples,
)
from models.lrm import NANO, Lrm, LrmConfig, build_lrm
from models.prompts import render_history, render_semantic_id
from models.semantic_id import SemanticIdSpace
from models.tasks import Recipe, video_texts
from models.training import (
    TrainingConfig,
    initial_learning_rate,
    pretrained_config,
    train_on,
)
from streams.shards import NewWatch, ShardRow
from workers.training_actor import Video
from workers.training_round import behaviours, loss_on
from workers.training_state import TrainingState, new_state

Progress = Callable[[str, float], None]
ANCHOR_ROWS = 64
PRETRAINED_FIT_MAX_S = 1200.0


@dataclass(frozen=True, kw_only=True)
class BootstrapConfig:
    """How much is spent on the first LRM."""

    lrm: LrmConfig = NANO
    training: TrainingConfig = field(
        default_factory=lambda: TrainingConfig(bfloat16=torch.cuda.is_available())
    )
    epochs: int = 12
    metadata_share: float = 0.1
    """Share of all texts about videos in each epoch."""
    watch_texts_share: float = 0.4
    """Share of all rows whose texts beside their histories are written in each epoch."""
    left_out_share: float = 0.0
    """Share of the watches of a history that an epoch leaves out, on average, other ones in each."""
    averaged_share: float = 0.0
    """Share of the fit, at its end, of which the result is the mean of the weights that each epoch ended with."""
    recipe: Recipe = field(default_factory=Recipe)
    fit_max_s: float = 100.0
    """Where a machine is too slow for all epochs in this time, there are fewer steps, and a faster schedule."""

    def for_pretrained(self) -> BootstrapConfig:
        """Return the same for a pretrained base: other rates, and more time, for a step takes seconds on a CPU."""
        return replace(
            self,
            training=pretrained_config(),
            fit_max_s=PRETRAINED_FIT_MAX_S,
        )


def code_vectors_of(settings: Settings, manifest: CodebookManifest) -> list[Tensor]:
    """Return the published codebook's code vectors, [K, C] for each level but the last."""
    weights = ObjectStore(settings.storage.root).get_bytes(
        f"{codebook_key(manifest.codebook_version)}/{WEIGHTS_FILE}"
    )
    return read_code_vectors(weights, manifest.space)


def pretrained_lrm(
    settings: Settings, space: SemanticIdSpace, code_vectors: Sequence[Tensor]
) -> Lrm | None:
    """Return the settings' base model with a token per code; None for nano, which is built from the texts.

    Raises:
        ConfigError: the base model cannot be used.
    """
    base_model = settings.training.base_model
    if base_model == NANO_MODEL:
        return None
    return extended_lrm(base_model, space, code_vectors, seed=settings.seed)


def initial_fit(
    rows: list[ShardRow],
    videos: dict[str, Video],
    space: SemanticIdSpace,
    config: BootstrapConfig,
    *,
    seed: int,
    code_vectors: Sequence[Tensor] = (),
    pretrained: Lrm | None = None,
    progress: Progress = lambda stage, share: None,
) -> tuple[TrainingState, list[float]]:
    """Return a trained state at model_version 1, and the loss of each step.

    Without a pretrained LRM, one is built from scratch, its codes where the codebook's `code_vectors` are. Some
    rows are anchors, drawn at random: held out here and ever after, so that the gates can see forgetting.
    """
    progress("vocabulary", 0.0)
    rng = random.Random(seed)
    anchors, learned = hold_out(rows, rng)
    lrm = pretrained or build_lrm(
        texts_of(learned, videos), space, config=config.lrm, code_vectors=code_vectors, seed=seed
    )
    state = new_state(lrm, config.training, seed=seed)
    state.anchor_rows = anchors
    losses = _fit(state, _epochs(lrm, learned, videos, config, rng), config, progress)
    state.count(learned)
    state.model_version, state.steps = 1, len(losses)
    state.anchor_loss = loss_on(state, anchors, videos)
    return state, losses


def hold_out(rows: list[ShardRow], rng: random.Random) -> tuple[list[ShardRow], list[ShardRow]]:
    """Return some rows as anchors, and the others; the same state of `rng` gives the same."""
    anchors = rng.sample(rows, min(ANCHOR_ROWS, len(rows) // 10))
    held_out = {id(row) for row in anchors}
    return anchors, [row for row in rows if id(row) not in held_out]


def _epochs(
    lrm: Lrm,
    rows: Sequence[ShardRow],
    videos: dict[str, Video],
    config: BootstrapConfig,
    rng: random.Random,
) -> Iterator[list[Block]]:
    """Yield each epoch's blocks, made when they are asked for: time may allow fewer than the config does."""
    histories = whole_histories(rows)
    metadata = text_examples(lrm, video_texts(videos.values(), config.recipe, rng))
    for _ in range(config.epochs):
        examples = rng.sample(metadata, round(config.metadata_share * len(metadata)))
        some = rng.sample(rows, round(config.watch_texts_share * len(rows)))
        examples += watch_text_examples(lrm, behaviours(some), videos, config.recipe, rng)
        examples += window_examples(
            lrm,
            thinned(histories, config.left_out_share, rng),
            videos,
            rng,
            reward_share=config.recipe.reward_share,
        )
        yield pack(examples, block_tokens=config.training.block_tokens, rng=rng)


def whole_histories(rows: Iterable[ShardRow]) -> list[Behaviour]:
    """Return each user's new watches in all rows as one history; the rows are in time order."""
    watches: dict[str, list[NewWatch]] = defaultdict(list)
    viewers: dict[str, ShardRow] = {}
    for row in rows:
        watches[row.user_id] += row.watches
        viewers[row.user_id] = row
    return [Behaviour(viewers[user], [], found) for user, found in watches.items()]


def thinned(histories: Sequence[Behaviour], share: float, rng: random.Random) -> list[Behaviour]:
    """Return histories without a share of their watches, of each between none and twice the share.

    A model that reads the same few histories in every epoch learns by heart what follows what; of ever other parts of
    them it learns what goes together. One of the augmentations of CL4SRec (Xie et al., 2010.14395, sec. 3.3), which
    masks items.
    """
    if not share:
        return list(histories)
    found = []
    for one in histories:
        left_out = rng.uniform(0, 2 * share)
        found.append(
            replace(one, watches=[each for each in one.watches if rng.random() >= left_out])
        )
    return found


def _fit(
    state: TrainingState,
    epochs: Iterator[list[Block]],
    config: BootstrapConfig,
    progress: Progress,
) -> list[float]:
    """Train on all epochs, or on as much as `fit_max_s` allows.

    The learning rate falls with whichever ends first, the steps or the time, so it ends where the rounds go on also
    on a machine that was busy for a while, and loses no more than that while.

    A mean of the weights at the ends of the last epochs predicts better than the last ones, which are where the last
    batches took them (Izmailov et al., 1803.05407).
    """
    started = time.monotonic()
    averaged: AveragedModel | None = None
    losses: list[float] = []
    num_steps = 0

    def steps_spent(done: int) -> int:
        spent = (time.monotonic() - started) / config.fit_max_s
        return max(done, int(spent * num_steps))

    def train(blocks: list[Block]) -> None:
        before = done = len(losses)

        def on_step(step: int, *_: object) -> None:
            nonlocal done
            done = before + step
            progress("lrm", min(1.0, steps_spent(done) / num_steps))

        losses.extend(
            train_on(
                state.lrm,
                state.optimizer,
                blocks,
                config.training,
                learning_rate=lambda *_: initial_learning_rate(
                    config.training, steps_spent(done), num_steps
                ),
                on_step=on_step,
                seed=before,
                is_over=lambda: steps_spent(done) >= num_steps,
            )
        )

    for blocks in epochs:
        steps_of_epoch = math.ceil(len(blocks) / config.training.blocks_per_step)
        num_steps = num_steps or config.epochs * steps_of_epoch
        train(blocks)
        spent = min(steps_spent(len(losses)), num_steps)
        if num_steps - spent < config.averaged_share * num_steps:
            averaged = averaged or AveragedModel(state.lrm.model)
            averaged.update_parameters(state.lrm.model)
        if spent == num_steps:
            break
    if averaged is not None:
        state.lrm.model.load_state_dict(averaged.module.state_dict())
    return losses


def texts_of(rows: Sequence[ShardRow], videos: dict[str, Video]) -> Iterator[str]:
    """Yield what the BPE is trained on: the catalogue's words, and the lines of some histories without their codes."""
    yield from describe_texts(videos.values())
    for row in rows[:2000]:
        for (ask, watched), watch in zip(
            render_history(row.watches, videos), row.watches, strict=False
        ):
            video = videos.get(watch.video_id)
            if video is not None:
                yield (ask + watched).replace(render_semantic_id(video.semantic_id), " ")
