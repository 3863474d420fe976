"""One soak, from an empty folder to a report: bootstrap, start, load with kills, drain, check, stop."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console

from infra.kafka.node import free_port
from infra.provenance import provenance
from infra.settings import Settings
from infra.storage import ObjectStore, write_atomically
from models.quantizer import QuantizerConfig
from streams.movielens import load_timeline
from streams.timeline import Timeline, split
from tests.prometheus_queries import expressions, metrics_in
from tests.soak.asking import Asker
from tests.soak.disk import disk_bytes, log_problems
from tests.soak.following import Following
from tests.soak.kills import JITTER, Killer, plan_kills, victims
from tests.soak.ledger import Seen, Sent
from tests.soak.load import Sender, Stream
from tests.soak.options import SHARDS_RETENTION_S, SoakOptions, settings_of, topic_configs
from tests.soak.processes import own_bytes, ray_session
from tests.soak.report import kills_report, requests_report, samples_report, sent_report, show
from tests.soak.running import PORTS, Running
from tests.soak.samples import Bound, Sample, bound_problems, memory_problems, thirds_problems
from tests.soak.verdicts import (
    OF_ANY_ARM,
    answered_badly,
    figures_of,
    figures_stopped,
    lost,
    metrics_missing,
    not_back,
    not_learned,
    not_refused,
)
from workers.bootstrap import bootstrap
from workers.demo_panel import progress_bars
from workers.demo_run import bootstrap_config
from workers.shard_audit import audit
from workers.stack import kafka_running

QUANTIZER = QuantizerConfig(steps=300)
"""Of a small catalogue: each video is seen often enough."""
KILLS_FROM, KILLS_UNTIL = 0.1, 0.85
"""Shares of the load's time: figures are to flow before, and all to be back after."""
LOAD_MAX = 2.0
"""How much longer the load may last, while somebody is still to be killed."""
TICK_S, LOOK_EVERY_S = 0.5, 5.0
DRAIN_S, FIGURES_S = 300.0, 60.0
WHOLE_RUN_MINUTES = 10.0
"""A shorter run has no time to lose all of Ray, and is half outages: too few views for a time to the threshold."""


@dataclass
class Soak:
    """All that is known while it runs."""

    options: SoakOptions
    console: Console
    sent: Sent = field(default_factory=Sent)
    seen: Seen = field(default_factory=Seen)
    samples: list[Sample] = field(default_factory=list)
    figures_at_kill: dict[str, float | None] = field(default_factory=dict)
    began_s: float = 0.0

    def elapsed_s(self) -> float:
        """Seconds since the load began."""
        return time.time() - self.began_s


def run_soak(settings: Settings, options: SoakOptions, console: Console) -> int:
    """Run a soak in the folder of the settings and return the exit status."""
    started_s = time.time()
    ports = {name: free_port() for name in (*PORTS, "serve__port")}
    settings = settings_of(settings, options, ports=ports)
    past, later = split(load_timeline(), options.share)
    console.print(f"[bold]1 of 4[/]  cold start on {len(past.watches()):,} watches")
    _bootstrap(settings, past, console)
    soak = Soak(options, console)
    stream = Stream(options, past, later, soak.seen)
    console.print("[bold]2 of 4[/]  freshet up")
    with Running(settings, dict(os.environ)) as running:
        running.wait()
        running.set_topics(topic_configs(options))
        report, checks = _measured(running, soak, stream)
        checks["down in order, and nothing left"] = running.stop()
    report |= {"checks": checks, "passed": not any(checks.values())}
    report |= {"options": asdict(options), "wall_s": round(time.time() - started_s), **provenance()}
    path = settings.var_dir / "report.json"
    write_atomically(path, (json.dumps(report, indent=2) + "\n").encode())
    show(report, checks, console)
    console.print(f"{report['wall_s']} s in all. Report: {path}", soft_wrap=True)
    return 0 if report["passed"] else 1


def _bootstrap(settings: Settings, past: Timeline, console: Console) -> None:
    with kafka_running(settings) as running, progress_bars(console) as progress:
        bootstrap(
            running, past, config=bootstrap_config("tiny"), quantizer=QUANTIZER, progress=progress
        )


def _measured(
    running: Running, soak: Soak, stream: Stream
) -> tuple[dict[str, Any], dict[str, list[str]]]:
    options, console = soak.options, soak.console
    names = victims(options.seed, whole_ray=options.minutes >= WHOLE_RUN_MINUTES)
    plan = plan_kills(
        names,
        seed=options.seed,
        from_s=KILLS_FROM * options.load_s,
        until_s=KILLS_UNTIL * options.load_s,
    )
    gap_s = (1 - JITTER) * (KILLS_UNTIL - KILLS_FROM) * options.load_s / len(plan)
    killer = Killer(plan, running.processes, gap_s=gap_s)
    following = Following(running.settings, soak.seen)
    sender = Sender(running.settings.kafka, options, stream, soak.sent)
    asker = Asker(running.url, options, stream, soak.seen)

    def check() -> None:
        for one in (running, following, sender, asker):
            one.check()

    console.print(
        f"[bold]3 of 4[/]  {options.minutes:g} min of load: {options.uploads_per_s:g} uploads, "
        f"{options.watches_per_s:g} watches and {options.requests_per_s:g} requests a second; "
        f"{len(plan)} kills; records are kept for {options.retention_s:.0f} s"
    )
    soak.began_s = time.time()
    sender.start()
    asker.start()
    try:
        _under_load(running, soak, killer, asker, check)
        sender.stop()
        console.print("[bold]4 of 4[/]  drain, and check")
        _drain(running, soak, killer, asker, check)
    finally:
        sender.halt()
        asker.stop()
        following.stop()
    check()
    checks = _checks(running, soak, killer, asker)
    load_s = options.load_s
    report = {
        "stream": sent_report(soak.sent, soak.seen),
        "kills": kills_report(killer.killed, soak.began_s),
        "requests": requests_report(asker.asked, killer.killed),
        "figures": _current(running),
        **samples_report(soak.samples, load_s=load_s),
    }
    return report, checks


def _under_load(
    running: Running, soak: Soak, killer: Killer, asker: Asker, check: Callable[[], None]
) -> None:
    load_s, looked_s = soak.options.load_s, 0.0
    while (elapsed_s := soak.elapsed_s()) < load_s or (
        killer.left and elapsed_s < LOAD_MAX * load_s
    ):
        check()
        killed = killer.kill_due(elapsed_s)
        if killed is not None:
            soak.console.print(f"  {elapsed_s:5.0f} s  kill -9 {killed.victim} ({killed.pid})")
            if killed.victim == "freshness":
                soak.figures_at_kill = _current(running)  # it has just written them
        killer.look()
        if soak.elapsed_s() - looked_s >= LOOK_EVERY_S:
            looked_s = soak.elapsed_s()
            _look(running, soak, killer, asker)
        time.sleep(TICK_S)


def _look(running: Running, soak: Soak, killer: Killer, asker: Asker) -> None:
    """Take a sample, and print a line of where everything is."""
    settings, sent, seen = running.settings, soak.sent, soak.seen
    memory = {one: own for one in running.processes() if (own := own_bytes(one.pid)) is not None}
    disk = disk_bytes(settings.var_dir, ray_session(running.pid))
    came_in = {"shards": seen.shard_bytes}
    sample = Sample(soak.elapsed_s(), memory, disk, sent.num_records, came_in)
    soak.samples.append(sample)
    answered = sum(one.status == 200 for one in asker.asked)
    soak.console.print(
        f"  {sample.at_s:5.0f} s  {len(sent.uploads)} uploads, {len(seen.servable)} servable · "
        f"{len(sent.watches)} watches, {len(seen.in_shards)} in {len(seen.shards)} shards · "
        f"refreshes {sum(seen.refreshes.values())} · {answered} of {len(asker.asked)} answered · "
        f"{sum(memory.values()) / 1e6:,.0f} MB in {len(memory)} processes, "
        f"{sum(disk.values()) / 1e6:,.1f} MB on disk · "
        f"{len(killer.killed)} of {len(killer.killed) + len(killer.left)} killed",
        soft_wrap=True,
        highlight=False,
    )


def _drain(
    running: Running, soak: Soak, killer: Killer, asker: Asker, check: Callable[[], None]
) -> None:
    """Wait until nothing is missing any more, or it takes too long; the checks say what still is."""
    ends, looked_s = time.monotonic() + DRAIN_S, 0.0
    while time.monotonic() < ends:
        check()
        killer.look()
        missing = _missing(running, soak) + not_back(killer.killed)
        if not missing:
            return
        if soak.elapsed_s() - looked_s >= LOOK_EVERY_S:
            looked_s = soak.elapsed_s()
            soak.console.print(f"  {looked_s:5.0f} s  {missing[0]}", soft_wrap=True, markup=False)
        time.sleep(TICK_S)


def _missing(running: Running, soak: Soak) -> list[str]:
    models = running.settings.training.models
    return (
        lost(soak.sent, soak.seen)
        + not_refused(soak.sent, soak.seen)
        + not_learned(soak.seen, models)
    )


def _checks(running: Running, soak: Soak, killer: Killer, asker: Asker) -> dict[str, list[str]]:
    options, settings = soak.options, running.settings
    asked_for = {name for each in expressions() for name in metrics_in(each)}
    return {
        "nothing is lost": lost(soak.sent, soak.seen),
        "what is announced is true (freshet shards verify)": list(
            audit(settings.kafka, ObjectStore(settings.storage.root)).problems
        ),
        "broken records are dead letters, with the reason": not_refused(soak.sent, soak.seen),
        "every model learned every shard, once": not_learned(soak.seen, settings.training.models),
        "answers are right, and fail only while who answers is dead": answered_badly(
            asker.asked, killer.killed
        ),
        "all figures flow": _figures(running, soak),
        "every metric of the dashboard is exposed": metrics_missing(asked_for, running.exposed()),
        "everybody was killed, and is back": not_back(killer.killed)
        + [f"{name} was never there to be killed" for name in killer.left],
        "memory is flat": memory_problems(soak.samples, load_s=options.load_s),
        "disk is bounded by retention": _disk(soak, settings),
    }


def _figures(running: Running, soak: Soak) -> list[str]:
    ends = time.monotonic() + FIGURES_S
    while True:
        found = _current(running)
        if soak.options.minutes < WHOLE_RUN_MINUTES:
            found.pop(OF_ANY_ARM, None)
        problems = figures_stopped(soak.figures_at_kill, found)
        if not problems or time.monotonic() > ends:
            return problems
        time.sleep(TICK_S)


def _current(running: Running) -> dict[str, float | None]:
    report = running.figures()
    return figures_of(report) if report else {}


def _disk(soak: Soak, settings: Settings) -> list[str]:
    options = soak.options
    bounds = [
        Bound("topics that forget", options.retention_s, options.retained_s),
        Bound("shards", SHARDS_RETENTION_S, options.shards_retained_s),
    ]
    problems = []
    for bound in bounds:
        if bound.is_judged(options.load_s):
            problems += bound_problems(soak.samples, bound)
        else:
            soak.console.print(
                f"  {bound.area}: not judged, the run is too short for what is kept {bound.kept_s:.0f} s"
            )
    problems += thirds_problems(soak.samples, "checkpoints", load_s=options.load_s)
    return problems + log_problems(settings.var_dir, max_bytes=settings.log.file_max_bytes)
