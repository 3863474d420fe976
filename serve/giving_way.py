"""Work beside requests that gives way to them: on the cores, and at Python's lock; knows nothing of what the work is.

A search calls Torch some hundred times, and takes Python's lock back after each. A thread that loads a model in Python
keeps it for `sys.getswitchinterval()` each time, 5 ms by default, so a search beside it takes twice as long. With a
tenth of that, and the loading thread at a lower priority, it takes about as long as alone.
"""

from __future__ import annotations

import os
import sys
import threading

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
