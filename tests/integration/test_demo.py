"""The whole loop as a user runs it, on a small slice: real Kafka, Faust, Ray, Ray Serve and HTTP."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from infra import dashboard
from infra.clock import Deadline
from infra.metrics import STAGE_METRICS
from infra.storage import ObjectStore
from streams.events import LRM_MODEL_NAME
from tests.integration.prometheus_process import PrometheusProcess, free_ports
from tests.prometheus_queries import expressions, metrics_in
from workers.trainers import TRAINERS
from workers.training_state import checkpoint_versions, read_record

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[2]
SLICE = (
    "--model",
    "tiny",
    "--share",
    "0.05",
    "--watches",
    "900",
    "--requests",
    "40",
    "--events-per-s",
    "12",  # long enough for three rounds on a slow machine
)


# The jobs of Prometheus, and the settings of their ports.
JOBS = {
    "uploads": "UPLOADS", "watches": "WATCHES", "freshness": "FRESHNESS", "catalogue": "CATALOGUE",
    "train": "TRAINING", "table": "TABLE",
}  # fmt: skip
# What may have no sample in so short a run: drift takes 100 uploads, velocity some hours, a replay leaps over the days
# in which a video is new, and nothing goes wrong.
NOT_IN_A_SLICE = {
    "freshet_codebook_residual_norm_ratio", "freshet_codebook_usage_divergence",
    "freshet_dlq_records_total", "freshet_training_adapters_total", "freshet_freshness_new_videos_shown_ratio",
    "freshet_freshness_threshold_reached_ratio", "freshet_freshness_time_to_threshold_seconds",
}  # fmt: skip


def environment(var_dir: Path) -> dict[str, str]:
    return os.environ | {"FRESHET_VAR_DIR": str(var_dir), "FRESHET_WATCHES__SHARD_MAX_AGE_S": "4"}


@pytest.fixture(scope="module")
def var_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def ports() -> dict[str, int]:
    return dict(zip(JOBS, free_ports(len(JOBS)), strict=True))


@pytest.fixture(scope="module")
def prometheus(var_dir: Path, ports: dict[str, int]) -> Iterator[PrometheusProcess]:
    """Started before the demo, and still there after it, so that everything can be asked for in peace."""
    serve_json = var_dir / "demo" / "serve.json"
    with PrometheusProcess(var_dir / "prometheus", ports, serve_json=serve_json) as running:
        yield running


@pytest.fixture(scope="module")
def demo(
    var_dir: Path, ports: dict[str, int], prometheus: PrometheusProcess
) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    exposed = {f"FRESHET_METRICS__{JOBS[job]}_PORT": str(port) for job, port in ports.items()}
    finished = subprocess.run(
        [sys.executable, "-m", "freshet", "demo", *SLICE],
        cwd=ROOT, env=environment(var_dir) | exposed, capture_output=True, text=True, timeout=850, check=False,
    )  # fmt: skip
    path = var_dir / "demo" / "report.json"
    return finished, json.loads(path.read_text()) if path.exists() else {}


def test_demo_ends_well_and_says_so(
    demo: tuple[subprocess.CompletedProcess[str], dict[str, Any]],
) -> None:
    finished, _ = demo
    assert finished.returncode == 0, finished.stdout[-3000:] + finished.stderr[-3000:]
    assert "missing:" not in finished.stdout


def test_every_watch_is_in_exactly_one_shard(
    demo: tuple[subprocess.CompletedProcess[str], dict[str, Any]],
) -> None:
    _, report = demo
    assert report["watches"] == report["watches_in_shards"] == report["watches_served"] == 900
    assert report["dead_letters"] == 0


def test_every_upload_gets_a_semantic_id_of_its_own(
    demo: tuple[subprocess.CompletedProcess[str], dict[str, Any]],
) -> None:
    _, report = demo
    assert report["uploads"] > 20
    assert report["semantic_ids_assigned"] == report["unique_semantic_ids"]
    assert report["semantic_ids_assigned"] == report["bootstrap"]["videos"] + report["uploads"]


def test_checkpoints_are_swapped_in_without_a_failed_request(
    demo: tuple[subprocess.CompletedProcess[str], dict[str, Any]],
) -> None:
    _, report = demo
    assert report["requests"] == 40
    assert report["requests_failed"] == 0
    assert report["recommended_not_live"] == 0
    assert report["distinct_swaps"] >= 3
    assert report["distinct_checkpoints"] == report["checkpoints"]


def test_cold_start_fits_two_towers_that_the_report_does_not_count(
    demo: tuple[subprocess.CompletedProcess[str], dict[str, Any]], var_dir: Path
) -> None:
    _, report = demo
    store = ObjectStore(str(var_dir / "demo" / "store"))
    first = {
        name: read_record(store, name, checkpoint_versions(store, name)[0]) for name in TRAINERS
    }
    assert {one["codebook_version"] for one in first.values()} == {1}
    assert report["checkpoints"] < checkpoint_versions(store, LRM_MODEL_NAME)[-1]


def test_every_stage_has_a_delay(
    demo: tuple[subprocess.CompletedProcess[str], dict[str, Any]],
) -> None:
    _, report = demo
    for name in (
        "upload_to_sid_s", "upload_to_servable_s", "watch_to_shard_s", "shard_to_checkpoint_s",
        "checkpoint_to_serving_s", "watch_to_serving_s",
    ):  # fmt: skip
        assert 0 < report[name]["p50"] <= report[name]["p99"], name


@pytest.mark.usefixtures("demo")
def test_every_process_was_scraped_and_every_metric_is_exposed_by_one(
    prometheus: PrometheusProcess,
) -> None:
    assert {labels["job"] for labels in prometheus.ever("up == 1")} == {*JOBS, "serve"}
    exposed = {name.removesuffix("_total") for name in prometheus.families}
    asked_for = {name for each in expressions() for name in metrics_in(each)}
    assert {
        name
        for name in asked_for - {"up"}
        if not name.startswith("slo:") and not exposed & _families_of(name)
    } == set()


@pytest.mark.usefixtures("demo")
def test_each_stage_is_timed_by_one_kind_of_process(prometheus: PrometheusProcess) -> None:
    timed = {
        (stage, labels["job"])
        for stage, name in STAGE_METRICS.items()
        for labels in prometheus.ever(f"{name}_count > 0")
    }
    assert len(timed) == len({stage for stage, _ in timed}) > 0, timed


def _families_of(series: str) -> set[str]:
    ends = ("_total", "_bucket", "_sum", "_count")
    return {series} | {series.removesuffix(end) for end in ends}


@pytest.mark.usefixtures("demo")
@pytest.mark.parametrize("query", list(dashboard.queries()))
def test_panel_shows_something_of_a_running_system(
    prometheus: PrometheusProcess, query: str
) -> None:
    found = prometheus.ever(query)
    if not found:  # then there was nothing to show
        assert (metrics_in(query) or {"ALERTS"}) & (NOT_IN_A_SLICE | {"ALERTS"})


@pytest.mark.usefixtures("demo")
def test_rules_are_evaluated_and_a_run_that_went_well_pages_nobody(
    prometheus: PrometheusProcess,
) -> None:
    assert {rule["health"] for rule in prometheus.rules()} == {"ok"}
    judged = prometheus.ever("slo:errors:ratio1h >= 0")
    assert {labels["slo"] for labels in judged} == {
        "requests", "upload_to_servable", "upload_to_servable_5s", "watch_to_serving",
    }  # fmt: skip
    pages = prometheus.ever(
        'ALERTS{alertstate="firing", alertname=~"ErrorBudget.*", slo="requests"}'
    )
    assert pages == []


@pytest.fixture
def heeding_ctrl_c() -> Iterator[None]:
    """Start processes that heed Ctrl-C: a shell's background job ignores it, and so do all that it starts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.long  # `make test` interrupts the closed loop
@pytest.mark.timeout(1200)
@pytest.mark.usefixtures("heeding_ctrl_c")
def test_interrupted_demo_leaves_nothing_running(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "freshet", "demo", *SLICE],
        cwd=ROOT, env=environment(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    log = tmp_path / "demo" / "logs" / "uploads.log"
    deadline = Deadline(800)
    while not log.exists():
        assert process.poll() is None
        assert not deadline.expired(), "the uploads worker was never started"
        time.sleep(0.5)
    started = psutil.Process(process.pid).children(recursive=True)
    assert len(started) > 5
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 130, output[-3000:]
    _, alive = psutil.wait_procs(started, timeout=60)
    assert [one.cmdline() for one in alive] == []
