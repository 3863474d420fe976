"""The demo's picture: recall and freshness over the stream; knows nothing of how they were measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
import matplotlib.pyplot as plt

from workers.demo_observer import Observations
from workers.demo_report import Answered

WINDOW = 150  # requests in a running mean
COLOURS = {"LRM, refreshed": "#0b6e99", "LRM, frozen": "#8fb8cc", "popularity": "#c2a13a"}


def draw(answered: Sequence[Answered], seen: Observations, path: Path) -> None:
    """Draw running recall above and delays below, both over the minutes of the stream."""
    servable = [one for one in answered if one.target_servable and not one.asked.error]
    if not servable:
        return
    start_ms = servable[0].asked.asked_at_ms
    figure, (above, below) = plt.subplots(2, 1, figsize=(11, 7), sharex=True, layout="constrained")
    minutes = np.array([(one.asked.asked_at_ms - start_ms) / 60_000 for one in servable])
    hits = {
        "LRM, refreshed": [one.asked.watch.video_id in one.asked.recommended for one in servable],
        "LRM, frozen": [one.asked.watch.video_id in one.frozen for one in servable],
        "popularity": [one.asked.watch.video_id in one.asked.popular for one in servable],
    }
    for name, found in hits.items():
        above.plot(minutes, _running_mean(found), label=name, color=COLOURS[name], linewidth=2)
    for swap in seen.swaps:
        if swap.outcome == "succeeded" and swap.swapped_time_ms >= start_ms:
            at = (swap.swapped_time_ms - start_ms) / 60_000
            above.axvline(at, color="#bbbbbb", linewidth=0.8, zorder=0)
    above.set_ylabel(f"recall@10, mean of the last {WINDOW} requests")
    above.set_title("What a viewer really watched next, among the ten recommended")
    above.set_ylim(bottom=0)
    above.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    _delays(below, seen, start_ms)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _delays(axes: plt.Axes, seen: Observations, start_ms: int) -> None:
    servable = [
        (
            (found.servable_time_ms - start_ms) / 60_000,
            (found.servable_time_ms - found.upload_append_time_ms) / 1000,
        )
        for found in seen.first_servable.values()
    ]
    if servable:
        axes.scatter(*zip(*servable, strict=True), s=5, color="#5a8f3c", label="upload to servable")
    watches = [
        ((served - start_ms) / 60_000, (served - watch) / 1000)
        for watch, _, _, served in seen.stage_times()
    ]
    if watches:
        axes.scatter(
            *zip(*watches[::10], strict=True),
            s=5,
            color="#a23b4a",
            label="watch to serving (every tenth)",
        )
    axes.set_yscale("log")
    axes.set_ylabel("seconds")
    axes.set_xlabel("minutes of the stream; grey lines are swaps")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)


def _running_mean(values: Sequence[bool]) -> np.ndarray:
    total = np.cumsum(np.array(values, dtype=float))
    before = np.concatenate([np.zeros(min(WINDOW, len(total))), total[:-WINDOW]])
    mean = (total - before) / np.minimum(np.arange(1, len(total) + 1), WINDOW)
    mean[: WINDOW // 3] = np.nan  # too few to mean anything
    return mean
