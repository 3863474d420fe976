"""The process that is a machine's Ray: a first start that Ray gives up for lack of time, then a real one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from infra.ray_head import read_address
from infra.settings import Settings, as_environment
from streams.client import wait_until

pytestmark = [pytest.mark.integration, pytest.mark.long]
REPOSITORY = Path(__file__).parents[2]
SLOW_ONCE = """
import ray._private.services as services

def too_early(*_, **__):
    raise RuntimeError("the raylet is not there yet")

services.get_node = too_early
from infra.ray_head import run
run()
"""
"""A slow raylet cannot be caused at will. The second start is in a fresh process, and nothing in it is changed."""


def test_start_that_took_too_long_is_made_again_in_a_fresh_process(tmp_path: Path) -> None:
    with (tmp_path / "ray.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", SLOW_ONCE],
            cwd=REPOSITORY,
            env=as_environment(Settings(var_dir=tmp_path)) | {"PYTHONPATH": str(REPOSITORY)},
            stdout=log,
            stderr=log,
        )

    def is_up() -> bool:
        assert process.poll() is None, (tmp_path / "ray.log").read_text()
        return read_address(tmp_path) is not None

    try:
        wait_until(is_up, timeout_s=240, what="Ray's second start")
        assert (tmp_path / "ray.log").read_text().count("ray_start_timed_out") == 1
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
