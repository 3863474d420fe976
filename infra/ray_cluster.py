"""Joining a Ray cluster, or being one, in a context that leaves nothing running behind it."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

# Read by Ray when it is first imported: no usage reports, no surprise for programs that manage GPUs themselves, and
# workers that are as nice as they say: Ray begins them at 15 of 19, where who gives way to whom is hardly felt.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_worker_niceness", "0")

import ray

from infra.clock import Deadline
from infra.settings import Settings

JOIN_S = 120.0
"""How long a cluster may take that is just being started, or started again."""
OBJECT_STORE_BYTES = 512 * 1024 * 1024  # rounds hand over rows, not data sets


@contextmanager
def ensure_ray(settings: Settings) -> Iterator[str]:
    """Join the cluster at `FRESHET_RAY__ADDRESS`, or start a local one; yield its address.

    A cluster started here ends with the context, or with this process, however that dies. Another one is waited for.

    Raises:
        ConnectionError: no cluster is at that address in time.
    """
    on_sigterm = signal.getsignal(signal.SIGTERM)
    if settings.ray.address:
        _join(settings.ray.address)
    else:
        ray.init(
            include_dashboard=False,
            log_to_driver=True,
            logging_level=logging.ERROR,
            object_store_memory=OBJECT_STORE_BYTES,
            _node_ip_address="127.0.0.1",
        )
    if threading.current_thread() is threading.main_thread() and on_sigterm is not None:
        signal.signal(
            signal.SIGTERM, on_sigterm
        )  # ray.init puts in its own, which exits at any line
    try:
        yield str(ray.get_runtime_context().gcs_address)
    finally:
        ray.shutdown()


def _join(address: str) -> None:
    deadline = Deadline(JOIN_S)
    while True:
        try:
            ray.init(address=address, log_to_driver=True, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError):  # there is none, or none that knows its own node
            if deadline.expired():
                raise
        else:
            return
        time.sleep(1.0)
