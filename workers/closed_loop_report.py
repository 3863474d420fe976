"""What a closed loop measured: a report, two tables for a person, and whether every stage happened.

Knows nothing of processes and of how the figures are made.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from workers.closed_loop import Played
from workers.closed_loop_figures import Figures
from workers.closed_loop_refreshes import Refreshes
from workers.demo_report import quantiles

NAMES = {
    "two_tower_hash": "hash",
    "two_tower_cluster": "cluster",
    "lrm": "lrm",
    "lrm_fresh": "lrm fresh",
    "two_tower_hash_random_new": "hash+random",
}
ROWS = {
    "coverage": ("coverage", 1, "{:.3f}"),
    "shown_share": ("new videos shown", 1, "{:.2f}"),
    "reached_share": ("reached threshold", 1, "{:.2f}"),
    "time_to_threshold_s": ("p50 time to it, h", 3600, "{:.1f}"),
    "time_to_threshold_p90_s": ("p90 time to it, h", 3600, "{:.1f}"),
    "new_views_per_request": ("new views/request", 1, "{:.3f}"),
    "clicks_per_impression": ("clicks", 1, "{:.3f}"),
    "likes_per_impression": ("likes", 1, "{:.4f}"),
    "watched_s_per_request": ("watched, s/request", 1, "{:.0f}"),
    "effective_vocabulary": ("vocabulary", 1, "{:.0f}"),
}
"""Of the tables: a figure's name, what it is divided by, and how it is written."""


def build_report(
    played: Played, figures: Figures, refreshes: Refreshes, *, baseline: str, models: Sequence[str]
) -> dict[str, Any]:
    """Return what was measured, as `report.json` holds it."""
    answers = [one.answer for one in played.asked]
    wrong_arm = sum(one.answer.arm not in ("", one.user.arm) for one in played.asked)
    return {
        "arms": _as_json(figures.arms),
        "over_baseline": _as_json(figures.over_baseline),
        "baseline": baseline,
        "counts": figures.counts,
        "new_videos": figures.new_videos,
        "steps": played.steps,
        "refreshes": {name: refreshes.refreshes[name] for name in models},
        "swaps_rejected": dict(refreshes.rejected),
        "requests": len(answers),
        "requests_failed": sum(bool(one.error) for one in answers),
        "errors": sorted({one.error for one in answers if one.error})[:3],
        "requests_of_another_arm": wrong_arm,
        "answered_without_model": sum(not one.error and not one.model_version for one in answers),
        "request_s": {
            arm: quantiles(one.answer.seconds for one in played.asked if one.user.arm == arm)
            for arm in figures.arms
        },
        "sources": _sources(played, figures.arms),
        "uploads": len(played.uploaded),
        "uploads_servable": len(played.uploaded & refreshes.servable),
        "watches": played.watches,
        "watches_in_shards": refreshes.watches_in_shards,
        "dead_letters": refreshes.dead_letters,
        "loop_s": round(played.seconds, 1),
        "waited_s": round(played.waited_s, 1),
    }


def _as_json(arms: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    return {
        arm: {name: one.as_json() for name, one in named.items()} for arm, named in arms.items()
    }


def _sources(played: Played, arms: Iterable[str]) -> dict[str, dict[str, int]]:
    """Return how many impressions of each arm came from where."""
    found: dict[str, dict[str, int]] = {arm: {} for arm in arms}
    for one in played.asked:
        of_arm = found[one.user.arm]
        for source in one.answer.sources:
            of_arm[source] = of_arm.get(source, 0) + 1
    return found


def missing_stages(report: Mapping[str, Any]) -> list[str]:
    """Return, in words, what did not happen that must; an empty list is success."""
    wrong = {
        "no request was sent": report["requests"] == 0,
        f"{report['requests_failed']} requests failed: {report['errors']}": report[
            "requests_failed"
        ]
        > 0,
        f"{report['requests_of_another_arm']} requests were answered by another arm": report[
            "requests_of_another_arm"
        ]
        > 0,
        f"{report['answered_without_model']} requests were answered without a model": report[
            "answered_without_model"
        ]
        > 0,
        "nothing was watched": report["watches"] == 0,
        "nothing was uploaded": report["uploads"] == 0,
        f"{report['uploads_servable']} of {report['uploads']} uploads became servable": report[
            "uploads_servable"
        ]
        < report["uploads"],
        f"{report['watches_in_shards']} of {report['watches']} watches are in shards": report[
            "watches_in_shards"
        ]
        != report["watches"],
        f"{report['dead_letters']} records were refused": report["dead_letters"] > 0,
    }
    wrong |= {
        f"{name} was never refreshed": count == 0 for name, count in report["refreshes"].items()
    }
    return [words for words, happened in wrong.items() if happened]


def show(report: Mapping[str, Any], problems: list[str], console: Console) -> None:
    """Print the report for a person: below each figure its interval."""
    for key, title in (("arms", "By arm"), ("over_baseline", f"Over {report['baseline']}")):
        table = Table("", *(NAMES.get(arm, arm) for arm in report[key]), title=title)
        table.title_justify = "left"
        for figure, (name, unit, form) in ROWS.items():
            own = key == "arms"
            if own or figure in report[key][report["baseline"]]:
                cells = (
                    _cell(figures.get(figure), unit if own else 1, form if own else "{:.2f}")
                    for figures in report[key].values()
                )
                table.add_row(name if own else name.removesuffix(", h"), *cells)
        console.print(table)
    console.print(
        f"{report['requests']:,} requests, {report['requests_failed']} failed; {report['watches']:,} watches; "
        f"{report['uploads']} uploads, {report['new_videos']} of them with their whole window; "
        f"threshold {report['view_threshold_of_an_arm']} views in an arm; refreshes: {report['refreshes']}; "
        f"{report['wall_s']:.0f} s.",
        soft_wrap=True,
    )
    for problem in problems:
        console.print(f"[red]missing:[/] {problem}")


def _cell(figure: Mapping[str, float | None] | None, unit: float, form: str) -> str:
    """Return a figure above its interval; a dash for what could not be divided."""
    if figure is None or figure["value"] is None:
        return "-"
    texts = [
        "-" if (value := figure[key]) is None else form.format(value / unit)
        for key in ("value", "ci_low", "ci_high")
    ]
    return f"{texts[0]}\n[dim]{texts[1]}-{texts[2]}[/]"
