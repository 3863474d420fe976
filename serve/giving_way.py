"""Work beside requests that gives way to them, on the cores and at Python's lock; knows nothing of what the work is.

A search calls Torch some hundred times, and takes Python's lock back after each. A thread that loads a model in Python
keeps it for `sys.getswitchinterval()` each time, 5 ms by default, so a search beside it takes twice as long. With a
tenth of that, and the loading thread at a lower priority, it takes about as long as alone.
"""

from __future__ import annotations

import fcntl
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
A = TypeVar("A")

LOCK_HELD_S = 0.0005
# A tenth of a request's share of a core that both want. With less, it would keep the lock while it waits for a core.
NICENESS = 10


def share_the_lock() -> None:
    """Let every thread of this process have Python's lock soon after it asks for it."""
    sys.setswitchinterval(LOCK_HELD_S)


def give_way() -> None:
    """Let this thread run after those that answer requests, where the system knows priorities of threads."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)


TURN_MAX_S = 5.0
"""Who waited so long goes ahead: one that hangs must not keep the models of all others old."""
TURN_POLL_S = 0.01


def in_turn(work: Callable[[A], T], path: Path) -> Callable[[A], T]:
    """Return the same work, done by one process of this machine at a time: those that lock this file.

    Replicas hear of a checkpoint at the same moment. If all of them loaded it at once, no core would be left for those
    who ask. The kernel frees the turn of a process that dies.
    """

    def alone(argument: A) -> T:
        with _turn(path):
            return work(argument)

    return alone


@contextmanager
def _turn(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + TURN_MAX_S
    with path.open("ab") as lock:
        while time.monotonic() < until:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(TURN_POLL_S)
            else:
                break
        yield
