"""The process that has the offline table built once a day: `freshet table run`.

    waits for   the next build to be due, then for a process of its own that does it
    produces    nothing itself: that process announces the table

A build is a process of its own, nice and with one thread, so that its memory is free for the rest of the day and so
that SIGTERM ends it at once. When one is due follows from the last announcement, so a restart changes nothing. Knows
nothing of what a build does (`workers.table_build`).
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from confluent_kafka import KafkaException

from infra import metrics
from infra.child import TETHER
from infra.clock import now_ms
from infra.errors import TransientError
from infra.log import configure, get_logger
from infra.settings import Settings, TableSettings, as_environment
from infra.stopping import stop_on_signal
from streams.client import TopicReader
from streams.events import LRM_MODEL_NAME, TABLE_MODEL_NAME, CheckpointPromoted
from streams.topics import COUNTS
from workers.table_store import read_pointers

RETRY_S = 600.0
"""After a build that failed, and where there is nothing to build from yet."""
POLL_S = 0.2
STOP_S = 3.0
"""What a build that is stopped is given to end before it is killed."""
BUILD = (sys.executable, "-m", "freshet", "table", "build")

log = get_logger()


def due_in_s(
    announced: CheckpointPromoted | None, settings: TableSettings, *, at_ms: int, started_ms: int
) -> float:
    """Return the seconds until a build is due; 0 or less: now.

    Without a table it is due some time after the start, so that what a first start has to do comes first.
    """
    if announced is None:
        return settings.first_build_s - (at_ms - started_ms) / 1000
    return settings.interval_h * 3600 - (at_ms - announced.promoted_time_ms) / 1000


class TableSchedule:
    """Waits and has built, until told to stop."""

    def __init__(
        self, settings: Settings, stopping: threading.Event, *, command: Sequence[str] = BUILD
    ) -> None:
        self._settings, self._stopping, self._command = settings, stopping, tuple(command)
        self._started_ms = now_ms()

    def run(self, *, at_once: bool = False) -> None:
        """Build when it is due, and first of all now if `at_once`.

        Delivery: stopped or killed, a build that is under way ends with this process and is done again from its start.
        """
        while not self._stopping.is_set():
            wait_s = 0.0 if at_once else self._due_in_s()
            if wait_s > 0:
                self._stopping.wait(min(wait_s, RETRY_S))  # an operator's build moves what is due
                continue
            at_once = False
            outcome = self._build()
            metrics.TABLE_BUILDS.labels(outcome).inc()
            if outcome != "published":
                self._stopping.wait(RETRY_S)

    def _due_in_s(self) -> float:
        """Return when the next build is due, or a while where that cannot be told, or nothing can be built yet."""
        try:
            pointers = read_pointers(self._settings.kafka)
            missing = "" if LRM_MODEL_NAME in pointers else "an LRM"
            missing = missing or ("" if self._has_counts() else "views")
        except (KafkaException, TransientError) as error:
            log.warning("topics_unreachable", view="table", error=str(error))
            return RETRY_S
        due_s = due_in_s(
            pointers.get(TABLE_MODEL_NAME),
            self._settings.table,
            at_ms=now_ms(),
            started_ms=self._started_ms,
        )
        if due_s <= 0 and missing:
            log.info("table_waits", missing=missing)
            return RETRY_S
        return due_s

    def _has_counts(self) -> bool:
        with TopicReader(self._settings.kafka, [COUNTS]) as reader:
            return any(reader.end_offsets().values())

    def _build(self) -> str:
        """Run a build to its end and return what came of it."""
        tethered = [sys.executable, "-I", str(TETHER), str(os.getpid()), *self._command]
        environment = dict(os.environ) | as_environment(self._settings) | {"OMP_NUM_THREADS": "1"}
        log.info("table_build_started")
        process = subprocess.Popen(tethered, env=environment, stdin=subprocess.DEVNULL)
        while process.poll() is None:
            if self._stopping.wait(POLL_S):
                _end(process)
                return "stopped"
        if process.returncode == 0:
            metrics.LAST_SUCCESS.labels("table_build").set_to_current_time()
            return "published"
        log.error("table_build_failed", status=process.returncode, again_in_s=RETRY_S)
        return "failed"


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_S)
        return
    process.kill()
    process.wait()


def run(settings: Settings, *, at_once: bool = False) -> None:
    """Be the process that has tables built, until SIGTERM or SIGINT."""
    configure("table", level=settings.log.level, format=settings.log.format)
    metrics.expose(settings.metrics.host, settings.metrics.table_port)
    for outcome in ("published", "failed"):
        metrics.TABLE_BUILDS.labels(outcome)
    stopping = stop_on_signal()
    Path(settings.var_dir).mkdir(parents=True, exist_ok=True)
    TableSchedule(settings, stopping).run(at_once=at_once)
