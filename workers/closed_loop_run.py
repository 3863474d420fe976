"""`freshet demo --closed-loop`: cold start on a simulated past, then viewers who watch what the live endpoint shows.

Everything it starts ends with it. The exit status is 0 only if every stage happened. What it reports is said in
`workers.closed_loop_figures`; what the viewers are, in `streams.viewers`.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, replace

from rich.console import Console

from infra.clock import now_ms
from infra.provenance import provenance
from infra.settings import Settings, with_values
from infra.storage import write_atomically
from models.quantizer import QuantizerConfig
from streams.arms import LRM, LRM_FRESH, MODEL_OF, TWO_TOWER_HASH_RANDOM_NEW
from streams.events import TWO_TOWER_CLUSTER, TWO_TOWER_HASH
from streams.simulated_world import World, WorldSize, make_world, past_of
from streams.timeline import Timeline
from streams.video_pool import load_pool
from streams.viewers import HOUR_MS
from workers.bootstrap import bootstrap
from workers.bootstrap_lrm import BootstrapConfig
from workers.closed_loop import Loop, Played
from workers.closed_loop_figures import figures_of
from workers.closed_loop_refreshes import Refreshes
from workers.closed_loop_report import build_report, missing_stages, show
from workers.demo_panel import LINE_EVERY_S, progress_bars
from workers.demo_run import bootstrap_config, fresh_settings, until_stopped, wait_endpoint
from workers.stack import kafka_running, processes_running

FOLDER = "closed_loop"
ARMS = (TWO_TOWER_HASH, TWO_TOWER_CLUSTER, LRM, LRM_FRESH, TWO_TOWER_HASH_RANDOM_NEW)
BASELINE = TWO_TOWER_HASH
MODELS = tuple(dict.fromkeys(MODEL_OF[arm] for arm in ARMS))
SHARD_AGE_S = 20.0
"""In which a shard is as good as sure to have its watches: the age is for the last one."""
WATCHES_PER_REQUEST = 0.8
"""About; a shard is to hold a step's watches, so that each model makes about one round of them."""
BEAM_WIDTH = 30
SMOOTHING, FRESH_SMOOTHING = 0.4, 0.8
FRESH_SHARE = 0.1
REWARD_SHARE = 1.0
"""Of the choices that were tried, those with most watch time and still many new videos; see LOG.md."""
EPOCHS_TIMES, LEFT_OUT_SHARE, AVERAGED_SHARE, FIT_MAX_S = 2, 0.45, 0.25, 900.0
"""A past as small as this one is gone through twice as often, with other watches left out each time, ends with the mean
of its last quarter's weights, and goes on to the end on a busy machine, too: an arm must not be worse for that."""
QUANTIZER = QuantizerConfig(steps=300)
"""Of a catalogue of a thousand: each video is seen more than a hundred times."""


@dataclass(frozen=True, kw_only=True)
class ClosedLoopOptions:
    """What changes per run.

    Attributes:
        window_h: hours after its upload in which a video is new, and in which its views are counted.
        refresh_h: hours of event time after whose double no watch is unlearned.
        view_threshold: views of all users within the window; an arm's own is its share of them.
        model: nano, or tiny for a quick look.
    """

    size: WorldSize
    window_h: float
    refresh_h: float
    view_threshold: int
    model: str

    @property
    def watches_per_step(self) -> int:
        """About how many there are."""
        asks = self.size.viewers * self.size.asks_per_day * self.refresh_h / 24
        return max(1, round(WATCHES_PER_REQUEST * len(ARMS) * asks))

    @property
    def arm_threshold(self) -> int:
        """Views within one arm."""
        return max(1, round(self.view_threshold / len(ARMS)))


def run_closed_loop(settings: Settings, options: ClosedLoopOptions) -> int:
    """Run the loop under `<var_dir>/closed_loop` and return the exit status."""
    config = bootstrap_config(options.model)
    config = replace(
        config,
        epochs=EPOCHS_TIMES * config.epochs,
        left_out_share=LEFT_OUT_SHARE,
        averaged_share=AVERAGED_SHARE,
        fit_max_s=FIT_MAX_S,
    )
    settings = with_values(
        fresh_settings(settings, FOLDER),
        experiment__arms=ARMS,
        training__models=MODELS,
        serve__fresh_max_age_h=options.window_h,
        serve__beam_width=BEAM_WIDTH,
        serve__smoothing=SMOOTHING,
        serve__fresh_smoothing=FRESH_SMOOTHING,
        serve__fresh_share=FRESH_SHARE,
        training__reward_share=REWARD_SHARE,
        freshness__new_video_age_h=options.window_h,
        freshness__window_h=options.window_h,
        freshness__view_threshold=options.view_threshold,
        watches__shard_max_age_s=SHARD_AGE_S,
        watches__shard_max_rows=options.watches_per_step,
    )
    console = Console()
    return until_stopped(lambda: _run(settings, options, config, console), settings, console)


def _run(
    settings: Settings, options: ClosedLoopOptions, config: BootstrapConfig, console: Console
) -> int:
    started_s = time.time()
    world, past = _prepared(settings, options)
    console.print(
        f"[bold]1 of 3[/]  cold start on {len(past.watches()):,} watches of {len(world.users)} users "
        f"and {len(world.past):,} videos"
    )
    with kafka_running(settings) as running:
        with progress_bars(console) as progress:
            bootstrap(running, past, config=config, quantizer=QUANTIZER, progress=progress)
        console.print("[bold]2 of 3[/]  start the workers, the trainer and the endpoint")
        refreshes = Refreshes(running)
        with processes_running(running) as supervisor:
            url = wait_endpoint(running, supervisor)
            console.print(
                f"[bold]3 of 3[/]  {options.size.hours:g} h: {len(world.new)} uploads, "
                f"{len(ARMS) * len(world.asks()):,} requests"
            )
            loop = Loop(
                url,
                running.kafka,
                world,
                refreshes,
                refresh_h=options.refresh_h,
                check=supervisor.check,
            )
            for watch in past.watches():
                loop.remember(watch.user_id, watch.video_id)
            played = loop.play(_Progress(console, world, refreshes).show)
            loop.close()
        refreshes.poll()
        refreshes.close()
    figures = figures_of(
        played.asked,
        world,
        arms=ARMS,
        baseline=BASELINE,
        window_ms=round(options.window_h * HOUR_MS),
        threshold=options.arm_threshold,
    )
    report = build_report(played, figures, refreshes, baseline=BASELINE, models=MODELS) | {
        "view_threshold_of_an_arm": options.arm_threshold,
        "options": asdict(options),
        "seed": settings.seed,
        "wall_s": round(time.time() - started_s, 1),
        **provenance(),
    }
    path = settings.var_dir / "report.json"
    write_atomically(path, (json.dumps(report, indent=2) + "\n").encode())
    problems = missing_stages(report)
    show(report, problems, console)
    console.print(f"Report: {path}")
    return 1 if problems else 0


def _prepared(settings: Settings, options: ClosedLoopOptions) -> tuple[World, Timeline]:
    """Return a world that ends now, and its past; the seed decides everything but what time it is."""
    end_ms = now_ms() // HOUR_MS * HOUR_MS
    world = make_world(
        load_pool(settings),
        settings.experiment,
        options.size,
        start_ms=end_ms - round(options.size.hours * HOUR_MS),
        seed=settings.seed,
    )
    return world, past_of(world)


class _Progress:
    """Says every few seconds where the loop is."""

    def __init__(self, console: Console, world: World, refreshes: Refreshes) -> None:
        self._console, self._refreshes = console, refreshes
        self._num_asks = len(ARMS) * len(world.asks())
        self._uploads = world.uploads
        self._shown_s = time.monotonic()

    def show(self, played: Played) -> None:
        """Print a line, unless that was done a moment ago."""
        if time.monotonic() - self._shown_s < LINE_EVERY_S:
            return
        self._shown_s = time.monotonic()
        refreshed = ", ".join(f"{name} {self._refreshes.refreshes[name]}" for name in MODELS)
        self._console.print(
            f"  step {played.steps + 1}: {len(played.asked):,} of {self._num_asks:,} requests · "
            f"{played.watches:,} watches · {len(self._refreshes.servable)} of {len(played.uploaded)} "
            f"uploads servable · refreshed: {refreshed}",
            soft_wrap=True,
        )
