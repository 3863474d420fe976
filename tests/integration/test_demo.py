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

from infra.clock import Deadline
from infra.storage import ObjectStore
from streams.events import LRM_MODEL_NAME
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
    "20",  # long enough for three rounds on a slow machine
)


def environment(var_dir: Path) -> dict[str, str]:
    return os.environ | {"FRESHET_VAR_DIR": str(var_dir), "FRESHET_WATCHES__SHARD_MAX_AGE_S": "4"}


@pytest.fixture(scope="module")
def var_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def demo(var_dir: Path) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    finished = subprocess.run(
        [sys.executable, "-m", "freshet", "demo", *SLICE],
        cwd=ROOT, env=environment(var_dir), capture_output=True, text=True, timeout=850, check=False,
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


@pytest.fixture
def heeding_ctrl_c() -> Iterator[None]:
    """Start processes that heed Ctrl-C: a shell's background job ignores it, and so do all that it starts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


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
