"""MovieLens in time order: a first fit on the earlier part, then rounds that are scored before they are learned.

The arms are given the same histories, the same items to choose from and, for the first fit, the same CPU-seconds.
"""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from infra.settings import Settings
from models.next_item import NextItemTraining
from models.sasrec import Sasrec, SasrecConfig, build_sasrec
from models.tasks import Recipe
from models.two_tower import ItemTower, TwoTower, TwoTowerConfig, build_two_tower
from tests.bench.parts.cpu_training import CpuBudget, train_next_item
from tests.bench.parts.quality_arms import Arm, LrmArm, NextItemArm, PopularityArm
from tests.bench.parts.quality_budget import Budget
from tests.bench.parts.quality_figures import Asked, recall
from tests.bench.parts.quality_stream import Round, Stream, rounds
from workers.bootstrap_lrm import BootstrapConfig, initial_fit
from workers.training_state import TrainingState

REFRESHED, FROZEN, NO_METADATA = "LRM, refreshed", "LRM, frozen", "LRM, refreshed, no metadata"
SASREC, CLUSTER, HASH = "SASRec-CE, refreshed", "two-tower, cluster ids", "two-tower, hashed ids"
POPULARITY = "popularity"
HISTORIES_ONLY = Recipe(video_tasks={}, masked=0, intent=0, related=0)
FIRST_SHARE = 0.6
VALIDATION_SHARE = 5 / 6  # of the first part: what comes after it chooses popularity's window
POPULARITY_WINDOWS = (1_000, 5_000, 20_000, 1_000_000)
VALIDATION_TARGETS = 100
FIT_MAX_S = 86_400.0  # the LRM's epochs say how long its fit is; a busy machine must not

# Chosen on the watches between 50 % and 60 % of all, by models fitted on those before; see LOG.md.
SASREC_CONFIG = SasrecConfig(history_max=50, dropout=0.2)
TRAINING = NextItemTraining(peak_learning_rate=2e-3, round_learning_rate=1e-3)
PASSES = 2

Say = Callable[[str], None]


@dataclass
class FilmsResult:
    """What came of the stream.

    Attributes:
        asked: every target with each arm's places.
        fit_cpu_s: of the LRM's first fit, and so of everyone's.
        refresh_cpu_s: of all refreshes, by arm.
        refused: rounds that the LRM's gates refused, by arm.
        popularity_window: watches, as validation chose.
        notes: sizes that a reader of the figures has to know.
    """

    asked: list[Asked] = field(default_factory=list)
    fit_cpu_s: float = 0.0
    refresh_cpu_s: dict[str, float] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)
    popularity_window: int = 0
    notes: dict[str, int] = field(default_factory=dict)


def run_films(stream: Stream, budget: Budget, settings: Settings, say: Say) -> FilmsResult:
    """Fit every arm on the first part, stream the rest past them, and return each one's places."""
    result = FilmsResult()
    arms = _lrm_arms(stream, budget, settings, result, say)
    arms += _next_item_arms(stream, settings, result.fit_cpu_s, say)
    result.popularity_window = _popularity_window(stream, budget, settings.seed)
    arms.append(
        PopularityArm(POPULARITY, stream, newest=result.popularity_window, start=stream.num_first)
    )
    end = len(stream.order)
    for this in rounds(
        stream, start=stream.num_first, end=end, size=budget.round_watches,
        per_stratum=budget.targets_per_stratum, seed=settings.seed,
    ):  # fmt: skip
        result.asked += asked(this, arms)
        say(f"films: {this.targets[-1].event:,} of {end:,} watches")
    for arm in arms:
        if isinstance(arm, LrmArm | NextItemArm):
            result.refresh_cpu_s[arm.name] = arm.cpu_s
        if isinstance(arm, LrmArm):
            result.refused[arm.name] = arm.refused
    result.notes = {
        "first_watches": stream.num_first,
        "later_watches": end - stream.num_first,
        "first_items": stream.catalogue.num_fitted,
        "items": len(stream.catalogue),
        "round_watches": budget.round_watches,
    }
    return result


def asked(this: Round, arms: Sequence[Arm]) -> list[Asked]:
    """Return the round's targets with each arm's place of them, and have the arms learn the round."""
    found = answered(this, arms)
    for arm in arms:
        arm.learn(this)
    return found


def answered(this: Round, arms: Sequence[Arm]) -> list[Asked]:
    """Return the round's targets with each arm's place of them."""
    ranked = {arm.name: arm.rank(this.targets, this) for arm in arms}
    return [
        Asked(
            target,
            {
                name: found[row].index(target.number) if target.number in found[row] else None
                for name, found in ranked.items()
            },
        )
        for row, target in enumerate(this.targets)
    ]


def _lrm_arms(
    stream: Stream, budget: Budget, settings: Settings, result: FilmsResult, say: Say
) -> list[Arm]:
    say("films: first fit of the LRM")
    started = time.process_time()
    state = first_fit(stream, BootstrapConfig(epochs=budget.epochs, fit_max_s=FIT_MAX_S), settings)
    result.fit_cpu_s = time.process_time() - started
    say(f"films: the same without metadata; the first took {result.fit_cpu_s:.0f} CPU-seconds")
    config = BootstrapConfig(epochs=budget.epochs, recipe=HISTORIES_ONLY, fit_max_s=FIT_MAX_S)
    without = first_fit(stream, config, settings)
    frozen = replace(state, lrm=copy.deepcopy(state.lrm))
    share = settings.training.replay_share
    return [
        LrmArm(REFRESHED, state, stream, replay_share=share),
        LrmArm(FROZEN, frozen, stream, is_frozen=True),
        LrmArm(NO_METADATA, without, stream, recipe=HISTORIES_ONLY, replay_share=share),
    ]


def first_fit(stream: Stream, config: BootstrapConfig, settings: Settings) -> TrainingState:
    """Return the LRM fitted to the stream's first part as the bootstrap does it."""
    catalogue = stream.catalogue
    known = catalogue.video_ids[: catalogue.num_fitted]
    videos = {video_id: catalogue.videos[video_id] for video_id in known}
    return initial_fit(
        stream.first_rows,
        videos,
        catalogue.space,
        config,
        seed=settings.seed,
        code_vectors=catalogue.code_vectors,
    )[0]


def _next_item_arms(stream: Stream, settings: Settings, cpu_s: float, say: Say) -> list[Arm]:
    catalogue, seed = stream.catalogue, settings.seed
    contents = catalogue.contents[: catalogue.num_fitted]

    def two_tower(tower: ItemTower) -> TwoTowerConfig:
        return TwoTowerConfig(item_tower=tower, num_clusters=catalogue.num_clusters)

    models: dict[str, Sasrec | TwoTower] = {
        SASREC: build_sasrec(catalogue.num_fitted, config=SASREC_CONFIG, seed=seed),
        CLUSTER: build_two_tower(contents, config=two_tower("cluster"), seed=seed),
        HASH: build_two_tower(contents, config=two_tower("hash"), seed=seed),
    }
    arms: list[Arm] = []
    for name, model in models.items():
        say(f"films: first fit of {name}")
        arm = NextItemArm(name, model, stream, training=TRAINING, passes=PASSES, seed=seed)
        train_next_item(
            model, arm.optimizer, arm.windows, TRAINING, CpuBudget(cpu_s), rng=random.Random(seed)
        )
        arms.append(arm)
    return arms


def _popularity_window(stream: Stream, budget: Budget, seed: int) -> int:
    """Return how many newest watches tell best what is watched next, at the end of the first part."""
    start = round(VALIDATION_SHARE * stream.num_first)
    arms = [
        PopularityArm(str(newest), stream, newest=newest, start=start)
        for newest in POPULARITY_WINDOWS
    ]
    found: list[Asked] = []
    for this in rounds(
        stream, start=start, end=stream.num_first, size=budget.round_watches,
        per_stratum=VALIDATION_TARGETS, seed=seed,
    ):  # fmt: skip
        found += asked(this, arms)
    return int(max(arms, key=lambda arm: recall(found, arm.name).mean).name)
