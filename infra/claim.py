"""One process at a time: a lock that the kernel frees when its owner dies; knows nothing of what it guards."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import IO

from infra.errors import ConfigError


def claim(path: Path, owner: str) -> IO[bytes]:
    """Return a lock on `path`; closing it, or dying in whatever way, frees it.

    It keeps apart the processes of one machine, not of several.

    Raises:
        ConfigError: another process has it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.open("ab")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise ConfigError(
            f"another {owner} works in {path.parent}; one is enough, and another needs a FRESHET_VAR_DIR of its own"
        ) from None
    return lock
