"""The sealer as a process that says how far it is: `python -m tests.bench.parts.measured_sealer FOLDER FROM UNTIL`.

A mark at every committed shard goes to FOLDER/marks, one before and one after each restore to FOLDER/restores. From the
shard FROM until the shard UNTIL its two threads are profiled, into FOLDER/profile.json; before, nothing is in its way.
"""

from __future__ import annotations

import cProfile
import pstats
import sys
import threading
from pathlib import Path
from typing import Any
from unittest.mock import patch

import msgspec

from infra.settings import load_settings
from infra.storage import write_atomically
from tests.bench.parts.marks import mark_now, write_mark
from tests.bench.parts.stages import costliest, stage_seconds
from workers import restoring
from workers.sealing import SealStep

MARKS, RESTORES, PROFILE = "marks", "restores", "profile.json"
COSTLIEST = 15


class Spent(msgspec.Struct, frozen=True):
    """Own seconds by stage, and of the functions that cost most."""

    stages: dict[str, float]
    functions: list[tuple[str, float]]


def _spent(*profiles: cProfile.Profile) -> Spent:
    stats: Any = pstats.Stats(*profiles)
    return Spent(stage_seconds(stats.stats), costliest(stats.stats, COSTLIEST))


def main(folder: Path, profile_from: int, profile_until: int) -> None:
    """Seal until SIGTERM."""
    restore = restoring.restore
    of_seal, of_take = cProfile.Profile(), cProfile.Profile()
    committed = 0
    profiled = threading.Event()

    def measured_restore(*arguments: Any, **named: Any) -> Any:
        write_mark(folder / RESTORES, mark_now())
        restored = restore(*arguments, **named)
        write_mark(folder / RESTORES, mark_now())
        return restored

    def on_step(step: SealStep) -> None:
        nonlocal committed
        if step is not SealStep.COMMITTED:
            return
        write_mark(folder / MARKS, mark_now())
        committed += 1
        if committed == profile_from:
            of_seal.enable()
        elif committed == profile_until:
            of_seal.disable()
            profiled.set()

    with patch.object(restoring, "restore", measured_restore):
        from workers.watches import Sealer, run  # takes up the measured restore

        step = Sealer.step

        def profiled_step(sealer: Sealer) -> None:
            is_measured = profile_from <= committed < profile_until
            if is_measured:
                of_take.enable()
            step(sealer)
            if is_measured:
                of_take.disable()
            if profiled.is_set():
                profiled.clear()
                spent = _spent(of_seal, of_take)
                write_atomically(folder / PROFILE, msgspec.json.encode(spent))

        with patch.object(Sealer, "step", profiled_step):
            run(load_settings(), on_step=on_step)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
