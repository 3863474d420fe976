"""The supervisor on real processes: who is started again, who is given up, and what outlives SIGTERM does not."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from infra import supervisor
from infra.errors import FreshetError
from infra.supervisor import RESTARTS_MAX, Child, Supervisor
from streams.client import wait_until

pytestmark = pytest.mark.integration
TIMEOUT_S = 60
WAITS = "import signal; print('up', flush=True); signal.pause()"
IGNORES_SIGTERM = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {WAITS}"
HAS_A_CHILD = (
    "import subprocess, sys; "
    f"waits = [sys.executable, '-c', {WAITS!r}]; "
    "print(subprocess.Popen(waits, stdout=subprocess.DEVNULL).pid, flush=True); "
    f"{IGNORES_SIGTERM}"
)


@pytest.fixture
def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Supervisor]:
    """A supervisor of Python one-liners that restarts them at once."""
    monkeypatch.setattr(supervisor, "RESTART_DELAYS_S", (0.0,) * RESTARTS_MAX)
    with Supervisor(tmp_path / "logs", {}, command=(sys.executable, "-c")) as running:
        yield running


def starts(child: Child) -> int:
    return child.log_path.read_text().count("up")


def kill_and_check(running: Supervisor, child: Child) -> None:
    """Kill a child, and check until it runs again."""
    before, dead = starts(child), child.process
    dead.send_signal(signal.SIGKILL)
    dead.wait(TIMEOUT_S)

    def up_again() -> bool:
        running.check()
        return starts(child) > before

    wait_until(up_again, timeout_s=TIMEOUT_S, what=f"the restart of {child.name}")


def until_up(child: Child) -> None:
    wait_until(lambda: starts(child) > 0, timeout_s=TIMEOUT_S, what=f"the start of {child.name}")


def child_of(child: Child) -> psutil.Process:
    """Return the process that `HAS_A_CHILD` names first of all."""
    return psutil.Process(int(child.log_path.read_text().split()[0]))


def test_killed_child_is_started_again_and_its_neighbour_left_alone(running: Supervisor) -> None:
    child, neighbour = running.start("one", WAITS), running.start("two", WAITS)
    until_up(child)
    pid, neighbours_pid = child.process.pid, neighbour.process.pid
    kill_and_check(running, child)
    assert child.process.pid != pid
    assert (child.restarts, neighbour.restarts) == (1, 0)
    assert neighbour.process.pid == neighbours_pid
    assert neighbour.process.poll() is None


def test_child_that_ends_again_and_again_is_given_up_with_the_end_of_its_log(
    running: Supervisor,
) -> None:
    child = running.start("one", "import sys; print('out of beans'); sys.exit(3)")

    def never() -> bool:
        running.check()
        return False

    with pytest.raises(FreshetError, match=rf"(?s)status 3 after {RESTARTS_MAX} .*out of beans"):
        wait_until(never, timeout_s=TIMEOUT_S, what="the end of patience")
    assert child.log_path.read_text().count("out of beans") == RESTARTS_MAX + 1


def test_child_that_asks_for_other_settings_is_not_started_again(running: Supervisor) -> None:
    child = running.start("one", "import sys; print('mend your settings'); sys.exit(2)")
    child.process.wait(TIMEOUT_S)
    with pytest.raises(FreshetError, match=r"(?s)status 2 after 0 restarts.*mend your settings"):
        running.check()


def test_child_that_was_healthy_for_long_begins_with_all_its_restarts_again(
    running: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = running.start("one", WAITS)
    until_up(child)
    kill_and_check(running, child)
    running.check()
    assert child.restarts == 1
    monkeypatch.setattr(supervisor, "HEALTHY_S", 0.0)
    running.check()
    assert child.restarts == 0


def test_child_that_needs_another_is_started_again_with_it(running: Supervisor) -> None:
    needed = running.start("needed", WAITS)
    needing, neighbour = running.start("needing", WAITS, needs="needed"), running.start("x", WAITS)
    for one in (needed, needing, neighbour):
        until_up(one)
    former = needing.process
    kill_and_check(running, needed)

    def up_again() -> bool:
        running.check()
        return starts(needing) > 1

    wait_until(up_again, timeout_s=TIMEOUT_S, what="the restart of who needs it")
    assert former.wait(TIMEOUT_S) == -signal.SIGKILL
    assert (needed.restarts, needing.restarts, neighbour.restarts) == (1, 1, 0)


def test_stop_ends_what_is_needed_after_what_needs_it(running: Supervisor) -> None:
    needed = running.start("needed", WAITS)
    last_word = (
        f"import signal, os; os.kill({needed.process.pid}, 0); print('still there', flush=True)"
    )
    heeds = f"import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(exec({last_word!r}))); {WAITS}"
    needing = running.start("needing", heeds, needs="needed")
    until_up(needed)
    until_up(needing)
    running.stop()
    assert "still there" in needing.log_path.read_text()
    assert needed.process.returncode == -signal.SIGTERM


def test_log_that_is_too_long_begins_anew_and_the_one_before_is_kept(
    tmp_path: Path,
) -> None:
    talks = "import time; print('x' * 3_000, flush=True); time.sleep(0.5); print('up', flush=True); time.sleep(600)"
    with Supervisor(
        tmp_path, {}, command=(sys.executable, "-c"), log_max_bytes=2_000
    ) as supervisor:
        child = supervisor.start("one", talks)
        before = child.log_path.with_name("one.log.1")

        def begun_anew() -> bool:
            supervisor.check()
            return before.exists() and child.log_path.read_text() == "up\n"

        wait_until(begun_anew, timeout_s=TIMEOUT_S, what="a new beginning of the log")
        assert before.read_text() == "x" * 3_000 + "\n"


def test_stop_kills_what_ignores_sigterm_and_its_children(
    running: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    heeding, stubborn = running.start("one", WAITS), running.start("two", HAS_A_CHILD)
    until_up(heeding)
    until_up(stubborn)
    grandchild = child_of(stubborn)
    monkeypatch.setattr(supervisor, "STOP_TIMEOUT_S", 0.5)
    running.stop()
    assert stubborn.process.returncode == -signal.SIGKILL
    assert heeding.process.returncode == -signal.SIGTERM
    assert running.children == []
    grandchild.wait(TIMEOUT_S)


def test_stop_touches_no_process_that_has_the_id_of_an_ended_child(
    running: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    child, bystander = running.start("one", WAITS), running.start("two", HAS_A_CHILD)
    until_up(bystander)
    grandchild = child_of(bystander)
    child.process.kill()
    child.process.wait(TIMEOUT_S)
    running.children.remove(bystander)
    monkeypatch.setattr(child.process, "pid", bystander.process.pid)
    try:
        running.stop()
        assert bystander.process.poll() is None
        assert grandchild.status() != psutil.STATUS_ZOMBIE
    finally:
        grandchild.kill()
        bystander.process.kill()
