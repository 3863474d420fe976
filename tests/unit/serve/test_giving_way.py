from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from serve import giving_way
from serve.giving_way import LOCK_HELD_S, NICENESS, give_way, in_turn, share_the_lock


@pytest.fixture
def _lock_as_before() -> Iterator[None]:
    before = sys.getswitchinterval()
    yield
    sys.setswitchinterval(before)


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no priority of their own")
def test_thread_that_gives_way_is_nicer_and_the_others_are_as_before() -> None:
    found: list[int] = []

    def work() -> None:
        give_way()
        found.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    before = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [NICENESS]
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == before


@pytest.mark.usefixtures("_lock_as_before")
def test_lock_is_handed_on_ten_times_as_often() -> None:
    share_the_lock()
    assert sys.getswitchinterval() == pytest.approx(LOCK_HELD_S)


def test_those_who_share_a_file_work_one_after_the_other(tmp_path: Path) -> None:
    at_work, most = 0, 0

    def work(number: int) -> int:
        nonlocal at_work, most
        at_work += 1
        most = max(most, at_work)
        time.sleep(0.02)
        at_work -= 1
        return number

    def replica(number: int) -> int:
        return in_turn(work, tmp_path / "new" / "lock")(number)

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(replica, range(8))) == list(range(8))
    assert most == 1


def test_work_that_fails_ends_its_turn(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="none"):
        in_turn(_refused, tmp_path / "lock")(1)
    assert in_turn(lambda number: number, tmp_path / "lock")(2) == 2


def test_nobody_waits_for_ever_for_one_that_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(giving_way, "TURN_MAX_S", 0.05)
    hanging, ended = threading.Event(), threading.Event()

    def hang(number: int) -> None:
        hanging.set()
        ended.wait(60)

    thread = threading.Thread(target=in_turn(hang, tmp_path / "lock"), args=(1,))
    thread.start()
    try:
        assert hanging.wait(60)
        assert in_turn(lambda number: number, tmp_path / "lock")(2) == 2
    finally:
        ended.set()
        thread.join()


def _refused(number: int) -> None:
    raise ValueError("none")
