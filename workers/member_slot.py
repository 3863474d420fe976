"""A name that a process has again after a restart, and no other living process has; knows nothing of Kafka.

The name is in a file that its owner keeps locked; the kernel opens the lock when the owner dies, in whatever way. So
the first process started on a folder gets the first name, a second one beside it the second, and a restarted one the
name of the one that died. Where the folder does not survive (a container without a volume), names are simply new.
"""

from __future__ import annotations

import fcntl
import itertools
import uuid
from pathlib import Path
from typing import IO


class MemberSlot:
    """A locked name; closing it, or dying, hands it on.

    Attributes:
        name: unique in the world, the same for every owner of this slot.
    """

    def __init__(self, folder: Path) -> None:
        """Take the first free slot in `folder`, making one if all are taken."""
        folder.mkdir(parents=True, exist_ok=True)
        for number in itertools.count():
            self._file = (folder / f"slot-{number}").open("a+")
            if _lock(self._file):
                break
            self._file.close()
        self.name = self._read_or_write()

    def _read_or_write(self) -> str:
        self._file.seek(0)
        name = self._file.read().strip()
        if not name:
            name = uuid.uuid4().hex
            self._file.write(name)
            self._file.flush()
        return name

    def close(self) -> None:
        """Free the slot."""
        self._file.close()


def _lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
