"""Child processes that the kernel kills when this process dies; knows nothing of what they run."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path

TETHER = Path(__file__).with_name("tether.py")


def spawn_tethered(
    command: Sequence[str],
    *,
    cwd: Path,
    log_path: Path,
    environment: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start `command` so that the kernel kills it when this process dies.

    The kernel goes by the thread that forked, so one is made that lasts as long as the child does.
    """
    tethered = [sys.executable, "-I", str(TETHER), str(os.getpid()), *command]
    started: Future[subprocess.Popen[bytes]] = Future()

    def fork_and_outlive() -> None:
        try:
            with log_path.open("ab") as log:
                process = subprocess.Popen(
                    tethered,
                    cwd=cwd,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        except OSError as exc:
            started.set_exception(exc)
            return
        started.set_result(process)
        process.wait()

    threading.Thread(target=fork_and_outlive, name="tether", daemon=True).start()
    return started.result()
