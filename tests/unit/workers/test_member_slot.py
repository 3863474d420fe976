"""Names for group members."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from workers.member_slot import MemberSlot


def test_slot_is_the_same_after_a_restart_and_another_beside_a_living_owner(tmp_path: Path) -> None:
    first, second = MemberSlot(tmp_path), MemberSlot(tmp_path)
    assert first.name != second.name
    first.close()
    restarted = MemberSlot(tmp_path)
    assert restarted.name == first.name
    second.close()
    restarted.close()


def test_slot_of_a_killed_process_is_free(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys; from pathlib import Path; from workers.member_slot import MemberSlot;"
        "slot = MemberSlot(Path(sys.argv[1])); print(slot.name, flush=True);"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        cwd=Path(__file__).parents[3],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    slot = MemberSlot(tmp_path)
    assert slot.name == killed.stdout.strip()
    slot.close()


def test_slots_of_two_folders_have_different_names(tmp_path: Path) -> None:
    one, other = MemberSlot(tmp_path / "a"), MemberSlot(tmp_path / "b")
    assert one.name != other.name
    one.close()
    other.close()
