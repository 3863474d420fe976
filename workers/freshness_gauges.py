"""The figures of freshness as Prometheus gauges; knows nothing of how they come about. Ids are never labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prometheus_client import Gauge

from infra import metrics

_OF_AN_ARM: Mapping[str, Gauge] = {
    "shown_share": metrics.NEW_VIDEOS_SHOWN,
    "reached_share": metrics.THRESHOLD_REACHED,
    "effective_vocabulary": metrics.EFFECTIVE_VOCABULARY,
    "clicks_per_impression": metrics.CLICKS_PER_IMPRESSION,
    "likes_per_impression": metrics.LIKES_PER_IMPRESSION,
}


def expose_report(report: Mapping[str, Any]) -> None:
    """Set all gauges from the figures as they are reported; what nobody knows yet keeps its last value, or has none.

    Delays only as quantiles of all so far: for a window, take `freshet_stage_delay_seconds`.
    """
    for arm, surfaces in report["by_arm"].items():
        for surface, shown in surfaces.items():
            metrics.COVERAGE.labels(arm, surface).set(shown["coverage"] or 0.0)
    for arm, figures in report["cold_start"]["arms"].items():
        for name, gauge in _OF_AN_ARM.items():
            if figures[name] is not None:
                gauge.labels(arm).set(figures[name])
        for quantile, share in (("p50", "0.5"), ("p90", "0.9")):
            if (seconds := figures["time_to_threshold_s"][quantile]) is not None:
                metrics.TIME_TO_THRESHOLD.labels(arm, share).set(seconds)
    for stage, delays in report["delays_s"].items():
        for quantile, share in (("p50", "0.5"), ("p99", "0.99")):
            if delays[quantile] is not None:
                metrics.DELAY_QUANTILE.labels(stage, share).set(delays[quantile])
    for name, version in report["model_versions"].items():
        metrics.MODEL_VERSION.labels(name).set(version)
    for name, until_ms in report["trained_until_ms"].items():
        metrics.TRAINED_UNTIL.labels(name).set(until_ms / 1000)
