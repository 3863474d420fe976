"""The Grafana dashboard, written as a table of panels; `python -m infra.dashboard` writes the JSON that Grafana loads.

A row of panels is a list of `Panel`; places and colours follow. Knows nothing of what the metrics mean.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.metrics import STAGE_METRICS

WRITTEN = Path(__file__).parent / "grafana" / "provisioning" / "dashboards" / "freshet.json"
SOURCE = {"type": "prometheus", "uid": "prometheus"}
WIDTH, HEIGHT, COLUMNS = 24, 7, 3  # Grafana's grid is 24 wide
PANEL_WIDTH = WIDTH // COLUMNS


@dataclass(frozen=True)
class Panel:
    """Lines over time.

    Attributes:
        queries: PromQL to legend; `{{label}}` is that label's value.
        unit: as Grafana calls it: s, percentunit, reqps, short, bytes.
        about: what is seen, for the tooltip.
        thresholds: values to draw a line at.
    """

    title: str
    queries: dict[str, str]
    unit: str = "short"
    about: str = ""
    thresholds: tuple[float, ...] = ()


def _quantiles(histogram: str, by: str, where: str = "", legend: str = "") -> dict[str, str]:
    """Return queries for the p50 and p99 of a histogram's last five minutes."""
    legend = legend or f"{{{{{by}}}}}"
    labels = f"le, {by}" if by else "le"
    return {
        f"histogram_quantile({share}, sum by ({labels}) (rate({histogram}_bucket{where}[5m])))": (
            f"{legend} p{share * 100:.0f}"
        )
        for share in (0.5, 0.99)
    }


def _per_s(counter: str, by: str, where: str = "") -> dict[str, str]:
    legend = " ".join(f"{{{{{label}}}}}" for label in by.split(", "))
    return {f"sum by ({by}) (rate({counter}{where}[5m]))": legend}


def _gauge(name: str, by: str, legend: str = "") -> dict[str, str]:
    return {
        f"max by ({by}) ({name})": legend
        or " ".join(f"{{{{{label}}}}}" for label in by.split(", "))
    }


ROWS: dict[str, Sequence[Panel]] = {
    "Promises": [
        Panel(
            "Error budget: how many times too fast it burns",
            {"slo:errors:ratio1h / slo:error_budget:ratio": "{{slo}} 1 h"},
            about="1 uses the budget up in 28 days; 14.4 pages.",
            thresholds=(1, 6, 14.4),
        ),
        Panel(
            "Bad events of the last five minutes",
            {"slo:errors:ratio5m": "{{slo}}"},
            unit="percentunit",
        ),
        Panel(
            "Alerts that fire",
            {'count by (alertname, severity) (ALERTS{alertstate="firing"})': "{{alertname}}"},
        ),
    ],
    "Cold start, by arm": [
        Panel(
            "Coverage: share of impressions that are new videos",
            {
                '(sum by (arm) (rate(freshet_freshness_impressions_total{new="true"}[5m]))'
                " or 0 * sum by (arm) (rate(freshet_freshness_impressions_total[5m])))"
                " / sum by (arm) (rate(freshet_freshness_impressions_total[5m]))": "{{arm}}"
            },
            unit="percentunit",
        ),
        Panel(
            "Coverage so far, by surface",
            _gauge("freshet_freshness_coverage_ratio", "arm, surface"),
            unit="percentunit",
        ),
        Panel(
            "New videos shown at least once",
            _gauge("freshet_freshness_new_videos_shown_ratio", "arm"),
            unit="percentunit",
            about="Of the uploads that are still new or within their window.",
        ),
        Panel(
            "Velocity: new videos that reach the view threshold in time",
            _gauge("freshet_freshness_threshold_reached_ratio", "arm"),
            unit="percentunit",
            about="Of those whose window is over for good; without one there is no line yet.",
        ),
        Panel(
            "Velocity: from upload to the view threshold",
            _gauge(
                "freshet_freshness_time_to_threshold_seconds",
                "arm, quantile",
                "{{arm}} {{quantile}}",
            ),
            unit="s",
            about="Event time, of those that reached it, also while the window of others still runs.",
        ),
        Panel(
            "Effective vocabulary: videos that make 95 % of impressions",
            _gauge("freshet_freshness_effective_vocabulary_videos", "arm"),
        ),
        Panel(
            "Clicks per impression",
            _gauge("freshet_freshness_clicks_per_impression", "arm"),
            about="Watches that name the arm, over the newest hours: late by the sealing of their shards.",
        ),
        Panel(
            "Likes per impression",
            _gauge("freshet_freshness_likes_per_impression", "arm"),
            about="As the clicks.",
        ),
        Panel(
            "Impressions per second",
            _per_s("freshet_freshness_impressions_total", "arm"),
            unit="reqps",
        ),
    ],
    "Stages": [
        Panel(
            "Delay of each stage",
            {
                query: legend
                for stage, name in STAGE_METRICS.items()
                for query, legend in _quantiles(name, "", legend=stage).items()
            },
            unit="s",
            thresholds=(5, 60, 300),
        ),
        Panel(
            "All delays so far, as the topics tell them",
            _gauge("freshet_freshness_delay_seconds", "stage, quantile"),
            unit="s",
        ),
        Panel(
            "Since each stage last succeeded",
            {"time() - max by (stage) (freshet_last_success_timestamp_seconds)": "{{stage}}"},
            unit="s",
        ),
        Panel("Records waiting", _gauge("freshet_consumer_lag_records", "job, topic")),
        Panel(
            "Records per second",
            _per_s("freshet_records_total", "topic, outcome"),
            unit="reqps",
        ),
        Panel(
            "Dead letters per second",
            _per_s("freshet_dlq_records_total", "topic, reason"),
            unit="reqps",
        ),
    ],
    "Requests": [
        Panel(
            "What callers get",
            {
                **_per_s("freshet_ingress_responses_total", "code", '{route=~"/v1/.*"}'),
                "sum(rate(freshet_serving_degraded_total[5m]))": "without the LRM",
            },
            unit="reqps",
        ),
        Panel(
            "Seconds to an answer",
            _quantiles("freshet_ingress_response_seconds", "route", '{route=~"/v1/.*"}'),
            unit="s",
        ),
        Panel(
            "Requests per second, by replica",
            _per_s("freshet_serving_requests_total", "replica, status"),
            unit="reqps",
        ),
        Panel(
            "Seconds in a replica",
            _quantiles("freshet_serving_request_seconds", "route"),
            unit="s",
        ),
        Panel(
            "Wait for a search",
            _quantiles(
                "freshet_serving_search_wait_seconds", "replica", legend="replica {{replica}}"
            ),
            unit="s",
        ),
        Panel(
            "Requests searched together",
            {
                "sum by (replica) (rate(freshet_serving_search_batch_requests_sum[5m]))"
                " / sum by (replica) (rate(freshet_serving_search_batch_requests_count[5m]))": (
                    "replica {{replica}}"
                )
            },
        ),
        Panel(
            "Replicas",
            {
                "max(freshet_ingress_replicas_answering)": "answering",
                "max(freshet_ingress_replicas_wanted)": "wanted",
            },
        ),
        Panel(
            "Live videos",
            {'max by (replica) (freshet_serving_live_videos{replica!=""})': "replica {{replica}}"},
        ),
        Panel(
            "Asked of the catalogue, and lost impressions, per second",
            {
                **_per_s("freshet_serving_neighbours_total", "outcome"),
                "sum(rate(freshet_serving_impressions_lost_total[5m]))": "impressions lost",
            },
            unit="reqps",
        ),
    ],
    "Models": [
        Panel(
            "Version that serves",
            {
                **_gauge("freshet_serving_model_version", "model_name, replica"),
                "max by (model_name) (freshet_freshness_model_version)": "{{model_name}} by its swaps",
            },
        ),
        Panel(
            "Since it was promoted",
            {
                "time() - min by (model_name)"
                " (freshet_serving_model_promoted_timestamp_seconds)": "{{model_name}}"
            },
            unit="s",
        ),
        Panel(
            "Since the newest watch that it knows",
            {
                "time() - min by (model_name)"
                " (freshet_serving_model_trained_until_timestamp_seconds)": "{{model_name}}",
                "time() - max by (model_name)"
                " (freshet_freshness_trained_until_timestamp_seconds)": "{{model_name}} by its events",
            },
            unit="s",
            about="On the events' clock: of a replay, as old as what is replayed.",
        ),
        Panel(
            "Swaps per hour",
            {
                "sum by (model, outcome) (increase(freshet_serving_swaps_total[1h]))": "{{model}} {{outcome}}"
            },
        ),
        Panel(
            "Rounds per hour",
            {
                "sum by (model_name, outcome) (increase(freshet_training_rounds_total[1h]))": (
                    "{{model_name}} {{outcome}}"
                ),
                "sum by (adapter, outcome) (increase(freshet_training_adapters_total[1h]))": (
                    "{{adapter}} {{outcome}}"
                ),
                "sum by (outcome) (increase(freshet_table_builds_total[1h]))": "table {{outcome}}",
            },
        ),
        Panel(
            "Prequential recall@10, by earlier watches of the video",
            _gauge("freshet_training_prequential_recall_ratio", "model_name, earlier_watches"),
            unit="percentunit",
        ),
        Panel("Shards waiting", _gauge("freshet_training_backlog_shards", "model_name")),
        Panel("Watches waiting", _gauge("freshet_training_backlog_watches", "model_name")),
        Panel(
            "Not learned, per second",
            {
                "sum by (model_name) (rate(freshet_training_watches_left_out_total[5m]))": (
                    "{{model_name}} left out"
                ),
                "sum by (model_name) (rate(freshet_training_unknown_videos_total[5m]))": (
                    "{{model_name}} unknown video"
                ),
                "sum by (model_name) (rate(freshet_training_shards_skipped_total[5m]))": (
                    "{{model_name}} shard skipped"
                ),
            },
            unit="reqps",
        ),
    ],
    "Codebook and shards": [
        Panel(
            "Residual norm of new videos over that of the fit",
            _gauge("freshet_codebook_residual_norm_ratio", "quantile"),
        ),
        Panel(
            "Divergence of the codes' use, bits",
            _gauge("freshet_codebook_usage_divergence", "level", "level {{level}}"),
        ),
        Panel(
            "New videos that share all codes",
            {"max(freshet_codebook_collision_ratio)": "share"},
            unit="percentunit",
        ),
        Panel("New videos in these figures", {"max(freshet_codebook_window_videos)": "videos"}),
        Panel(
            "Shards per hour",
            {"sum by (outcome) (increase(freshet_shard_seal_total[1h]))": "{{outcome}}"},
        ),
        Panel(
            "Watches in shards, per second",
            {
                "sum(rate(freshet_late_watches_total[5m]))": "late",
                "sum(rate(freshet_unlabelled_watches_total[5m]))": "without a semantic ID",
            },
            unit="reqps",
        ),
    ],
    "Processes": [
        Panel("Up", {"max by (job) (up)": "{{job}}"}),
        Panel(
            "Memory",
            _gauge("process_resident_memory_bytes", "job, replica"),
            unit="bytes",
        ),
        Panel(
            "Cores used",
            _per_s("process_cpu_seconds_total", "job, replica"),
        ),
        Panel(
            "Lag of the uploads worker's event loop",
            _quantiles("freshet_worker_loop_lag_seconds", "", legend="lag"),
            unit="s",
        ),
    ],
}


def queries() -> Iterator[str]:
    """Yield every expression of the dashboard."""
    for panels in ROWS.values():
        for panel in panels:
            yield from panel.queries


def dashboard() -> dict[str, Any]:
    """Return the dashboard as Grafana stores it; it draws, and asks for, only what is in view."""
    placed: list[dict[str, Any]] = []
    y = 0
    for title, panels in ROWS.items():
        row = {"type": "row", "title": title, "collapsed": False, "panels": []}
        placed.append(row | {"gridPos": {"x": 0, "y": y, "w": WIDTH, "h": 1}})
        y += 1
        for index, panel in enumerate(panels):
            line, column = divmod(index, COLUMNS)
            placed.append(_drawn(panel, x=column * PANEL_WIDTH, y=y + line * HEIGHT))
        y += HEIGHT * math.ceil(len(panels) / COLUMNS)
    for number, each in enumerate(placed, start=1):
        each["id"] = number
    return {
        "uid": "freshet",
        "title": "Freshet",
        "tags": ["freshet"],
        "schemaVersion": 39,
        "editable": False,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "panels": placed,
    }


def _drawn(panel: Panel, *, x: int, y: int) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    steps += [{"color": "red", "value": value} for value in panel.thresholds]
    style = "line" if panel.thresholds else "off"
    return {
        "type": "timeseries",
        "title": panel.title,
        "description": panel.about,
        "datasource": SOURCE,
        "gridPos": {"x": x, "y": y, "w": PANEL_WIDTH, "h": HEIGHT},
        "fieldConfig": {
            "defaults": {
                "unit": panel.unit,
                "min": 0,
                "custom": {"fillOpacity": 5, "thresholdsStyle": {"mode": style}},
                "thresholds": {"mode": "absolute", "steps": steps},
            },
            "overrides": [],
        },
        "options": {
            "tooltip": {"mode": "multi", "sort": "desc"},
            "legend": {"displayMode": "list"},
        },
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": SOURCE,
                "expr": query,
                "legendFormat": legend,
            }
            for index, (query, legend) in enumerate(panel.queries.items())
        ],
    }


def as_json() -> str:
    """Return the file's content, a panel a line."""
    board = dashboard()
    panels = ",\n".join(json.dumps(panel) for panel in board.pop("panels"))
    return json.dumps(board)[:-1] + ', "panels": [\n' + panels + "\n]}\n"


if __name__ == "__main__":
    WRITTEN.write_text(as_json())
