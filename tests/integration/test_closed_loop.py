"""The closed loop as a user runs it, on a small world: real Kafka, Faust, Ray, Ray Serve and HTTP."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from infra.clock import Deadline

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1200)]
ROOT = Path(__file__).parents[2]
COMMAND = [
    sys.executable, "-m", "freshet", "demo", "--closed-loop", "--model", "tiny", "--viewers", "6",
    "--videos", "300", "--hours", "4", "--uploads-per-h", "4", "--asks-per-day", "24", "--window-h", "2",
    "--refresh-h", "2", "--view-threshold", "5",
]  # fmt: skip
ARMS = ["two_tower_hash", "two_tower_cluster", "lrm", "lrm_fresh", "two_tower_hash_random_new"]


@pytest.mark.long
def test_closed_loop_ends_well_and_every_arm_is_asked_and_refreshed(tmp_path: Path) -> None:
    finished = subprocess.run(
        COMMAND,
        cwd=ROOT, env=os.environ | {"FRESHET_VAR_DIR": str(tmp_path)}, capture_output=True, text=True,
        timeout=1100, check=False,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stdout[-3000:] + finished.stderr[-3000:]
    assert "missing:" not in finished.stdout
    report = json.loads((tmp_path / "closed_loop" / "report.json").read_text())
    assert report["requests_failed"] == report["requests_of_another_arm"] == 0
    assert report["uploads_servable"] == report["uploads"] == 16
    assert report["watches_in_shards"] == report["watches"] > 0
    assert set(report["refreshes"]) == {"lrm", "two_tower_cluster", "two_tower_hash"}
    assert min(report["refreshes"].values()) >= 1
    assert list(report["arms"]) == ARMS
    asked = {arm: report["counts"][arm]["requests"] for arm in ARMS}
    assert set(asked.values()) == {report["requests"] / len(ARMS)}  # twins ask alike
    sources = report["sources"]
    assert sources["lrm"].keys() == {"lrm"}
    assert sources["two_tower_hash"].keys() == {"two_tower"}
    assert "random_new" in sources["two_tower_hash_random_new"]
    for arm in ("lrm_fresh", "two_tower_hash_random_new"):
        assert report["arms"][arm]["coverage"]["value"] > 0.05


def test_sigterm_leaves_nothing_running(tmp_path: Path) -> None:
    process = subprocess.Popen(
        COMMAND,
        cwd=ROOT, env=os.environ | {"FRESHET_VAR_DIR": str(tmp_path)}, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    deadline = Deadline(300)
    while not (tmp_path / "closed_loop" / "kafka" / "node.json").exists():
        assert process.poll() is None
        assert not deadline.expired(), "the broker was never started"
        time.sleep(0.5)
    started = psutil.Process(process.pid).children(recursive=True)
    assert started
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 130, output[-3000:]
    _, alive = psutil.wait_procs(started, timeout=60)
    assert [one.cmdline() for one in alive] == []
