from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator

import pytest

from serve.giving_way import LOCK_HELD_S, NICENESS, give_way, share_the_lock


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
