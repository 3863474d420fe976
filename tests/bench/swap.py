"""Models swapped under load: does any request fail, does any answer lie, how much later do answers come.

Two replicas get requests from Vegeta at half the sustainable rate, without a pause. Quiet windows alternate with others
in each of which a spoiled checkpoint and then a good one, of weights of its own, are promoted. Then a replica is killed
while it reads a checkpoint, Ray starts another, late, in its place, and a pointer to the version before takes all back.
`BENCH_SCALE=0.1` makes catalogue, windows and their number a tenth, to try it; figures mean something at 1 only, which
takes some eight minutes. Needs Vegeta, or Go to build it.
"""

from __future__ import annotations

import os
import random
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from infra.errors import FreshetError
from streams.client import TopicReader
from streams.codec import decode
from streams.events import CheckpointPromoted, SwapReported
from streams.topics import SWAPS
from tests.bench.measure import Measure, measured
from tests.bench.parts.bad_checkpoints import SPOILED
from tests.bench.parts.http_answers import content, described, is_answered, is_by_model, latency_s
from tests.bench.parts.http_load import Answer, Load, vegeta
from tests.bench.parts.marks import say
from tests.bench.parts.recomputed import Recomputed
from tests.bench.parts.serving_stage import Stage, World, request_bodies, serving_stage
from tests.bench.parts.sustainable import find_sustainable

VIDEOS, USERS, REPLICAS = 20_000, 1_000, 2
PAIRS, WINDOW_S = 20, 7.0
SPOILED_AT, GOOD_AT = 0.1, 0.4  # shares of a window
STEP_S, HOLD_S = 6.0, 12.0
LOAD_SHARE = 0.5
CHECKED_PER_VERSION = 4
MID_SWAP_S, LATE_S, ROLLED_BACK_S = 30.0, 300.0, 4.0
POLL_S = 0.002
RECOMMENDATIONS = "/v1/recommendations"


@dataclass
class Promoted:
    """What was promoted when; good checkpoints by version, and when each was announced, on the wall clock."""

    good: dict[int, CheckpointPromoted]
    at_s: dict[int, float] = field(default_factory=dict)
    spoiled: int = 0


@dataclass
class Run:
    """Everything that was measured.

    Attributes:
        pairs: of windows, as (quiet from, swaps from, until), on the wall clock.
        rolled_back: when the pointer back was sent, and which version that takes away.
    """

    promoted: Promoted
    answers: list[Answer]
    pairs: list[tuple[float, float, float]]
    killed_in_swap: bool
    rolled_back: tuple[float, int]
    reports: list[SwapReported] = field(default_factory=list)


def measure() -> list[Measure]:
    """Swap, spoil, kill and roll back under load; then check every answer."""
    scale = float(os.environ.get("BENCH_SCALE", "1"))
    program = vegeta()
    world = World(max(100, round(VIDEOS * scale)), max(20, round(USERS * scale)))
    pairs, window_s = max(2, round(PAIRS * scale)), max(4.0, WINDOW_S * scale)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with serving_stage(folder, world, replicas=REPLICAS) as stage:
            requests = world.requests()
            load = Load(program, stage.url + RECOMMENDATIONS, request_bodies(requests), folder)
            run = _run(stage, load, pairs, window_s)
        return measures(run, stage, requests)


def _run(stage: Stage, load: Load, pairs: int, window_s: float) -> Run:
    say(f"writing {2 * pairs + 2} checkpoints")
    good = [stage.checkpoints.write(2 + number) for number in range(pairs + 1)]
    spoiled = [
        spoil(stage.checkpoints.write(1_000 + number), stage.folder / "store")
        for number, spoil in zip(range(pairs), cycle(SPOILED.values()), strict=False)
    ]
    load.send(1.0, STEP_S / 2)  # warm-up
    rate = LOAD_SHARE * find_sustainable(load.send, step_s=STEP_S, hold_s=HOLD_S).rate_per_s
    promoted = Promoted({1: stage.checkpoints.first} | {one.model_version: one for one in good})
    promoted.at_s[1] = 0.0
    windows = []
    with load.sending(rate) as (answers, _):
        time.sleep(window_s / 2)
        for number, (one, bad) in enumerate(zip(good[:-1], spoiled, strict=True)):
            windows.append(_pair(stage, one, bad, promoted, window_s))
            say(f"pair {number + 1} of {pairs}: version {one.model_version} promoted")
        killed_in_swap = _killed_in_swap(stage, good[-1], promoted)
        stage.wait_ready(replicas=REPLICAS, model_version=good[-1].model_version)
        say("the replica that was killed has another in its place, which has the current version")
        rolled_back = stage.promote(good[-2]), good[-1].model_version
        time.sleep(ROLLED_BACK_S)
    say(f"all: {described(answers)}")
    run = Run(promoted, answers, windows, killed_in_swap, rolled_back)
    with TopicReader(stage.settings.kafka, [SWAPS]) as reader:
        run.reports = [decode(SwapReported, message.value()) for _, message in reader.read_to_end()]
    return run


def _pair(
    stage: Stage,
    good: CheckpointPromoted,
    bad: CheckpointPromoted,
    promoted: Promoted,
    window_s: float,
) -> tuple[float, float, float]:
    """Let a window pass, then promote a spoiled and a good checkpoint in another."""
    quiet_s = time.time()
    time.sleep(window_s)
    swaps_s = time.time()
    time.sleep(SPOILED_AT * window_s)
    stage.promote(bad)
    promoted.spoiled += 1
    time.sleep((GOOD_AT - SPOILED_AT) * window_s)
    promoted.at_s[good.model_version] = time.time()
    stage.promote(good)
    time.sleep(max(0.0, swaps_s + window_s - time.time()))
    return quiet_s, swaps_s, time.time()


def _killed_in_swap(stage: Stage, good: CheckpointPromoted, promoted: Promoted) -> bool:
    """Promote a checkpoint and kill a replica as soon as it has a file of it open; return whether it had."""
    victim = stage.replicas()[0]
    folder = f"{stage.settings.storage.root}/{good.path}/"
    promoted.at_s[good.model_version] = time.time()
    stage.promote(good)
    ends = time.monotonic() + MID_SWAP_S
    reading = False
    while not reading and time.monotonic() < ends:
        reading = reads(victim, folder)
        time.sleep(POLL_S)
    victim.kill()
    say(
        f"killed replica {victim.pid}, {'while it read' if reading else 'which was not seen to read'} {good.path}"
    )
    return reading


def reads(process: psutil.Process, folder: str) -> bool:
    """Return whether a process has a file below a folder open, or mapped into its memory."""
    proc = Path("/proc") / str(process.pid)
    with suppress(OSError):
        if folder in (proc / "maps").read_text():
            return True
        for link in (proc / "fd").iterdir():
            with suppress(OSError):
                if str(link.readlink()).startswith(folder):
                    return True
    return False


def measures(run: Run, stage: Stage, requests: Sequence[dict[str, Any]]) -> list[Measure]:
    """Turn what was measured into the report's lines."""
    beside, alone = beside_loads(run.answers, run.reports)
    say(f"while a model was loaded: {described(beside)}")
    say(f"otherwise: {described(alone)}")
    checked, wrong, told_apart = _checked(run, stage, requests)
    rolled_back_s, taken_back = run.rolled_back
    rolled_back, last_answer = rollback_s(run.answers, rolled_back_s, taken_back)
    inconsistent = wrong + sum(not is_possible(one, run.promoted) for one in run.answers)
    return [
        measured("swaps", _swapped(run), "swaps", more=True),
        measured("requests", len(run.answers), "requests", more=True),
        measured("failed_requests", sum(one.code != 200 for one in run.answers), "requests"),
        measured("answered_without_model", _without_model(run.answers), "requests"),
        measured("p99_over_steady", p99_over_steady(run.answers, run.pairs), "times"),
        measured("rollback_s", rolled_back, "s"),
        measured("rollback_last_answer_s", last_answer, "s"),
        measured("promoted_spoiled", run.promoted.spoiled, "checkpoints", more=True),
        measured("served_spoiled", _served_spoiled(run), "answers"),
        measured("killed_in_swap", float(run.killed_in_swap), "replicas", more=True),
        measured("inconsistent_answers", inconsistent, "answers"),
        measured("recomputed_answers", checked, "answers", more=True),
        measured("versions_told_apart_share", told_apart, "share", more=True),
    ]


def _swapped(run: Run) -> int:
    """Return how many good versions every replica of that time swapped in under load."""
    by_version = Counter(
        report.model_version for report in run.reports if report.outcome == "succeeded"
    )
    last = max(run.promoted.good)
    return sum(
        by_version[version] >= (REPLICAS if version < last else 1)
        for version in run.promoted.good
        if version > 1
    )


def _served_spoiled(run: Run) -> int:
    return sum(
        content(one)["model_version"] not in run.promoted.good
        for one in run.answers
        if is_by_model(one)
    )


def _without_model(answers: Sequence[Answer]) -> int:
    return sum(is_answered(one) and not is_by_model(one) for one in answers)


def p99_over_steady(
    answers: Sequence[Answer], pairs: Sequence[tuple[float, float, float]]
) -> float:
    """Return the median, over the pairs of windows, of p99 with swaps over p99 without."""

    def p99(from_s: float, until_s: float) -> float:
        return latency_s(one for one in answers if from_s <= one.sent_s < until_s)

    return median(p99(swaps, until) / p99(quiet, swaps) for quiet, swaps, until in pairs)


def beside_loads(
    answers: Sequence[Answer], reports: Sequence[SwapReported]
) -> tuple[list[Answer], list[Answer]]:
    """Return the answers that were under way while some replica loaded a model, and all others."""
    loads = [
        (report.swapped_time_ms / 1000 - report.load_s, report.swapped_time_ms / 1000)
        for report in reports
    ]
    beside, alone = list[Answer](), list[Answer]()
    for one in answers:
        overlaps = any(began < one.done_s and one.sent_s < ended for began, ended in loads)
        (beside if overlaps else alone).append(one)
    return beside, alone


def rollback_s(answers: Sequence[Answer], sent_s: float, version: int) -> tuple[float, float]:
    """Return how long after the pointer back the version that it takes away has had its last say.

    First by when requests were sent: those from then on are all answered by another version. Then by when the last
    answer to an earlier one was there, which has waited as long as others do.
    """
    taken_back = [
        one
        for one in answers
        if one.done_s > sent_s and is_answered(one) and content(one)["model_version"] == version
    ]
    if not taken_back:
        return 0.0, 0.0
    if is_by_model(answers[-1]) and content(answers[-1])["model_version"] == version:
        raise FreshetError(
            f"version {version} still answers {ROLLED_BACK_S} s after it was taken back"
        )
    last_s = max(one.sent_s for one in taken_back)
    next_s = min((one.sent_s for one in answers if one.sent_s > last_s), default=last_s)
    return max(0.0, next_s - sent_s), max(one.done_s for one in taken_back) - sent_s


def is_possible(answer: Answer, promoted: Promoted) -> bool:
    """Return whether an answer by the model names a version that had been promoted when it was there."""
    if not is_by_model(answer):
        return True
    at_s = promoted.at_s.get(content(answer)["model_version"])
    return at_s is not None and at_s <= answer.done_s


def _checked(run: Run, stage: Stage, requests: Sequence[dict[str, Any]]) -> tuple[int, int, float]:
    """Recompute some answers of each version: how many, how many are wrong, and whose versions could be mixed up."""
    by_version: Mapping[int, list[Answer]] = defaultdict(list)
    for one in filter(is_by_model, run.answers):
        by_version[content(one)["model_version"]].append(one)
    recomputed = Recomputed(
        Path(stage.settings.storage.root),
        run.promoted.good,
        {video.video_id: video for video in stage.world.videos},
        stage.world.histories,
    )
    rng = random.Random(0)
    checked = wrong = apart = 0
    for version in sorted(set(by_version) & set(run.promoted.good)):
        found = by_version[version]
        for one in rng.sample(found, min(CHECKED_PER_VERSION, len(found))):
            request, items = requests[one.number], content(one)["items"]
            other = version - 1 if version > 1 else version + 1
            checked += 1
            wrong += not recomputed.agrees(request, items, version)
            apart += not recomputed.agrees(request, items, other)
    if not checked:
        raise FreshetError("no answer of a model came back, so none could be checked")
    return checked, wrong, apart / checked
