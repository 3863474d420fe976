"""The Ray cluster of one machine as a process, `python -m infra.ray_head`; knows nothing of what runs on it.

It ends as soon as a part of Ray has ended that the rest cannot do without, and takes all of Ray with it: a supervisor
then starts it again, at the same address, and with it whatever was connected to it.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NoReturn

import psutil

from infra.log import configure, get_logger
from infra.ray_cluster import ensure_ray
from infra.settings import load_settings, with_values
from infra.stopping import stop_on_signal
from infra.storage import write_atomically

COMMAND = (sys.executable, "-m", "infra.ray_head")
DISCOVERY_FILE = "ray.json"
PORT_VARIABLE = "RAY_GCS_SERVER_PORT"
"""Read by Ray: where a cluster that it starts is found."""
STARTS, TIMED_OUT = 3, "timed out during startup"
"""Ray gives its own start 30 s, which nothing can change; a machine that is busy needs longer now and then."""
VITAL = ("gcs_server", "raylet")
POLL_S = 0.5


def read_address(var_dir: Path) -> str | None:
    """Return where the cluster is found; None before it has started."""
    try:
        address: str = json.loads((var_dir / DISCOVERY_FILE).read_text())["address"]
    except FileNotFoundError:
        return None
    return address


def run(starts_left: int = STARTS - 1) -> None:
    """Be the cluster until SIGTERM or SIGINT; with status 1 when a vital part of it ends before.

    A start that Ray gave up for lack of time is made again, so many times.
    """
    settings = with_values(load_settings(), ray__address="")
    configure("ray", level=settings.log.level, format=settings.log.format)
    stopping = stop_on_signal()
    with ExitStack() as stack:
        try:
            address = stack.enter_context(ensure_ray(settings))
        except Exception as error:  # Ray raises nothing narrower
            if TIMED_OUT not in str(error) or not starts_left:
                raise
            get_logger().warning("ray_start_timed_out", starts_left=starts_left)
            _begin_anew(starts_left - 1)
        parts = [child for child in psutil.Process().children() if child.name() in VITAL]
        write_atomically(
            settings.var_dir / DISCOVERY_FILE, json.dumps({"address": address}).encode()
        )
        while not stopping.wait(POLL_S):
            if ended := [part.pid for part in parts if not _lives(part)]:
                get_logger().error("ray_ended", pids=ended)
                # Leaving in order would wait for what is gone; the kernel ends the rest.
                os._exit(1)


def _begin_anew(starts_left: int) -> NoReturn:
    """Become a fresh process: a second start in this one would meet what Ray remembers of the first."""
    children = psutil.Process().children(recursive=True)
    for child in children:
        with suppress(psutil.NoSuchProcess):
            child.kill()
    psutil.wait_procs(children)
    os.execv(sys.executable, (*COMMAND, str(starts_left)))


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


if __name__ == "__main__":
    run(*map(int, sys.argv[1:]))
