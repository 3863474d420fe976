"""Threads whose errors are not lost: they are kept, and raised where somebody waits. Knows nothing of what they do."""

from __future__ import annotations

import threading
from collections.abc import Callable


class KeptThread(threading.Thread):
    """A thread that ends with the first error, and keeps it."""

    def __init__(self, work: Callable[[], None], *, name: str) -> None:
        super().__init__(name=name, daemon=True)
        self._work = work
        self._error: Exception | None = None

    def run(self) -> None:
        try:
            self._work()
        except Exception as error:  # noqa: BLE001 - `check` raises it
            self._error = error

    def check(self) -> None:
        """Raise the error with which it ended, if it did."""
        if self._error is not None:
            raise self._error
