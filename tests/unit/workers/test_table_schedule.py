"""When a table is due, and that what builds it ends with its schedule."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import psutil
import pytest

from infra import metrics
from infra.settings import Settings, TableSettings, with_values
from streams.client import wait_until
from streams.events import TABLE_MODEL_NAME, CheckpointPromoted
from workers import table_schedule
from workers.table_schedule import TableSchedule, due_in_s

SETTINGS = TableSettings(interval_h=24, first_build_s=1800)
NOON_MS = 1_700_000_000_000


def announced(at_ms: int) -> CheckpointPromoted:
    return CheckpointPromoted(
        model_name=TABLE_MODEL_NAME, model_version=1, codebook_version=1, path="", sha256="",
        metrics={}, promoted_time_ms=at_ms,
    )  # fmt: skip


def test_first_table_is_due_a_while_after_the_start() -> None:
    assert due_in_s(None, SETTINGS, at_ms=NOON_MS + 60_000, started_ms=NOON_MS) == 1740
    assert due_in_s(None, SETTINGS, at_ms=NOON_MS + 1_800_000, started_ms=NOON_MS) <= 0


@pytest.mark.parametrize("started_ms", [0, NOON_MS])
def test_next_table_is_due_a_day_after_the_last_whenever_the_process_started(
    started_ms: int,
) -> None:
    last = announced(NOON_MS - 23 * 3_600_000)
    assert due_in_s(last, SETTINGS, at_ms=NOON_MS, started_ms=started_ms) == 3600
    assert due_in_s(last, SETTINGS, at_ms=NOON_MS + 3_600_000, started_ms=started_ms) <= 0


def counted(outcome: str) -> float:
    return metrics.TABLE_BUILDS.labels(outcome)._value.get()


def running(settings: Settings, *code: str) -> tuple[threading.Thread, threading.Event]:
    """A schedule whose builds are some Python, and what stops it."""
    stopping = threading.Event()
    schedule = TableSchedule(settings, stopping, command=(sys.executable, "-c", *code))
    thread = threading.Thread(target=schedule.run, kwargs={"at_once": True})
    thread.start()
    return thread, stopping


def test_build_that_is_under_way_ends_with_its_schedule(tmp_path: Path) -> None:
    settings, written = with_values(Settings(), var_dir=tmp_path), tmp_path / "pid"
    code = "import os, sys, time; open(sys.argv[1], 'w').write(f'{os.getpid()} '); time.sleep(600)"
    before = counted("stopped")
    thread, stopping = running(settings, code, str(written))
    wait_until(
        lambda: written.exists() and written.read_text().endswith(" "),
        timeout_s=60,
        what="the build's start",
    )
    stopping.set()
    thread.join(60)
    assert not thread.is_alive()
    assert not psutil.pid_exists(int(written.read_text()))
    assert counted("stopped") == before + 1


@pytest.mark.parametrize(("status", "outcome"), [(0, "published"), (1, "failed")])
def test_build_is_counted_by_how_it_ended_and_failing_does_not_end_the_schedule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, outcome: str
) -> None:
    settings, before = with_values(Settings(), var_dir=tmp_path), counted(outcome)
    waiting = threading.Event()

    def not_due(schedule: TableSchedule) -> float:
        waiting.set()
        return 600.0

    monkeypatch.setattr(TableSchedule, "_due_in_s", not_due)
    monkeypatch.setattr(table_schedule, "RETRY_S", 0.01)
    thread, stopping = running(settings, f"raise SystemExit({status})")
    assert waiting.wait(60)  # it goes on to the next
    stopping.set()
    thread.join(60)
    assert not thread.is_alive()
    assert counted(outcome) == before + 1
