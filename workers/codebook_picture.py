"""A codebook card as a picture and as a table for the terminal; knows nothing of how its numbers came about."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
from rich.console import Group
from rich.table import Table

mpl.use("Agg")
import matplotlib.pyplot as plt

SIZE_INCHES, DOTS_PER_INCH = (12, 8), 110
COLOURS = {"quantizer": "#0b6e99", "lsh": "#c2a13a", "random": "#bbbbbb"}
SECTIONS = {"fitted": "fitted on", "held_out": "held out"}
SHOWN_CELL_SIZES = 8

Card = Mapping[str, Any]


def judged_section(card: Card) -> str:
    """Return which section says more of a codebook: the videos it never saw, where there are any."""
    return "held_out" if card["held_out"] else "fitted"


def picture(card: Card) -> bytes:
    """Return the card as a PNG of 1320 x 880 dots: collisions, use of the levels, and what prefixes mean."""
    figure, axes = plt.subplots(2, 2, figsize=SIZE_INCHES, layout="constrained")
    try:
        _collisions(axes[0][0], card)
        _levels(axes[0][1], card)
        _meaning(axes[1][0], card, "category", "over_random", "same category, same prefix")
        _meaning(axes[1][1], card, "co_watching", "over_random", "same prefix, co-watched")
        shown = card[judged_section(card)]
        figure.suptitle(
            f"{_name(card)}: {shown['uniqueness']:.1%} of {shown['videos']:,} "
            f"{SECTIONS[judged_section(card)]} videos are alone in their cell"
        )
        buffer = io.BytesIO()
        # Without the version of matplotlib in it, equal cards are equal files.
        figure.savefig(buffer, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    finally:
        plt.close(figure)
    return buffer.getvalue()


def _name(card: Card) -> str:
    data = card["notes"].get("data") or "catalogue"
    sizes = " x ".join(map(str, card["codebook_sizes"]))
    return f"codebook {card['codebook_version']}, {data}, {card['quantizer'].get('method', '')} {sizes}"


def _collisions(axes: plt.Axes, card: Card) -> None:
    for offset, (section, colour) in enumerate((("fitted", "#8fb8cc"), ("held_out", "#0b6e99"))):
        if not card[section]:
            continue
        counts = {int(size): videos for size, videos in card[section]["collisions"].items()}
        shown = [counts.get(size, 0) for size in range(1, SHOWN_CELL_SIZES)]
        shown.append(sum(videos for size, videos in counts.items() if size >= SHOWN_CELL_SIZES))
        shares = [videos / card[section]["videos"] for videos in shown]
        places = [size + 0.4 * offset for size in range(1, SHOWN_CELL_SIZES + 1)]
        axes.bar(places, shares, width=0.4, color=colour, label=SECTIONS[section])
    axes.set_yscale("log")
    axes.set_xticks(
        [size + 0.2 for size in range(1, SHOWN_CELL_SIZES + 1)],
        [*map(str, range(1, SHOWN_CELL_SIZES)), f"{SHOWN_CELL_SIZES}+"],
    )
    axes.set_xlabel("videos in the cell, before disambiguation")
    axes.set_ylabel("share of videos")
    axes.legend(frameon=False)


def _levels(axes: plt.Axes, card: Card) -> None:
    sizes, fitted = card["codebook_sizes"], card["fitted"]
    places = range(1, len(sizes) + 1)
    used = [size - dead for size, dead in zip(sizes, fitted["dead_codes"], strict=True)]
    axes.bar(places, sizes, color="#e3e3e3", label="codes")
    axes.bar(places, used, color="#8fb8cc", label="used")
    axes.bar(places, fitted["perplexity"], color="#0b6e99", width=0.4, label="perplexity")
    axes.set_xticks(list(places))
    axes.set_xlabel("level (fitted on)")
    axes.set_ylabel("codes")
    axes.legend(frameon=False)


def _meaning(axes: plt.Axes, card: Card, measure: str, number: str, title: str) -> None:
    arms = card[judged_section(card)]["meaning"]
    drawn = False
    for offset, (arm, colour) in enumerate(COLOURS.items()):
        lines = [line for line in arms[arm][measure] if line[number]]
        drawn |= bool(lines)
        places = [line["prefix"] + 0.27 * (offset - 1) for line in lines]
        heights = [line[number] for line in lines]
        axes.bar(places, heights, width=0.27, color=colour, label=arm)
    axes.set_title(f"{title} ({SECTIONS[judged_section(card)]})", fontsize="medium")
    axes.set_ylabel("times that of random pairs")
    if not drawn:
        axes.text(0.5, 0.5, "not known for this catalogue", ha="center", transform=axes.transAxes)
        return
    axes.set_yscale("log")
    axes.axhline(1, color="#444444", linewidth=0.8)
    axes.set_xticks([line["prefix"] for line in arms["quantizer"][measure]])
    axes.set_xlabel("codes in the prefix")
    axes.legend(frameon=False)


def summary(card: Card) -> Group:
    """Return the card for a person at a terminal."""
    sections = [name for name in SECTIONS if card[name]]
    spread = Table("", *(SECTIONS[name] for name in sections), title=_name(card))
    columns = [_lines(card[name]) for name in sections]
    for name in columns[0]:
        spread.add_row(name, *(column[name] for column in columns))
    means = Table(
        "over random pairs", "codes", *COLOURS, title=f"meaning ({SECTIONS[judged_section(card)]})"
    )
    arms = card[judged_section(card)]["meaning"]
    for measure in ("category", "co_watching"):
        for at, line in enumerate(arms["quantizer"][measure]):
            found = (arms[arm][measure][at]["over_random"] for arm in COLOURS)
            means.add_row(measure.replace("_", "-"), str(line["prefix"]), *map(_times, found))
    return Group(spread, means, f"Categories: {card['notes'].get('category', '')}")


def _lines(section: Card) -> dict[str, str]:
    return {
        "videos": f"{section['videos']:,}",
        "unique before disambiguation": f"{section['uniqueness']:.2%}",
        "codes used, per level": _each(section["usage"], "{:.0%}"),
        "dead codes, per level": _each(section["dead_codes"], "{}"),
        "perplexity, per level": _each(section["perplexity"], "{:.0f}"),
        "variance explained": f"{section['reconstruction']['variance_explained']:.1%}",
    }


def _each(values: list[float], form: str) -> str:
    return " ".join(form.format(value) for value in values)


def _times(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}x"
