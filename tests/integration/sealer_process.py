"""A sealer process that a signal hits at a chosen moment; its settings come from the environment.

Usage: python sealer_process.py SIGNAL MOMENT COUNT, where MOMENT is one of `MOMENTS`, and COUNT says which time it is
reached. SIGKILL is a power cut; SIGSTOP makes a zombie of the process.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

from infra.settings import load_settings
from infra.storage import ObjectStore
from workers.sealing import SealStep, ShardCommitter
from workers.watches import run

HALF_WRITTEN, HALF_PRODUCED = "HALF_WRITTEN", "HALF_PRODUCED"
MOMENTS = (HALF_WRITTEN, HALF_PRODUCED, *(step.name for step in SealStep))
"""Inside the two writes that take time, of the file and of the transaction's records, and after each step."""
PRODUCED_BEFORE = 5
"""Records of a transaction that are produced before it is half produced."""


class InterruptedStore(ObjectStore):
    """An object store that is interrupted in the middle of a write."""

    def __init__(self, root: str, interrupt: Callable[[str], None]) -> None:
        super().__init__(root)
        self._interrupt = interrupt

    def put_bytes(self, key: str, data: bytes) -> str:
        """Leave half of the file under a temporary name for the time of the interruption."""
        folder, _, name = key.rpartition("/")
        half = f"{folder}/.{name}.half.tmp"
        super().put_bytes(half, data[: len(data) // 2])
        self._interrupt(HALF_WRITTEN)
        self.remove(half)
        return super().put_bytes(key, data)


def main(signal_name: str, moment: str, count: int) -> None:
    """Run the sealer; the signal hits it at the moment."""
    settings = load_settings()
    left = count

    def interrupt(reached: str) -> None:
        nonlocal left
        left -= reached == moment
        if reached == moment and left == 0:
            time.sleep(0.3)  # what was produced so far reaches the broker
            os.kill(os.getpid(), signal.Signals[signal_name])

    produced = 0

    def on_step(step: SealStep) -> None:
        nonlocal produced
        produced = 0
        interrupt(step.name)

    produce = ShardCommitter._produce

    def interrupted_produce(committer: ShardCommitter, outgoing: Any) -> None:
        nonlocal produced
        produce(committer, outgoing)
        produced += 1
        if produced == PRODUCED_BEFORE:
            interrupt(HALF_PRODUCED)

    store = InterruptedStore(settings.storage.root, interrupt)
    with patch.object(ShardCommitter, "_produce", interrupted_produce):
        run(settings, store=store, on_step=on_step)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
