"""Quality of what is recommended: the LRM beside SASRec, two-towers and popularity, refreshed and frozen.

Films (MovieLens) are streamed in time order, each watch asked for before it is learned; Amazon Beauty is split
leave-one-out, as in the published tables. The tables are kept in `tests/bench/tables/quality.md`.
`FRESHET_DATA__BEAUTY` names Beauty's folder; unset, nothing is measured. `FRESHET_BENCH_BUDGET` is `cpu` (less than
50 minutes on two cores, one for each data set) or `full`; `BENCH_SCALE=0.05` tries it on a twentieth of the data.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from infra.provenance import provenance
from infra.settings import Settings, load_settings
from infra.storage import write_atomically
from streams import beauty, movielens
from streams.timeline import Timeline, split
from tests.bench.measure import Measure
from tests.bench.parts import quality_beauty, quality_films
from tests.bench.parts.quality_beauty import Scores, Split
from tests.bench.parts.quality_budget import Budget, budget_of
from tests.bench.parts.quality_data import coded, encode, watches_by_user
from tests.bench.parts.quality_figures import recall
from tests.bench.parts.quality_films import (
    CLUSTER,
    FROZEN,
    HASH,
    NO_METADATA,
    POPULARITY,
    REFRESHED,
    SASREC,
    FilmsResult,
)
from tests.bench.parts.quality_stream import Target, stream_of
from tests.bench.parts.quality_tables import page

TABLES = Path(__file__).parent / "tables" / "quality.md"


def measure() -> list[Measure]:
    """Measure both data sets side by side, each in a process of one thread; keep the tables, return the measures."""
    settings = load_settings()
    beauty.load_timeline(settings)  # a missing folder is named at once
    budget = budget_of(settings.bench_budget, float(os.environ.get("BENCH_SCALE", "1")))
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=spawn) as pool:
        on_films = pool.submit(films, settings, budget)
        on_beauty = pool.submit(products, settings, budget)
        streamed, scores = on_films.result(), on_beauty.result()
    write_atomically(TABLES, page(streamed, scores, budget, provenance()).encode())
    return measures(streamed, scores)


def films(settings: Settings, budget: Budget) -> FilmsResult:
    """Stream MovieLens past every model."""
    torch.set_num_threads(1)
    timeline = movielens.load_timeline()
    timeline = Timeline(timeline.events[: round(budget.data_share * len(timeline.events))])
    earlier, later = split(timeline, quality_films.FIRST_SHARE)
    say("films: encode, and fit a codebook")
    encoded, digest = encode(earlier, later, settings, _folder(settings, "films"))
    catalogue = coded(encoded, digest, steps=budget.quantizer_steps, seed=settings.seed)
    stream = stream_of(catalogue, timeline, len(earlier.watches()))
    return quality_films.run_films(stream, budget, settings, say)


def products(settings: Settings, budget: Budget) -> list[Scores]:
    """Compare the LRM and SASRec on Amazon Beauty."""
    torch.set_num_threads(1)
    timeline = _first_users(beauty.load_timeline(settings), budget.data_share)
    say("beauty: encode, and fit a codebook")
    encoded, digest = encode(timeline, Timeline(()), settings, _folder(settings, "beauty"))
    catalogue = coded(encoded, digest, steps=budget.quantizer_steps, seed=settings.seed)
    found = Split(catalogue, watches_by_user(timeline.watches()))
    return quality_beauty.compare(found, budget, seed=settings.seed, say=say)


def _first_users(timeline: Timeline, share: float) -> Timeline:
    """Return the watches of the first users and the uploads of what they watched."""
    users = list(dict.fromkeys(watch.user_id for watch in timeline.watches()))
    kept = set(users[: round(share * len(users))])
    watched = {watch.video_id for watch in timeline.watches() if watch.user_id in kept}
    return Timeline(
        tuple(
            each
            for each in timeline.events
            if each.key in (kept if each.kind == "watched" else watched)
        )
    )


def _folder(settings: Settings, name: str) -> Path:
    return settings.var_dir / "bench" / "quality" / name


def measures(streamed: FilmsResult, scores: list[Scores]) -> list[Measure]:
    """Return the quotients and the two figures that have a peer in the same unit."""

    def at_10(arm: str) -> float:
        return recall(streamed.asked, arm).mean

    def within(strata: Sequence[str], arm: str) -> float:
        def of(target: Target) -> bool:
            return target.watched_stratum in strata

        return recall(streamed.asked, arm, of=of).mean

    theirs, ours = scores
    new = ["0", "1-4"]  # earlier watches of the target
    return [
        _over("refreshed_over_frozen", at_10(REFRESHED), at_10(FROZEN), FROZEN),
        _over("refreshed_over_sasrec", at_10(REFRESHED), at_10(SASREC), SASREC),
        _over("refreshed_over_popularity", at_10(REFRESHED), at_10(POPULARITY), POPULARITY),
        _beside(
            "unwatched_targets_recall_at_10",
            within(["0"], REFRESHED),
            within(["0"], CLUSTER),
            CLUSTER,
        ),
        _over(
            "rare_targets_over_sasrec", within(["1-4"], REFRESHED), within(["1-4"], SASREC), SASREC
        ),
        _over("cluster_ids_over_hash_ids", within(new, CLUSTER), within(new, HASH), HASH),
        _beside("beauty_recall_at_10", ours.recall_at_10, theirs.recall_at_10, theirs.name),
        _over("beauty_over_sasrec", ours.recall_at_10, theirs.recall_at_10, theirs.name),
        _over("nano_cpt_over_none", at_10(REFRESHED), at_10(NO_METADATA), NO_METADATA),
    ]


def _over(name: str, ours: float, theirs: float, peer: str) -> Measure:
    """Return a quotient of two recalls; where the peer found nothing there is none, and 0 is reported."""
    return Measure(
        measure=name,
        value=ours / theirs if theirs else 0.0,
        unit="recall@10 over recall@10",
        higher_is_better=True,
        peer=peer,
        peer_value=1.0,
    )


def _beside(name: str, ours: float, theirs: float, peer: str) -> Measure:
    return Measure(
        measure=name,
        value=ours,
        unit="recall@10",
        higher_is_better=True,
        peer=peer,
        peer_value=theirs,
    )


def say(text: str) -> None:
    """Tell how far it is."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
