"""How long an event loop keeps its callbacks waiting; knows nothing of what runs on it."""

from __future__ import annotations

import asyncio
import time

from prometheus_client import Histogram

INTERVAL_S = 0.02


async def observe_lag(lag: Histogram) -> None:
    """Sleep again and again, and observe by how much each sleep was too long; runs until cancelled."""
    due = time.perf_counter()
    while True:
        due += INTERVAL_S
        await asyncio.sleep(due - time.perf_counter())
        late_s = time.perf_counter() - due
        lag.observe(max(0.0, late_s))
        due = max(
            due, time.perf_counter() - INTERVAL_S
        )  # wakings that were missed are not made up for
