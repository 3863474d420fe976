"""A script that becomes the command it is given, killed when its parent dies; knows nothing of what it runs.

Run as `python -I tether.py PARENT_PID COMMAND ARGUMENT…`. The request to the kernel survives exec, so
the command has the process id that the parent knows. It is made here, not in a `preexec_fn`, because
that would run Python between fork and exec of a process that has many threads.
Only Linux can do this; elsewhere the command is merely run, and the parent must stop it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main(parent_pid: int, command: list[str]) -> None:
    """Replace this process by `command`, which gets SIGKILL when the *thread* that forked it ends."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
        if os.getppid() != parent_pid:  # it died before the request
            sys.exit(1)
    os.execv(command[0], command)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
