"""How far a measured process has come and what it has spent: a line of JSON each time it says so.

The process writes, who started it reads. Knows nothing of what the process does.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
import psutil
from rich.console import Console

from infra.child import spawn_tethered
from infra.errors import FreshetError
from infra.settings import Settings, as_environment

POLL_S = 0.1
LOG_TAIL_CHARS = 2_000


class Mark(msgspec.Struct, frozen=True):
    """A process at one moment.

    Attributes:
        events: handled so far; 0 where only the log knows.
        cpu_s: of all threads, user and system, since the process began.
        time_s: monotonic, the same clock in every process of a machine.
        rss_bytes: resident memory.
        peak_bytes: the most resident memory that there was so far.
    """

    events: int
    cpu_s: float
    time_s: float
    rss_bytes: int
    peak_bytes: int = 0


def mark_now(events: int = 0) -> Mark:
    """Return this process as it is now."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return Mark(
        events,
        usage.ru_utime + usage.ru_stime,
        time.monotonic(),
        psutil.Process().memory_info().rss,
        usage.ru_maxrss * 1024,
    )


def write_mark(path: Path, mark: Mark) -> None:
    """Add a line, whole or not at all."""
    with path.open("ab", buffering=0) as file:
        file.write(msgspec.json.encode(mark) + b"\n")


def read_marks(path: Path) -> list[Mark]:
    """Return what was written so far; nothing where there is no file yet."""
    if not path.exists():
        return []
    return [msgspec.json.decode(line, type=Mark) for line in path.read_bytes().splitlines()]


def per_cpu_s(first: Mark, last: Mark) -> float:
    """Return events per CPU-second between two marks."""
    return (last.events - first.events) / (last.cpu_s - first.cpu_s)


def per_s(first: Mark, last: Mark) -> float:
    """Return events per second of wall-clock time between two marks."""
    return (last.events - first.events) / (last.time_s - first.time_s)


class MeasuredProcess:
    """A running `python -m MODULE ARGUMENTS` whose environment says `settings`."""

    def __init__(self, process: subprocess.Popen[bytes], log_path: Path) -> None:
        self.process = process
        self._log_path = log_path

    def wait_for(self, condition: Callable[[], bool], *, timeout_s: float, what: str) -> None:
        """Wait until the condition holds.

        Raises:
            FreshetError: the process ended before, or it took too long; the end of its log is in the message.
        """
        ends = time.monotonic() + timeout_s
        while not condition():
            if self.process.poll() is not None or time.monotonic() > ends:
                state = self.process.poll()
                how = "is still running" if state is None else f"ended with status {state}"
                log = self._log_path.read_text(errors="replace")[-LOG_TAIL_CHARS:]
                raise FreshetError(
                    f"no {what} within {timeout_s:.0f} s; the process {how}, its log ends:\n{log}"
                )
            time.sleep(POLL_S)

    def stop(self, timeout_s: float) -> None:
        """Ask it to end and wait; kill it if it does not."""
        self.process.terminate()
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """End it at once."""
        self.process.kill()
        self.process.wait()


@contextmanager
def measured_process(
    module: str, arguments: Sequence[object], settings: Settings, log_path: Path
) -> Iterator[MeasuredProcess]:
    """Run a module as a process that is killed when the context ends."""
    process = spawn_tethered(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=Path.cwd(),
        log_path=log_path,
        environment=os.environ | as_environment(settings),
    )
    running = MeasuredProcess(process, log_path)
    try:
        yield running
    finally:
        running.kill()


def say(text: str) -> None:
    """Tell whoever waits what is being done."""
    Console(stderr=True).print(text, highlight=False)
