"""The cold start of everything: a codebook, semantic IDs for the catalogue so far, histories, and a first LRM.

Runs once, before the workers, on the earlier part of a timeline. What it writes to topics and to the object store is
what the workers would have written, had they seen that part live; it is written in bulk, so that a year of watches
costs a minute. Started again, it fits the next codebook_version and begins anew.
"""

from __future__ import annotations

import math
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from infra.clock import now_ms
from infra.errors import ConfigError
from infra.settings import Settings
from infra.storage import ObjectStore
from models.examples import (
    Block,
    behaviour_examples,
    describe_texts,
    pack,
    text_examples,
    watch_text_examples,
)
from models.lrm import NANO, Lrm, LrmConfig, build_lrm
from models.prompts import render_history, render_semantic_id
from models.quantizer import QuantizerConfig
from models.semantic_id import SemanticIdSpace
from models.tasks import Recipe, video_texts
from models.training import TrainingConfig, initial_learning_rate, train_on
from streams.client import TopicReader, flush, producer, send
from streams.events import (
    LRM_MODEL_NAME,
    CheckpointPromoted,
    WatchEvent,
)
from streams.history import Entry, history_entry, percent_watched, user_history
from streams.shards import NewWatch, PastWatch, ShardRow
from streams.timeline import Timeline
from streams.topics import CHECKPOINTS, HISTORIES, SEMANTIC_IDS
from workers.bootstrap_assigning import assign
from workers.bootstrap_codebook import fit_codebook
from workers.bootstrap_data import Later, catalogue_of
from workers.training_actor import Video
from workers.training_round import behaviours, loss_on
from workers.training_state import TrainingState, checkpoint_key, new_state, save_state

Progress = Callable[[str, float], None]
WATCHES_PER_ROW = 25
ANCHOR_ROWS = 64
PROBE_STEPS = 40


@dataclass(frozen=True, kw_only=True)
class BootstrapConfig:
    """How much is spent on the first LRM."""

    lrm: LrmConfig = NANO
    training: TrainingConfig = field(default_factory=TrainingConfig)
    epochs: int = 2
    metadata_share: float = 0.1
    """Share of all texts about videos in each epoch."""
    recipe: Recipe = field(default_factory=Recipe)
    fit_max_s: float = 100.0
    """Where a machine is too slow for all epochs in this time, there are fewer steps, and a faster schedule."""


@dataclass(frozen=True)
class Bootstrapped:
    """What came of it."""

    codebook_version: int
    videos: int
    uniqueness: float
    watches: int
    model_version: int
    sha256: str
    losses: tuple[float, ...]


def bootstrap(
    settings: Settings,
    timeline: Timeline,
    *,
    config: BootstrapConfig | None = None,
    quantizer: QuantizerConfig | None = None,
    later: Later | None = None,
    progress: Progress = lambda stage, share: None,
) -> Bootstrapped:
    """Fit, assign, and train on the timeline; publish all of it.

    Args:
        settings: name the cluster, the object store and the seed.
        timeline: the past; the only thing that is learned from.
        config: of the LRM's fit.
        quantizer: of the codebook's fit.
        later: what the codebook is judged by; without it, by the past alone.
        progress: told the stage and the share done of it.

    Delivery: the checkpoint is announced last. Killed before that, nothing serves what is half done; run it again.
    Blocks: for minutes; `progress` is told (stage, share done).

    Raises:
        ConfigError: the timeline holds too little to fit a codebook or a model.
    """
    config = config or BootstrapConfig()
    torch.set_num_threads(max(settings.training.threads, torch.get_num_threads()))
    uploads = catalogue_of(timeline)
    watches = timeline.watches()
    if len(watches) < WATCHES_PER_ROW:
        raise ConfigError(
            f"the timeline holds {len(watches)} watches; at least {WATCHES_PER_ROW} are needed"
        )
    codebook = fit_codebook(
        uploads, settings, config=quantizer, watches=watches, later=later, progress=progress
    )
    computed = codebook.codes_computed(uploads, append_time_ms=now_ms())
    assigned = assign(settings.kafka, computed, codebook.manifest.disambiguation_size)
    videos = {one.video_id: Video.of(one) for one in assigned}
    _publish_histories(settings, watches)
    rows = list(rows_of(watches, codebook.manifest.codebook_version))
    state, losses = initial_fit(
        rows, videos, codebook.manifest.space, config, seed=settings.seed, progress=progress
    )
    sha256 = _promote(settings, state)
    return Bootstrapped(
        codebook_version=codebook.manifest.codebook_version,
        videos=len(assigned),
        uniqueness=float(codebook.manifest.card["fitted"]["uniqueness"]),
        watches=len(watches),
        model_version=state.model_version,
        sha256=sha256,
        losses=tuple(losses),
    )


def _publish_histories(settings: Settings, watches: Sequence[WatchEvent]) -> None:
    by_user: dict[str, list[Entry]] = defaultdict(list)
    for watch in watches:
        by_user[watch.user_id].append(history_entry(watch))
    client = producer(settings.kafka)
    for user_id, entries in by_user.items():
        newest = entries[-settings.watches.history_length :]
        send(client, settings.kafka, HISTORIES, user_id, user_history(user_id, newest))
    flush(client)


def rows_of(watches: Iterable[WatchEvent], codebook_version: int) -> Iterator[ShardRow]:
    """Yield the watches as shard rows of at most `WATCHES_PER_ROW`, one user's after the other."""
    by_user: dict[str, list[NewWatch]] = defaultdict(list)
    for watch in watches:
        by_user[watch.user_id].append(_new_watch(watch))
    for user_id, everything in by_user.items():
        for start in range(0, len(everything), WATCHES_PER_ROW):
            before: list[PastWatch] = list(everything[max(0, start - 100) : start])
            yield ShardRow(
                user_id, None, None, None, None, None,
                before, everything[start : start + WATCHES_PER_ROW], codebook_version,
            )  # fmt: skip


def _new_watch(watch: WatchEvent) -> NewWatch:
    return NewWatch(
        video_id=watch.video_id,
        semantic_id=None,
        channel=None,
        percent=percent_watched(watch),
        watched_s=watch.watched_s,
        event_time_ms=watch.event_time_ms,
        surface=watch.surface,
        context_video_id=watch.context_video_id,
        event_id=watch.event_id,
        partition=-1,
        offset=-1,
        duration_s=watch.duration_s,
        liked=watch.liked,
        query=watch.query,
        append_time_ms=0,
    )


def initial_fit(
    rows: list[ShardRow],
    videos: dict[str, Video],
    space: SemanticIdSpace,
    config: BootstrapConfig,
    *,
    seed: int,
    progress: Progress = lambda stage, share: None,
) -> tuple[TrainingState, list[float]]:
    """Return a trained state at model_version 1, and the loss of each step.

    Some rows are anchors, drawn at random: held out here and ever after, so that the gates can see forgetting.
    """
    progress("vocabulary", 0.0)
    rng = random.Random(seed)
    anchors = rng.sample(rows, min(ANCHOR_ROWS, len(rows) // 10))
    held_out = {id(row) for row in anchors}
    learned = [row for row in rows if id(row) not in held_out]
    lrm = build_lrm(texts_of(learned, videos), space, config=config.lrm, seed=seed)
    state = new_state(lrm, config.training, seed=seed)
    state.anchor_rows = anchors
    losses = _fit(state, _blocks(lrm, learned, videos, config, rng), config, progress)
    for row in learned:
        state.reservoir.add(row, state.rng)
        newest = max(watch.event_time_ms for watch in row.watches)
        state.newest_event_time_ms = max(state.newest_event_time_ms, newest)
    state.model_version, state.steps = 1, len(losses)
    state.anchor_loss = loss_on(state, anchors, videos)
    return state, losses


def _blocks(
    lrm: Lrm,
    rows: Sequence[ShardRow],
    videos: dict[str, Video],
    config: BootstrapConfig,
    rng: random.Random,
) -> list[Block]:
    behaviour = behaviour_examples(lrm, behaviours(rows), videos)
    metadata = text_examples(lrm, video_texts(videos.values(), config.recipe, rng))
    blocks = []
    for _ in range(config.epochs):
        drawn = rng.sample(metadata, round(config.metadata_share * len(metadata)))
        drawn += watch_text_examples(lrm, behaviours(rows), videos, config.recipe, rng)
        blocks += pack(behaviour + drawn, block_tokens=config.training.block_tokens, rng=rng)
    return blocks


def _fit(
    state: TrainingState, blocks: list[Block], config: BootstrapConfig, progress: Progress
) -> list[float]:
    """Train on the blocks, or on as many as `fit_max_s` allows, judged by the first few steps."""
    training = config.training
    size = training.blocks_per_step
    num_steps = math.ceil(len(blocks) / size)
    head = blocks[: PROBE_STEPS * size]

    def rate(done: int) -> Callable[[int, int], float]:
        return lambda step, _: initial_learning_rate(training, done + step, num_steps)

    started = time.monotonic()
    losses = train_on(state.lrm, state.optimizer, head, training, learning_rate=rate(0))
    affordable = int(config.fit_max_s / (time.monotonic() - started) * PROBE_STEPS)
    num_steps = min(num_steps, max(PROBE_STEPS, affordable))
    tail = blocks[PROBE_STEPS * size : num_steps * size]
    return losses + train_on(
        state.lrm,
        state.optimizer,
        tail,
        training,
        learning_rate=rate(PROBE_STEPS),
        on_step=lambda step, steps, _: progress("lrm", step / steps),
    )


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


def _promote(settings: Settings, state: TrainingState) -> str:
    """Save the first checkpoint where the topics end now, and announce it."""
    store = ObjectStore(settings.storage.root)
    store.remove(
        f"checkpoints/{LRM_MODEL_NAME}"
    )  # of an earlier codebook; nothing may go on from those
    with TopicReader(settings.kafka, [SEMANTIC_IDS], from_end=True) as reader:
        state.positions.next_semantic_id_offsets = {
            at: to for (_, at), to in reader.next_offsets.items()
        }
    record = {"shard_ids": [], "metrics": {"anchor_loss": state.anchor_loss}, "refused": ""}
    sha256 = save_state(
        state, store, LRM_MODEL_NAME, scratch=Path(settings.var_dir) / "scratch", record=record
    )
    client = producer(settings.kafka)
    event = CheckpointPromoted(
        model_name=LRM_MODEL_NAME,
        model_version=state.model_version,
        codebook_version=state.lrm.space.codebook_version,
        path=checkpoint_key(LRM_MODEL_NAME, state.model_version),
        sha256=sha256,
        metrics=record["metrics"],
        newest_event_time_ms=state.newest_event_time_ms,
        promoted_time_ms=now_ms(),
    )
    send(client, settings.kafka, CHECKPOINTS, LRM_MODEL_NAME, event)
    flush(client)
    return sha256
