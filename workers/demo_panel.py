"""What the demo shows while it runs: progress bars for the cold start, a live panel for the stream.

On a terminal the panel is redrawn in place; elsewhere a line every few seconds says the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

import numpy as np
from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from models.evaluation import recall_at_k
from workers.demo import Played
from workers.demo_observer import Observations

LINE_EVERY_S = 10.0
REDRAWS_PER_S = 2.0
NEWEST = 400  # of what a running quantile is made
STAGES = {
    "encoders": "export the encoders",
    "encode": "encode the catalogue",
    "fusion": "fit the fusion",
    "codebooks": "fit the codebooks",
    "clusters": "fit the flat clusters",
    "publish": "publish the codebook",
    "vocabulary": "train the vocabulary",
    "lrm": "fit the first LRM",
    "two_tower_cluster": "fit the first two-tower",
    "two_tower_hash": "fit its twin on hashed ids",
}


@contextmanager
def progress_bars(console: Console | None = None) -> Iterator[Callable[[str, float], None]]:
    """Yield a function (stage, share done) that keeps one bar per stage."""
    console = console or Console()
    bars = Progress(
        TextColumn("{task.description:26}"), BarColumn(), TextColumn("{task.percentage:3.0f} %"),
        TimeElapsedColumn(), console=console, refresh_per_second=4, disable=not console.is_terminal,
    )  # fmt: skip
    tasks: dict[str, int] = {}

    def report(stage: str, share: float) -> None:
        if stage not in tasks:
            for finished in tasks.values():
                bars.update(finished, completed=1.0)  # type: ignore[arg-type]
            tasks[stage] = bars.add_task(STAGES.get(stage, stage), total=1.0)
            if not console.is_terminal:
                console.print(f"  {STAGES.get(stage, stage)} ...")
        bars.update(tasks[stage], completed=share)  # type: ignore[arg-type]

    with bars:
        yield report
        for task in tasks.values():
            bars.update(task, completed=1.0)  # type: ignore[arg-type]


class StreamPanel:
    """The live view of the stream; `update` is cheap to call for every event."""

    def __init__(self, console: Console, seen: Observations, num_events: int) -> None:
        self._console = console
        self._seen = seen
        self._num_events = num_events
        self._started = self._drawn = time.monotonic()
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None

    def update(self, played: Played, *, what: str = "playing", force: bool = False) -> None:
        """Show the state of things, unless that was done a moment ago."""
        every_s = 1 / REDRAWS_PER_S if self._live else LINE_EVERY_S
        if not force and time.monotonic() - self._drawn < every_s:
            return
        self._drawn = time.monotonic()
        facts = self._facts(played)
        if self._live is None:
            self._console.print(
                f"  {what}: " + " · ".join(f"{name} {value}" for name, value in facts.items())
            )
            return
        table = Table.grid(padding=(0, 3))
        cells = [f"[dim]{name}[/] {value}" for name, value in facts.items()]
        for start in range(0, len(cells), 3):
            table.add_row(*cells[start : start + 3])
        self._live.update(Panel(table, title=f"freshet: {what}", title_align="left"), refresh=True)

    def _facts(self, played: Played) -> dict[str, str]:
        seen, sent = self._seen, played.sent.total()
        elapsed = max(0.1, time.monotonic() - self._started)
        answered = [one for one in played.asked if not one.error]
        targets = [one.watch.video_id for one in answered]
        swaps = [swap for swap in list(seen.swaps) if swap.outcome == "succeeded"]
        return {
            "events": f"{sent:,} of {self._num_events:,}",
            "per second": f"{sent / elapsed:.0f}",
            "requests": f"{len(played.asked)}",
            "upload to SID p50": _median(seen.upload_to_sid_s()[-NEWEST:]),
            "upload to servable p50": _median(seen.upload_to_servable_s()[-NEWEST:]),
            "watch to serving p50": _median(
                [(end - start) / 1000 for start, _, _, end in seen.stage_times()]
            ),
            "servable": f"{len(seen.first_servable):,} new",
            "shards": f"{len(seen.shards)} ({seen.watches_in_shards():,} watches)",
            "checkpoints": f"{len(seen.checkpoints)}",
            "serving": f"model {max((swap.model_version for swap in swaps), default=1)}, {len(swaps)} swaps",
            "recall@10 LRM": f"{recall_at_k([one.recommended for one in answered], targets):.3f}",
            "popularity": f"{recall_at_k([one.popular for one in answered], targets):.3f}",
            "failed": f"{sum(bool(one.error) for one in played.asked)}",
        }

    def __enter__(self) -> Self:
        if self._live:
            self._live.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live:
            self._live.__exit__(kind, error, trace)


def _median(seconds: list[float]) -> str:
    return f"{np.median(seconds):.2f} s" if seconds else "-"
