"""The cold start of everything: a codebook, semantic IDs for the catalogue so far, histories, a first LRM, two-towers.

Runs once, before the workers, on the earlier part of a timeline. What it writes to topics and to the object store is
what the workers would have written, had they seen that part live; it is written in bulk, so that a year of watches
costs a minute. Started again, it fits the next codebook_version and begins anew.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from infra.clock import now_ms
from infra.errors import ConfigError
from infra.settings import Settings
from infra.storage import ObjectStore
from models.base_models import NANO_MODEL, find_base_model
from models.codebook import CodebookManifest
from models.quantizer import QuantizerConfig
from models.trie import warm
from streams.client import TopicReader, flush, producer, send
from streams.events import (
    LRM_MODEL_NAME,
    UserFeatures,
    WatchEvent,
)
from streams.history import Entry, history_entry, percent_watched, user_history
from streams.shards import NewWatch, PastWatch, ShardRow
from streams.timeline import Timeline
from streams.topics import CHECKPOINTS, HISTORIES, SEMANTIC_IDS
from workers.bootstrap_assigning import assign
from workers.bootstrap_codebook import fit_codebook
from workers.bootstrap_data import Later, catalogue_of
from workers.bootstrap_lrm import (
    BootstrapConfig,
    Progress,
    code_vectors_of,
    hold_out,
    initial_fit,
    pretrained_lrm,
)
from workers.promotions import promotions
from workers.training_actor import Video
from workers.training_state import CHECKPOINTS_KEY, RoundState, read_record, save_state
from workers.two_tower_round import first_two_tower_fit
from workers.two_tower_state import TWO_TOWERS, Content, new_two_tower, save_two_tower

WATCHES_PER_ROW = 25
TWO_TOWER_EPOCHS, TWO_TOWER_STEPS_MIN = 4, 300
"""A small past is gone through more often: with fewer steps a two-tower knows hardly more than what is popular."""


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
        settings: name the cluster, the object store, the base model and the seed.
        timeline: the past; the only thing that is learned from.
        config: of the LRM's fit.
        quantizer: of the codebook's fit.
        later: what the codebook is judged by; without it, by the past alone.
        progress: told the stage and the share done of it.

    Delivery: the LRM is announced last. Killed before that, nothing serves what is half done; run it again.
    Blocks: for minutes; `progress` is told (stage, share done).

    Raises:
        ConfigError: the timeline holds too little to fit a codebook or a model, or the base model cannot be used.
    """
    warm()  # the trie's compiled search is on disk before training and serving want it, both at once
    config = config or BootstrapConfig()
    recipe = replace(config.recipe, reward_share=settings.training.reward_share)
    config = replace(config, recipe=recipe)
    if settings.training.base_model != NANO_MODEL:
        find_base_model(settings.training.base_model)  # before anything that takes minutes
        config = config.for_pretrained()
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
    space, code_vectors = codebook.manifest.space, code_vectors_of(settings, codebook.manifest)
    state, losses = initial_fit(
        rows,
        videos,
        space,
        config,
        seed=settings.seed,
        code_vectors=code_vectors,
        pretrained=pretrained_lrm(settings, space, code_vectors),
        progress=progress,
    )
    fit_two_towers(
        settings,
        rows,
        {one.video_id: found for one in assigned if (found := Content.of(one))},
        codebook.manifest,
        progress=progress,
    )
    sha256 = promote_first(settings, LRM_MODEL_NAME, state, partial(save_state, state))
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
    known: dict[str, UserFeatures] = {}
    for watch in watches:
        by_user[watch.user_id].append(_new_watch(watch))
        if watch.user is not None:
            known[watch.user_id] = watch.user
    for user_id, everything in by_user.items():
        user = known.get(user_id, UserFeatures())
        for start in range(0, len(everything), WATCHES_PER_ROW):
            before: list[PastWatch] = list(everything[max(0, start - 100) : start])
            yield ShardRow(
                user_id, user.region, user.age, user.gender, user.device, user.language,
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


def fit_two_towers(
    settings: Settings,
    rows: list[ShardRow],
    videos: Mapping[str, Content],
    manifest: CodebookManifest,
    *,
    progress: Progress = lambda stage, share: None,
) -> None:
    """Fit the two-towers of the settings to the rows, but for those that the LRM holds out too, and announce them."""
    anchors, learned = hold_out(rows, random.Random(settings.seed))
    for model_name, item_tower in TWO_TOWERS.items():
        if model_name not in settings.training.models:
            # What an earlier codebook left must not be taken for one that can be refreshed.
            ObjectStore(settings.storage.root).remove(f"{CHECKPOINTS_KEY}/{model_name}")
            continue
        state = new_two_tower(item_tower, manifest, videos, seed=settings.seed)
        state.anchor_rows = anchors
        first_two_tower_fit(
            state,
            learned,
            epochs=TWO_TOWER_EPOCHS,
            steps_min=TWO_TOWER_STEPS_MIN,
            reward_share=settings.training.reward_share,
            progress=partial(progress, model_name),
        )
        save = partial(save_two_tower, state)
        promote_first(settings, model_name, state, save)


def promote_first(
    settings: Settings,
    model_name: str,
    state: RoundState,
    save: Callable[..., str],
) -> str:
    """Save the first checkpoint of a model where the topics end now, announce it, and return its weights' sha256."""
    store = ObjectStore(settings.storage.root)
    store.remove(
        f"{CHECKPOINTS_KEY}/{model_name}"
    )  # of an earlier codebook; nothing may go on from those
    with TopicReader(settings.kafka, [SEMANTIC_IDS], from_end=True) as reader:
        state.positions.next_semantic_id_offsets = {
            at: to for (_, at), to in reader.next_offsets.items()
        }
    record = {"shard_ids": [], "metrics": {"anchor_loss": state.anchor_loss}, "refused": ""}
    scratch = Path(settings.var_dir) / "scratch"
    sha256 = save(store, model_name, scratch=scratch, record=record)
    client = producer(settings.kafka)
    for event in promotions(model_name, read_record(store, model_name, state.model_version)):
        send(client, settings.kafka, CHECKPOINTS, event.model_name, event)
    flush(client)
    return sha256
