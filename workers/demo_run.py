"""`freshet demo`, from an empty folder to a report: cold start, stream, drain, score.

Everything it starts ends with it. The exit status is 0 only if every stage happened.
"""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from infra.clock import now_ms
from infra.errors import ConfigError
from infra.log import configure
from infra.settings import Settings, with_values
from infra.storage import ObjectStore
from infra.supervisor import Supervisor
from models.lrm import NANO, TINY, Lrm, load_lrm
from models.training import TrainingConfig
from streams.client import wait_until
from streams.clips import with_clips
from streams.events import LRM_MODEL_NAME
from streams.movielens import load_timeline
from streams.timeline import Timeline, split
from workers.bootstrap import Bootstrapped, bootstrap
from workers.bootstrap_lrm import BootstrapConfig
from workers.demo import Played, Surface, drain, play, wait_ready
from workers.demo_observer import Observer
from workers.demo_panel import StreamPanel, progress_bars
from workers.demo_picture import draw
from workers.demo_report import (
    MIN_REQUESTS,
    MIN_SWAPS,
    Answered,
    build_report,
    missing_stages,
    score_frozen,
    write_report,
)
from workers.stack import kafka_running, processes_running
from workers.training_state import checkpoint_key


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """What changes per run; `started_s` is the wall clock when the user pressed enter."""

    events_per_s: float
    share: float
    num_requests: int
    num_watches: int
    model: str
    started_s: float


def bootstrap_config(model: str) -> BootstrapConfig:
    """Return how the first LRM is fitted.

    Raises:
        ConfigError: there is no such model.
    """
    recipes = {
        "nano": BootstrapConfig(lrm=NANO),
        "tiny": BootstrapConfig(lrm=TINY, training=TrainingConfig(block_tokens=256), epochs=2),
    }
    if model not in recipes:
        raise ConfigError(f"model is {model!r}; there are {', '.join(recipes)}")
    return recipes[model]


def run_demo(settings: Settings, options: DemoOptions) -> int:
    """Run the demo under `<var_dir>/demo` and return the exit status."""
    config = bootstrap_config(options.model)
    settings = fresh_settings(settings, "demo")
    console = Console()
    return until_stopped(lambda: _run(settings, options, config, console), settings, console)


def fresh_settings(settings: Settings, name: str) -> Settings:
    """Return settings for a run under `<var_dir>/<name>`, which is emptied, and in topics of its own."""
    folder = settings.var_dir / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    settings = with_values(
        settings,
        var_dir=folder.absolute(),
        storage__root=str(folder.absolute() / "store"),
        serve__port=0,
    )
    if settings.kafka.bootstrap_servers:  # where earlier demos have left their topics
        prefix = f"{settings.kafka.topic_prefix}{name}-{now_ms()}-"
        settings = with_values(settings, kafka__topic_prefix=prefix)
    return settings


def until_stopped(run: Callable[[], int], settings: Settings, console: Console) -> int:
    """Run until the end, or until Ctrl-C or SIGTERM, and return the exit status."""
    configure("demo", level="WARNING", format=settings.log.format)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return run()
    except KeyboardInterrupt:
        console.print("stopped; nothing is left running")
        return 130


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _run(
    settings: Settings, options: DemoOptions, config: BootstrapConfig, console: Console
) -> int:
    earlier, later = timelines(options)
    console.print(
        f"[bold]1 of 4[/]  cold start on {len(earlier.watches()):,} watches of the past "
        f"(set-up took {time.time() - options.started_s:.0f} s)"
    )
    with kafka_running(settings) as running:
        with progress_bars(console) as progress:
            fitted = bootstrap(running, earlier, config=config, progress=progress)
        frozen = _load_frozen(running, fitted)
        observer = Observer(running.kafka)
        console.print("[bold]2 of 4[/]  start the workers, the trainer and the endpoint")
        with processes_running(running) as supervisor:
            surface = Surface(wait_endpoint(running, supervisor), earlier, running)
            console.print(f"[bold]3 of 4[/]  play {len(later.events):,} events")
            played, problems = _stream(
                running, options, later, surface, observer, supervisor, console
            )
        seen = observer.stop()
    console.print("[bold]4 of 4[/]  score the never refreshed model on the same requests")
    answered = _score(frozen, played, seen.assigned, running, console)
    report = build_report(
        seen, played, answered, bootstrap=_summary(fitted), wall_s=time.time() - options.started_s
    )
    write_report(report, settings.var_dir / "report.json")
    draw(answered, seen, settings.var_dir / "report.png")
    problems += sorted({one.error for one in played.asked if one.error})[:3]
    problems += missing_stages(
        report,
        min_requests=min(MIN_REQUESTS, options.num_requests),
        min_swaps=MIN_SWAPS,
    )
    show(report, problems, settings.var_dir, console)
    return 1 if problems else 0


def timelines(options: DemoOptions) -> tuple[Timeline, Timeline]:
    """Return the part to bootstrap on and the part to play, real clips among its uploads."""
    earlier, later = split(load_timeline(), options.share)
    if options.num_watches:
        later, _ = split(later, min(1.0, options.num_watches / max(1, len(later.watches()))))
    return earlier, with_clips(later)


def _load_frozen(settings: Settings, fitted: Bootstrapped) -> Lrm:
    store = ObjectStore(settings.storage.root)
    folder = store.local_directory(
        checkpoint_key(LRM_MODEL_NAME, fitted.model_version), settings.var_dir / "cache"
    )
    return load_lrm(folder, sha256=fitted.sha256)


def wait_endpoint(settings: Settings, supervisor: Supervisor) -> str:
    """Return the endpoint's URL once it can recommend and all workers work.

    Raises:
        TransientError: they do not in time.
    """
    discovery = settings.var_dir / "serve.json"

    def announced() -> bool:
        supervisor.check()
        return discovery.exists()

    wait_until(announced, timeout_s=240, what="the endpoint's start", interval_s=0.3)
    url: str = json.loads(discovery.read_text())["url"]
    wait_ready(url, settings.kafka, supervisor.check)
    return url


def _stream(
    settings: Settings,
    options: DemoOptions,
    later: Timeline,
    surface: Surface,
    observer: Observer,
    supervisor: Supervisor,
    console: Console,
) -> tuple[Played, list[str]]:
    with StreamPanel(console, observer.seen, len(later.events)) as panel:
        played = play(
            settings,
            surface,
            later,
            events_per_s=options.events_per_s,
            num_requests=options.num_requests,
            on_progress=panel.update,
        )

        def check() -> None:
            supervisor.check()
            panel.update(played, what="waiting for the last watch to be served")

        problems = drain(observer, played, check)
        panel.update(played, what="played", force=True)
    surface.close()
    return played, problems


def _score(
    frozen: Lrm, played: Played, assigned: Any, settings: Settings, console: Console
) -> list[Answered]:
    shares = track(range(100), "  scoring", console=console, disable=not console.is_terminal)
    steps = iter(shares)
    done = 0

    def on_progress(share: float) -> None:
        nonlocal done
        while done < int(share * 100):
            next(steps, None)
            done += 1

    return score_frozen(
        frozen,
        played.asked,
        assigned,
        beam_width=settings.serve.beam_width,
        on_progress=on_progress,
    )


def _summary(fitted: Bootstrapped) -> dict[str, Any]:
    summary = asdict(replace(fitted, losses=()))
    del summary["losses"]
    return summary | {"last_loss": round(fitted.losses[-1], 4), "steps": len(fitted.losses)}


def show(report: dict[str, Any], problems: list[str], folder: Path, console: Console) -> None:
    """Print the report for a person."""
    delays = Table("from", "to", "p50", "p99", title="How fresh", title_justify="left")
    for key in (
        "upload_to_sid_s", "upload_to_servable_s", "watch_to_shard_s", "shard_to_checkpoint_s",
        "checkpoint_to_serving_s", "watch_to_serving_s",
    ):  # fmt: skip
        source, target = key.removesuffix("_s").split("_to_")
        delays.add_row(source, target, *(_seconds(report[key][name]) for name in ("p50", "p99")))
    console.print(delays)
    recall = Table(
        "targets", "n", "LRM", "LRM, frozen", "popularity", title="recall@10", title_justify="left"
    )
    for key, name in (
        ("recall_at_10", "all servable"),
        ("recall_at_10_targets_with_0_watches", "never watched before"),
        ("recall_at_10_targets_with_1_to_4_watches", "watched 1-4 times"),
    ):
        found = report[key]
        arms = (f"{found[arm]:.3f}" for arm in ("lrm", "lrm_frozen", "popularity"))
        recall.add_row(name, str(found["targets"]), *arms)
    console.print(recall)
    console.print(
        f"{report['uploads']:,} uploads, {report['updates']:,} updates and {report['watches']:,} watches; "
        f"{report['unique_semantic_ids']:,} unique semantic IDs; {report['shards_sealed']} shards; "
        f"{report['distinct_checkpoints']} checkpoints; {report['swaps']} swaps; {report['requests']} requests, "
        f"{report['requests_failed']} failed; {report['targets_not_servable']} targets not servable when asked; "
        f"{report['new_video_share_of_impressions']:.1%} of impressions were new videos; {report['wall_s']:.0f} s."
    )
    console.print(f"Report: {folder / 'report.json'}   picture: {folder / 'report.png'}")
    for problem in problems:
        console.print(f"[red]missing:[/] {problem}")


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} s"
