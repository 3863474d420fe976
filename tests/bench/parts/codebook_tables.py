"""Codebook cards side by side as a Markdown page; knows nothing of how they were measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Card = Mapping[str, Any]
Provenance = Mapping[str, Any]
ARMS = {"quantizer": "codes", "lsh": "LSH", "random": "random"}
PREFIXES = (1, 2, 3)


def page(cards: Sequence[Card], provenance: Provenance) -> str:
    """Return the page: a table of each kind for each data set."""
    names = list(dict.fromkeys(card["notes"]["data"] for card in cards))
    parts = ["# Codebooks", _INTRODUCTION, _origin(provenance)]
    for name in names:
        of_name = [card for card in cards if card["notes"]["data"] == name]
        notes, fitted, held_out = (of_name[0][key] for key in ("notes", "fitted", "held_out"))
        parts += [
            f"## {name}",
            f"{fitted['videos']:,} videos fitted on, {held_out['videos']:,} held out. "
            f"Categories: {notes['category']}. Co-watching: {notes['co_watching']}.",
            _spread(of_name),
            _meaning(of_name, "category", "Same category, given the same prefix"),
            _meaning(of_name, "co_watching", "Same prefix, given that both were co-watched"),
        ]
    return "\n\n".join(parts) + "\n"


_INTRODUCTION = """Written by `make bench NAME=quantizer`. Codebooks are fitted on the earliest 80 % of each catalogue.
*Unique* is the share of videos alone in their cell before disambiguation: of those fitted on among themselves, of those
held out among all. Meaning is measured over pairs of different videos of which at least one is held out, and told as
a multiple of what random pairs have; LSH is signs of random projections of the same embedding, with as many bits per
level; *random* is codes drawn at random. Shares of few pairs are noisy: the number of pairs is in brackets."""


def _origin(provenance: Provenance) -> str:
    hardware, versions = provenance["hardware"], provenance["versions"]
    kept = ("python", "torch", "onnxruntime", "numpy")
    return (
        f"Measured on {hardware['cores']:g} cores of {hardware['cpu']}, "
        + ", ".join(f"{name} {versions[name]}" for name in kept if name in versions)
        + f", commit {provenance['commit']}."
    )


def _spread(cards: Iterable[Card]) -> str:
    header = (
        "quantizer", "codes per level", "unique, fitted", "unique, held out", "perplexity", "used", "dead codes",
        "variance explained, held out",
    )  # fmt: skip
    rows = []
    for card in cards:
        fitted, held_out = card["fitted"], card["held_out"]
        rows.append(
            (
                _name(card),
                _each(card["codebook_sizes"], "{}"),
                f"{fitted['uniqueness']:.2%}",
                f"{held_out['uniqueness']:.2%}",
                _each(fitted["perplexity"], "{:.0f}"),
                _each(fitted["usage"], "{:.0%}"),
                _each(fitted["dead_codes"], "{}"),
                f"{held_out['reconstruction']['variance_explained']:.1%}",
            )
        )
    return _table(header, rows)


def _name(card: Card) -> str:
    quantizer = card["quantizer"]
    return quantizer["method"] + (", co-watching" if quantizer["contrastive_weight"] else "")


def _meaning(cards: Iterable[Card], measure: str, title: str) -> str:
    header = [
        "quantizer", "levels",
        *(f"{label}, {prefix}" for prefix in PREFIXES for label in ARMS.values()),
    ]  # fmt: skip
    rows = []
    for card in cards:
        arms = card["held_out"]["meaning"]
        cells = [
            _times(arms[arm][measure][prefix - 1], with_pairs=arm == "quantizer")
            for prefix in PREFIXES
            for arm in ARMS
        ]
        rows.append((_name(card), str(len(card["codebook_sizes"])), *cells))
    if all(cell == "-" for row in rows for cell in row[2:]):
        return f"{title}: not known here."
    return f"{title}, over random pairs, by length of the prefix:\n\n{_table(header, rows)}"


def _times(line: Mapping[str, Any], *, with_pairs: bool) -> str:
    if line["over_random"] is None:
        return "-"
    pairs = f" ({line['pairs']:,.0f})" if with_pairs else ""
    return f"{line['over_random']:.2f}{pairs}"


def _each(values: Iterable[float], form: str) -> str:
    return " ".join(form.format(value) for value in values)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
