"""The soak that `make soak` runs for half an hour, shortened to minutes: every process killed once, nothing lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from infra.clock import Deadline

pytestmark = [pytest.mark.integration, pytest.mark.long, pytest.mark.timeout(1500)]
ROOT = Path(__file__).parents[2]
SHORT = (
    "--minutes", "6", "--share", "0.03",
    "--uploads-per-s", "0.5", "--watches-per-s", "8", "--requests-per-s", "1.5",
)  # fmt: skip


def environment(var_dir: Path) -> dict[str, str]:
    return os.environ | {"FRESHET_VAR_DIR": str(var_dir)}


@pytest.fixture(scope="module")
def soak(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    var_dir = tmp_path_factory.mktemp("soak")
    finished = subprocess.run(
        [sys.executable, "-m", "tests.soak", *SHORT],
        cwd=ROOT, env=environment(var_dir), capture_output=True, text=True, timeout=1400, check=False,
    )  # fmt: skip
    path = var_dir / "soak" / "report.json"
    return finished, json.loads(path.read_text()) if path.exists() else {}


def test_short_soak_holds_every_check(
    soak: tuple[subprocess.CompletedProcess[str], dict[str, Any]],
) -> None:
    finished, report = soak
    assert report, finished.stdout[-3000:] + finished.stderr[-3000:]
    assert {name: found for name, found in report["checks"].items() if found} == {}
    assert finished.returncode == 0, finished.stdout[-3000:] + finished.stderr[-3000:]


def test_short_soak_killed_one_of_each_process_and_had_load_meanwhile(
    soak: tuple[subprocess.CompletedProcess[str], dict[str, Any]],
) -> None:
    _, report = soak
    killed = {one["victim"] for one in report["kills"]}
    assert {"uploads", "watches", "freshness", "catalogue", "serve", "train", "table"} <= killed
    assert {"replica", "lrm trainer", "two-tower trainer", "decoder", "kafka"} <= killed
    assert killed & {"raylet", "gcs_server", "ray head"}
    assert report["stream"]["watches"] > 1_000
    assert report["stream"]["dead_letters"] >= report["stream"]["broken_records"] > 30
    assert min(report["stream"]["checkpoints"].values()) > 2


def test_soak_that_is_told_to_end_leaves_nothing_running(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.soak", *SHORT],
        cwd=ROOT, env=environment(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    log, deadline = tmp_path / "soak" / "logs" / "train.log", Deadline(800)
    while not log.exists():
        assert process.poll() is None
        assert not deadline.expired(), "the training process was never started"
        time.sleep(0.5)
    started = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 130, output[-3000:]
    _, alive = psutil.wait_procs(started, timeout=60)
    assert [one.cmdline() for one in alive] == []
