from __future__ import annotations

import pytest

from tests.soak.threads import KeptThread


def test_error_of_a_thread_is_raised_where_it_is_asked_for() -> None:
    def work() -> None:
        raise RuntimeError("changed size")

    thread = KeptThread(work, name="one")
    thread.check()
    thread.start()
    thread.join()
    with pytest.raises(RuntimeError, match="changed size"):
        thread.check()


def test_thread_that_ends_well_raises_nothing() -> None:
    done: list[int] = []
    thread = KeptThread(lambda: done.append(1), name="one")
    thread.start()
    thread.join()
    thread.check()
    assert done == [1]
