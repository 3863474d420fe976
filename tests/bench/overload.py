"""Twice as many requests as can be sustained: what is answered, by whom, how late, and at what cost of memory.

An endpoint of two replicas gets requests at a constant rate from Vegeta, whatever becomes of them. The sustainable rate
is the highest at which the model itself answers every request, 99 of 100 within half a second; twice that is sent for
two minutes, and half of it afterwards, to see it recover. `BENCH_SCALE=0.1` makes catalogue and durations a tenth, to
try it; figures mean something at 1 only, which takes some six minutes. Needs Vegeta, or Go to build it.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bench.measure import Measure, measured
from tests.bench.parts.http_answers import (
    TOO_MANY,
    described,
    is_answered,
    is_by_model,
    is_failed,
    latency_s,
)
from tests.bench.parts.http_load import Answer, Load, vegeta
from tests.bench.parts.marks import say
from tests.bench.parts.serving_stage import Stage, World, request_bodies, serving_stage
from tests.bench.parts.sustainable import Sustainable, find_sustainable

VIDEOS, USERS, REPLICAS = 20_000, 1_000, 2
STEP_S, HOLD_S, OVERLOAD_S, RECOVERY_S = 8.0, 30.0, 120.0, 20.0
EARLY = 0.25
"""Share of the overload after which memory is taken for warm."""
OVERLOAD, AFTERWARDS = 2.0, 0.5
SAMPLE_S = 1.0
RECOMMENDATIONS = "/v1/recommendations"
MB = 1e6


@dataclass(frozen=True)
class Run:
    """Everything that was measured."""

    sustainable: Sustainable
    overload: list[Answer]
    overload_s: float
    rss_bytes: list[int]
    afterwards: list[Answer]


def measure() -> list[Measure]:
    """Find the sustainable rate, send twice that, and watch it recover."""
    scale = float(os.environ.get("BENCH_SCALE", "1"))
    program = vegeta()
    world = World(max(100, round(VIDEOS * scale)), max(20, round(USERS * scale)))
    with (
        tempfile.TemporaryDirectory() as folder,
        serving_stage(Path(folder), world, replicas=REPLICAS) as stage,
    ):
        bodies = request_bodies(world.requests())
        load = Load(program, stage.url + RECOMMENDATIONS, bodies, Path(folder))
        return measures(_run(stage, load, scale))


def _run(stage: Stage, load: Load, scale: float) -> Run:
    load.send(1.0, STEP_S / 2)  # warm-up
    sustainable = find_sustainable(
        load.send, step_s=max(3.0, STEP_S * scale), hold_s=max(5.0, HOLD_S * scale)
    )
    duration_s = max(10.0, OVERLOAD_S * scale)
    with _memory_of(stage) as rss_bytes:
        overload = load.send(OVERLOAD * sustainable.rate_per_s, duration_s)
    say(f"overload: {described(overload)}")
    afterwards = load.send(AFTERWARDS * sustainable.rate_per_s, max(5.0, RECOVERY_S * scale))
    say(f"afterwards: {described(afterwards)}")
    return Run(sustainable, overload, duration_s, rss_bytes, afterwards)


@contextmanager
def _memory_of(stage: Stage) -> Iterator[list[int]]:
    """Sample the resident memory of all that answers while the context runs."""
    samples: list[int] = []
    stopping = threading.Event()

    def sample() -> None:
        while not stopping.wait(SAMPLE_S):
            samples.append(stage.rss_bytes())

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        stopping.set()
        thread.join()


def measures(run: Run) -> list[Measure]:
    """Turn what was measured into the report's lines."""
    answered = [answer for answer in run.overload if is_answered(answer)]
    own = [answer for answer in answered if is_by_model(answer)]
    ends_s = run.overload[0].sent_s + run.overload_s
    in_time = sum(answer.done_s <= ends_s for answer in own)
    refused = sum(answer.code == TOO_MANY for answer in run.overload)
    total, rate = len(run.overload), run.sustainable.rate_per_s
    early = run.rss_bytes[round(EARLY * len(run.rss_bytes))]
    return [
        measured("sustainable_per_s", rate, "requests/s", more=True),
        measured("sustainable_p99_ms", 1000 * run.sustainable.p99_s, "ms"),
        measured("requests", total, "requests", more=True),
        measured("errors_5xx", sum(map(is_failed, run.overload)), "requests"),
        measured("goodput_over_sustainable", in_time / run.overload_s / rate, "times", more=True),
        measured("answered_without_model_share", (len(answered) - len(own)) / total, "share"),
        measured("refused_share", refused / total, "share"),
        measured("p99_ms", 1000 * latency_s(answered), "ms"),
        measured("p99_over_steady", latency_s(answered) / run.sustainable.p99_s, "times"),
        measured("rss_mb", early / MB, "MB"),
        measured("rss_growth_mb", (run.rss_bytes[-1] - early) / MB, "MB"),
        measured("recovery_s", recovery_s(run.afterwards), "s"),
    ]


def recovery_s(afterwards: Sequence[Answer]) -> float:
    """Return for how long after the overload requests were still not answered by the model itself."""
    late = [answer.sent_s for answer in afterwards if not is_by_model(answer)]
    return max(late) - afterwards[0].sent_s if late else 0.0
