"""The quality benchmark's figures as a Markdown page; knows nothing of how they were measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from tests.bench.parts.quality_beauty import LRM_TRAINING, SASREC, SASREC_TRAINING, Scores
from tests.bench.parts.quality_budget import Budget
from tests.bench.parts.quality_figures import Figure, ndcg, recall
from tests.bench.parts.quality_films import (
    CLUSTER,
    FROZEN,
    HASH,
    NO_METADATA,
    PASSES,
    POPULARITY,
    REFRESHED,
    FilmsResult,
)
from tests.bench.parts.quality_films import SASREC as SASREC_REFRESHED
from tests.bench.parts.quality_stream import HISTORY_STRATA, WATCHED_STRATA, Target

Provenance = Mapping[str, Any]
ARMS = (REFRESHED, FROZEN, NO_METADATA, SASREC_REFRESHED, CLUSTER, HASH, POPULARITY)
CURVE_POINTS = 10
# R@5, N@5, R@10, N@10. Rajput et al. 2023 (2305.05065), table 1; not measured here.
PUBLISHED = {
    "SASRec, as TIGER published it": (0.0387, 0.0249, 0.0605, 0.0318),
    "TIGER, as published": (0.0454, 0.0321, 0.0648, 0.0384),
}


def page(
    streamed: FilmsResult, scores: Sequence[Scores], budget: Budget, provenance: Provenance
) -> str:
    """Return the page: films streamed, then Beauty."""
    parts = [
        "# Quality",
        _introduction(budget),
        origin(provenance, "one for each data set"),
        "## Films in time order",
        _films_notes(streamed),
        _overall(streamed),
        "Recall@10 by how often the target had been watched before, by anyone:",
        _by(streamed, WATCHED_STRATA, lambda target: target.watched_stratum),
        "Recall@10 by how many watches of the user came before:",
        _by(streamed, HISTORY_STRATA, lambda target: target.history_stratum),
        "Recall@10 over the stream, by the last watch of each stretch:",
        _curve(streamed),
        "## Amazon Beauty, leave-one-out",
        _beauty_notes(scores),
        _beauty(scores),
    ]
    return "\n\n".join(parts) + "\n"


def _introduction(budget: Budget) -> str:
    scaled = ""
    if budget.data_share != 1:
        scaled = (
            f" **A quick try on {budget.data_share:.0%} of the data: comparable with nothing.**"
        )
    return (
        f"Written by `make bench NAME=quality` with the budget `{budget.name}`.{scaled} One seed. A figure is followed "
        "by its standard error, as if targets were independent: the arms are asked the same targets, so that a "
        "difference is surer than that; what another seed would change is not in it. Nothing was chosen by the figures "
        "on this page."
    )


def origin(provenance: Provenance, cores: str) -> str:
    """Return where and with what it was measured."""
    hardware, versions = provenance["hardware"], provenance["versions"]
    kept = ("python", "torch", "transformers", "numpy")
    return (
        f"Measured on {hardware['cores']:g} cores of {hardware['cpu']}, {cores}, "
        + ", ".join(f"{name} {versions[name]}" for name in kept if name in versions)
        + f", commit {provenance['commit']}."
    )


def _films_notes(streamed: FilmsResult) -> str:
    notes = streamed.notes
    refused = ", ".join(f"{count} of {name}" for name, count in streamed.refused.items() if count)
    later_items = notes["items"] - notes["first_items"]
    return (
        f"MovieLens ml-latest-small. The codebook and the first fits know the first {notes['first_watches']:,} watches "
        f"and {notes['first_items']:,} items. Then come {notes['later_watches']:,} watches in rounds of "
        f"{notes['round_watches']:,}, and the other {later_items:,} items, coded by that codebook as they come. "
        "Before a round is learned, a sample of its watches is asked for: every arm is given the user's history up to "
        "the watch, and ranks all items that were uploaded by then and that the user has not watched; ties go to the "
        "earlier upload. MovieLens does not say when a film was added: an upload is set 24 hours before its first "
        "watch, so that what is newest is watched soon; no arm is told upload times.\n\n"
        f"Each first fit had {streamed.fit_cpu_s:.0f} CPU-seconds, which is what that of the LRM "
        "took. A refresh of the LRM is the project's round: the new watches, a quarter of replay, the new items' "
        f"metadata, gates. That of SASRec and the two-towers is {PASSES} passes over the new watches and as many old "
        f"windows. Popularity counts the newest {streamed.popularity_window:,} watches, as the end of the first part "
        f"chose. Rounds refused by a gate: {refused or 'none'}."
    )


def _overall(streamed: FilmsResult) -> str:
    header = ("model", "recall@10", "NDCG@10", "targets", "CPU-seconds of all refreshes")
    rows = []
    for arm in ARMS:
        found, gain = recall(streamed.asked, arm), ndcg(streamed.asked, arm)
        spent = streamed.refresh_cpu_s.get(arm)
        rows.append(
            (
                arm,
                _text(found),
                _text(gain),
                f"{found.targets:,}",
                "-" if not spent else f"{spent:.0f}",
            )
        )
    return table(header, rows)


def _by(streamed: FilmsResult, strata: Sequence[str], of: Callable[[Target], str]) -> str:
    counts = [sum(of(one.target) == stratum for one in streamed.asked) for stratum in strata]
    header = (
        "model",
        *(f"{stratum} ({count:,})" for stratum, count in zip(strata, counts, strict=True)),
    )
    return table(header, (_row(streamed, arm, strata, of) for arm in ARMS))


def _row(
    streamed: FilmsResult, arm: str, strata: Sequence[str], of: Callable[[Target], str]
) -> list[str]:
    cells = [arm]
    for stratum in strata:

        def is_in(target: Target, stratum: str = stratum) -> bool:
            return of(target) == stratum

        cells.append(_text(recall(streamed.asked, arm, of=is_in)))
    return cells


def _curve(streamed: FilmsResult) -> str:
    events = sorted({one.target.event for one in streamed.asked})
    first, last = events[0], events[-1] + 1
    ends = [first + (last - first) * (at + 1) // CURVE_POINTS for at in range(CURVE_POINTS)]
    strata = [f"{end:,}" for end in ends]

    def of(target: Target) -> str:
        return strata[next(at for at, end in enumerate(ends) if target.event < end)]

    header = ("model", *strata)
    rows = []
    for arm in ARMS:
        cells = _row(streamed, arm, strata, of)
        rows.append([cells[0], *(cell.split(" ")[0] for cell in cells[1:])])
    return table(header, rows)


def _beauty_notes(scores: Sequence[Scores]) -> str:
    chosen = "; ".join(
        f"{one.name} at {one.best_share:.0%} (validation recall@10 "
        + ", ".join(f"{each:.3f}" for each in one.validation)
        + ")"
        for one in scores
    )
    return (
        "Of each user's items the last is the test item, the one before it the validation item; all earlier ones are "
        "learned from, each as a next item. The ranking is over all items but those the user has had. Both models were "
        f"trained for {scores[0].cpu_s:.0f} CPU-seconds, and validation chose among equally spaced states: {chosen}. "
        f"Both were asked for the same {scores[0].targets:,} users.\n\nSASRec-CE: `{SASREC}`, `{SASREC_TRAINING}`. The "
        f"LRM: `NANO`, `{LRM_TRAINING}`, semantic IDs of the project's own fit, beam search under the trie. The "
        "published rows are table 1 of TIGER (Rajput et al. 2023, 2305.05065), not measured here: of all users, with "
        "nothing left out of the ranking; its SASRec has another loss, with one sampled negative."
    )


def _beauty(scores: Sequence[Scores]) -> str:
    header = ("model", "R@5", "N@5", "R@10", "N@10", "CPU-seconds")
    rows = [
        (
            one.name,
            *(
                f"{each:.4f}"
                for each in (one.recall_at_5, one.ndcg_at_5, one.recall_at_10, one.ndcg_at_10)
            ),
            f"{one.cpu_s:.0f}",
        )
        for one in scores
    ]
    published = [
        (name, *(f"{each:.4f}" for each in figures), "-") for name, figures in PUBLISHED.items()
    ]
    return table(header, [*rows, *published])


def _text(figure: Figure) -> str:
    return f"{figure.mean:.4f} ±{figure.error:.4f}" if figure.targets else "-"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
