"""Five arms before the same viewers, in a closed loop through the live endpoint: which brings new videos to people?

Each seed is a world of its own: `freshet demo --closed-loop` with everything that it starts. Figures are quotients of
two arms on the same viewers and videos within a seed; over seeds their geometric mean with the interval of a t-test on
their logarithms, or with one seed the interval within it. Velocity is the hash arm's median time to the view threshold
over the arm's, a video that never gets there counted with the whole window.

A seed takes a quarter of an hour or more. What it measured is kept in `var/bench/closed_loop`, and is not measured
again at the same commit without changes: `BENCH_SEEDS="0 1"`, then `BENCH_SEEDS="0 1 2"` measures two and one.
`BENCH_SCALE=0.1` is a small try, whose figures mean nothing.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from infra.errors import FreshetError
from infra.provenance import ROOT, commit
from infra.settings import load_settings
from infra.storage import write_atomically
from tests.bench.measure import Measure
from tests.bench.parts.marks import say

SEEDS = (0, 1, 2)
FULL = {
    "viewers": 90, "videos": 800, "hours": 42.0, "uploads-per-h": 2.0, "asks-per-day": 8.0,
    "window-h": 24.0, "refresh-h": 3.0, "view-threshold": 5,
}  # fmt: skip
LEAST = {"viewers": 6, "videos": 200, "hours": 6.0, "window-h": 2.0, "refresh-h": 1.0}
T_975 = (math.inf, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Of Student's distribution, by degrees of freedom."""
HASH, CLUSTER, LRM, FRESH = "two_tower_hash", "two_tower_cluster", "lrm", "lrm_fresh"
RANDOM_NEW = "two_tower_hash_random_new"
SHORT = {
    HASH: "hash",
    CLUSTER: "cluster_ids",
    LRM: "lrm",
    FRESH: "lrm_fresh",
    RANDOM_NEW: "random_new",
}
QUOTIENTS = {
    "coverage": ("coverage", (CLUSTER, LRM, FRESH, RANDOM_NEW)),
    "velocity": ("time_to_threshold_s", (CLUSTER, LRM, FRESH, RANDOM_NEW)),
    "reached_share": ("reached_share", (CLUSTER, LRM, FRESH, RANDOM_NEW)),
    "new_views": ("new_views_per_request", (CLUSTER, LRM, FRESH, RANDOM_NEW)),
    "watch_time": ("watched_s_per_request", (CLUSTER, LRM, FRESH, RANDOM_NEW)),
    "clicks": ("clicks_per_impression", (CLUSTER, LRM, FRESH)),
    "likes": ("likes_per_impression", (CLUSTER, LRM, FRESH)),
    "effective_vocabulary": ("effective_vocabulary", (CLUSTER, LRM)),
}
OWN_UNITS = {
    "coverage": "share", "shown_share": "share", "reached_share": "share", "time_to_threshold_s": "s",
    "clicks_per_impression": "clicks", "likes_per_impression": "likes", "watched_s_per_request": "s",
    "new_views_per_request": "views", "effective_vocabulary": "videos",
}  # fmt: skip
Report = Mapping[str, Any]


def measure() -> list[Measure]:
    """Measure each seed that is not measured yet; return the quotients over all of them."""
    scale = float(os.environ.get("BENCH_SCALE", "1"))
    seeds = [int(one) for one in os.environ.get("BENCH_SEEDS", "").split()] or list(SEEDS)
    if scale < 1:
        seeds = seeds[:1]
    options = scaled(scale)
    return measures([_measured(seed, options) for seed in seeds])


def scaled(scale: float) -> dict[str, str]:
    """Return the demo's options at a scale."""
    found = {
        name: max(LEAST[name], value * scale) if name in LEAST else value
        for name, value in FULL.items()
    }
    whole = {name for name, value in FULL.items() if isinstance(value, int)}
    texts = {name: str(round(value) if name in whole else value) for name, value in found.items()}
    return texts | {"model": "nano" if scale >= 0.5 else "tiny"}


def _measured(seed: int, options: Mapping[str, str]) -> Report:
    """Return a seed's report, run now or kept from before."""
    kept_in = load_settings().var_dir / "bench" / "closed_loop"
    at = commit()
    known = kept_in / f"seed-{seed}.json"
    if known.exists():
        kept: Report = json.loads(known.read_text())
        if kept["commit"] == at and not at.endswith("-dirty") and kept["asked"] == options:
            say(f"seed {seed} was measured at this commit")
            return kept
    say(f"seed {seed}")
    report = _run(seed, options, kept_in / "run") | {"asked": options, "commit": at}
    write_atomically(known, (json.dumps(report, indent=2) + "\n").encode())
    return report


def _run(seed: int, options: Mapping[str, str], var_dir: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "freshet", "demo", "--closed-loop"]
    command += [word for name, value in options.items() for word in (f"--{name}", value)]
    environment = os.environ | {"FRESHET_SEED": str(seed), "FRESHET_VAR_DIR": str(var_dir)}
    finished = subprocess.run(command, cwd=ROOT, env=environment, check=False, stdout=sys.stderr)
    if finished.returncode:
        raise FreshetError(
            f"seed {seed}: the closed loop ended with {finished.returncode}; logs: {var_dir}/closed_loop/logs"
        )
    report: dict[str, Any] = json.loads((var_dir / "closed_loop" / "report.json").read_text())
    return report


def measures(reports: Sequence[Report]) -> list[Measure]:
    """Return the report's lines: quotients first, then each arm's own figures, averaged over the seeds."""
    lines = [
        over(reports, f"{what}_{SHORT[arm]}_over_hash", figure, arm, HASH)
        for what, (figure, arms) in QUOTIENTS.items()
        for arm in arms
    ]
    lines += [
        over(
            reports,
            f"watch_time_{SHORT[arm]}_over_random_new",
            "watched_s_per_request",
            arm,
            RANDOM_NEW,
        )
        for arm in (LRM, FRESH)
    ]
    lines += [
        mean(reports, arm, figure, unit) for figure, unit in OWN_UNITS.items() for arm in SHORT
    ]
    lines += [
        Measure(
            measure=f"refreshes_{name}",
            value=fmean(report["refreshes"][name] for report in reports),
            unit="swaps",
            higher_is_better=True,
        )
        for name in reports[0]["refreshes"]
    ]
    return lines


def over(reports: Sequence[Report], name: str, figure: str, arm: str, baseline: str) -> Measure:
    """Return how many times the baseline's figure an arm's is; of times the other way round."""
    quotients = []
    for report in reports:
        ours, theirs = (report["arms"][one][figure]["value"] for one in (arm, baseline))
        if figure.startswith("time_to"):
            ours, theirs = theirs, ours
        if not ours or not theirs:
            raise FreshetError(
                f"{name}, seed {report['seed']}: {ours} cannot be compared with {theirs}"
            )
        quotients.append(ours / theirs)
    value, ci = geometric_mean(quotients)
    if (
        len(reports) == 1
        and baseline == reports[0]["baseline"]
        and figure in reports[0]["over_baseline"][arm]
    ):
        within = reports[0]["over_baseline"][arm][figure]
        ci = (within["ci_low"], within["ci_high"])
    return Measure(measure=name, value=value, unit="times", higher_is_better=True, ci=ci)


def geometric_mean(values: Sequence[float]) -> tuple[float, tuple[float, float]]:
    """Return it with its 95 % interval, by a t-test on the logarithms; of one value the interval is that value."""
    logs = [math.log(value) for value in values]
    middle, half = fmean(logs), _half_width(logs)
    return math.exp(middle), (math.exp(middle - half), math.exp(middle + half))


def mean(reports: Sequence[Report], arm: str, figure: str, unit: str) -> Measure:
    """Return an arm's own figure, averaged over the seeds."""
    found = [report["arms"][arm][figure] for report in reports]
    value, half = fmean(one["value"] for one in found), _half_width([one["value"] for one in found])
    ci = (value - half, value + half)
    if len(found) == 1:
        ci = (found[0]["ci_low"], found[0]["ci_high"])
    return Measure(
        measure=f"{SHORT[arm]}_{figure}",
        value=value,
        unit=unit,
        higher_is_better=not figure.startswith("time_to"),
        ci=ci,
    )


def _half_width(values: Sequence[float]) -> float:
    if len(values) < 2:
        return 0.0
    freedom = min(len(values) - 1, len(T_975) - 1)
    return T_975[freedom] * stdev(values) / math.sqrt(len(values))
