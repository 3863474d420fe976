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
    """Set all gauges from the figures as they are reported; what nobody knows, or no longer, is not exposed.

    Delays only as quantiles of all so far: for a window, take the stages' histograms.
    """
    for arm, surfaces in report["by_arm"].items():
        for surface, shown in surfaces.items():
            _set(metrics.COVERAGE, shown["coverage"], arm, surface)
    for arm, figures in report["cold_start"]["arms"].items():
        for name, gauge in _OF_AN_ARM.items():
            _set(gauge, figures[name], arm)
        for quantile, share in (("p50", "0.5"), ("p90", "0.9")):
            _set(metrics.TIME_TO_THRESHOLD, figures["time_to_threshold_s"][quantile], arm, share)
    for stage, delays in report["delays_s"].items():
        for quantile, share in (("p50", "0.5"), ("p99", "0.99")):
            _set(metrics.DELAY_QUANTILE, delays[quantile], stage, share)
    for name, version in report["model_versions"].items():
        metrics.MODEL_VERSION.labels(name).set(version)
    for name, until_ms in report["trained_until_ms"].items():
        metrics.TRAINED_UNTIL.labels(name).set(until_ms / 1000)


def _set(gauge: Gauge, value: float | None, *labels: str) -> None:
    """Expose a value; without one the last is taken away, which would look as if it were of today."""
    if value is None:
        gauge.remove(*labels)
    else:
        gauge.labels(*labels).set(value)
