"""Starts processes, watches them, and stops them in reverse order; knows nothing of what they do.

Children run in sessions of their own, so that Ctrl-C reaches the supervisor alone and nobody stops before its clients.
If the supervisor dies in whatever way, the kernel kills them (on Linux).
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import psutil

from infra.child import spawn_tethered
from infra.clock import Deadline
from infra.errors import FreshetError
from infra.log import begin_anew, get_logger

log = get_logger()
STOP_TIMEOUT_S = 30.0
LOG_TAIL_LINES = 25
RESTARTS_MAX = 5
RESTART_DELAYS_S = (0.5, 1, 2, 4, 8)
HEALTHY_S = 600.0
"""Who has run so long since its last start begins with all its restarts again."""
FRESHET = (sys.executable, "-m", "freshet")


@dataclass
class Child:
    """A supervised process.

    Attributes:
        needs: the name of one before it, without which it is of no use: it ends and is started again with that one.
    """

    name: str
    command: tuple[str, ...]
    environment: dict[str, str]
    log_path: Path
    process: subprocess.Popen[bytes]
    started: float
    needs: str = ""
    restarts: int = 0
    next_start: float = field(default=0.0)


class Supervisor:
    """Runs `freshet` subcommands as child processes.

    A child that ends by itself is started again, with a growing delay, at most `RESTARTS_MAX` times between which it
    never ran for `HEALTHY_S`.
    """

    def __init__(
        self,
        log_dir: Path,
        environment: Mapping[str, str],
        *,
        command: Sequence[str] = FRESHET,
        log_max_bytes: int = 50_000_000,
    ) -> None:
        """Start without children; what they run is `command` followed by each one's arguments.

        A log that is longer than `log_max_bytes` begins anew; the one before is kept beside it.
        """
        log_dir.mkdir(parents=True, exist_ok=True)
        self._log_dir = log_dir
        self._environment = dict(os.environ) | dict(environment)
        self._command, self._log_max_bytes = tuple(command), log_max_bytes
        self.children: list[Child] = []
        self._lock = threading.Lock()

    def start(
        self,
        name: str,
        *arguments: str,
        command: Sequence[str] | None = None,
        environment: Mapping[str, str] | None = None,
        needs: str = "",
    ) -> Child:
        """Start `freshet <arguments>`, or another command; its output goes to `<log_dir>/<name>.log`."""
        command = (*(command or self._command), *arguments)
        complete = self._environment | dict(environment or {})
        log_path = self._log_dir / f"{name}.log"
        process = _spawn(command, complete, log_path)
        child = Child(name, command, complete, log_path, process, time.monotonic(), needs)
        with self._lock:
            self.children.append(child)
        return child

    def check(self) -> None:
        """Start again what has ended, and have logs begin anew that are too long.

        Raises:
            FreshetError: a child has ended too often; the message ends with its last lines.
        """
        with self._lock:
            for child in self.children:
                if child.process.poll() is not None:
                    self._revive(child)
                elif time.monotonic() - child.started >= HEALTHY_S:
                    child.restarts = 0
                begin_anew(child.log_path, longer_than_bytes=self._log_max_bytes)

    def _revive(self, child: Child) -> None:
        if child.restarts >= RESTARTS_MAX or child.process.returncode == 2:  # 2: the user's to mend
            raise FreshetError(
                f"process {child.name} ended with status {child.process.returncode} after "
                f"{child.restarts} restarts; the end of {child.log_path}:\n{_tail(child.log_path)}"
            )
        if not child.next_start:
            child.next_start = time.monotonic() + RESTART_DELAYS_S[child.restarts]
            log.warning("process_ended", name=child.name, status=child.process.returncode)
            for other in self.children:
                if other.needs == child.name:
                    other.process.kill()
        if time.monotonic() >= child.next_start:
            child.process = _spawn(child.command, child.environment, child.log_path)
            child.started = time.monotonic()
            child.restarts += 1
            child.next_start = 0.0

    def stop(self) -> None:
        """Stop all children, what others need after them; those that do not heed SIGTERM are killed."""
        with self._lock:
            children, self.children = self.children[::-1], []
        needed = {child.needs for child in children}
        self._stop([child for child in children if child.name not in needed])
        self._stop([child for child in children if child.name in needed])

    def _stop(self, children: Sequence[Child]) -> None:
        for child in children:
            child.process.terminate()
        deadline = Deadline(STOP_TIMEOUT_S)
        for child in children:
            try:
                child.process.wait(deadline.remaining_s())
            except subprocess.TimeoutExpired:
                log.warning("process_killed", name=child.name)
                # Only here: the id of a child that ended may be another process's by now.
                _kill_tree(child.process)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def _spawn(
    command: Sequence[str], environment: Mapping[str, str], log_path: Path
) -> subprocess.Popen[bytes]:
    return spawn_tethered(command, cwd=Path.cwd(), log_path=log_path, environment=environment)


def _kill_tree(process: subprocess.Popen[bytes]) -> None:
    try:
        members = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return
    for member in members:
        with suppress(psutil.NoSuchProcess):
            member.kill()
    process.kill()
    process.wait()


def _tail(path: Path) -> str:
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    return "\n".join(lines[-LOG_TAIL_LINES:])
