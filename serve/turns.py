"""Costly answers take turns: few at once, few that wait, the next is refused; knows nothing of what they do."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from infra.errors import Overloaded


class Turns:
    """So that who waits for a turn never takes all the threads that others are answered by."""

    def __init__(self, what: str, *, at_once: int, waiting_max: int) -> None:
        """Let `at_once` callers do `what`, while `waiting_max` more wait."""
        self._what, self._waiting_max = what, waiting_max
        self._places = threading.Semaphore(at_once + waiting_max)
        self._turns = threading.Semaphore(at_once)

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Wait for a turn, and hold it while the context lasts.

        Raises:
            Overloaded: as many wait as may; at once.
        """
        if not self._places.acquire(blocking=False):
            raise Overloaded(
                f"{self._waiting_max} {self._what} wait already, and no more may: ask again later",
                self._waiting_max,
            )
        try:
            with self._turns:
                yield
        finally:
            self._places.release()
