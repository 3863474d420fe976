"""Reads a histogram of loop lag from a process's /metrics; knows nothing of what that process does."""

from __future__ import annotations

import httpx
from prometheus_client.parser import text_string_to_metric_families

from infra.clock import Deadline

LAG = "freshet_worker_loop_lag_seconds"
Buckets = dict[float, float]


def lag_buckets(port: int, *, timeout_s: float = 60) -> Buckets:
    """Return the cumulative counts by upper bound, waiting for the process to answer."""
    deadline = Deadline(timeout_s)
    while True:
        try:
            text = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=10).text
            break
        except httpx.TransportError:
            if deadline.expired():
                raise
    families = {family.name: family for family in text_string_to_metric_families(text)}
    return {
        float(sample.labels["le"]): sample.value
        for sample in families[LAG].samples
        if sample.name.endswith("_bucket")
    }


def quantile_s(before: Buckets, after: Buckets, q: float) -> float:
    """Return the quantile of what was observed between the two readings, by interpolation as PromQL does."""
    counts = [(bound, after[bound] - before.get(bound, 0.0)) for bound in sorted(after)]
    rank = q * counts[-1][1]
    lower, below = 0.0, 0.0
    for bound, count in counts:
        if count >= rank:
            if bound == float("inf"):
                return lower
            return lower + (bound - lower) * (rank - below) / max(1e-9, count - below)
        lower, below = bound, count
    return lower
