"""A local broker that is started again when it ends by itself; knows nothing of who uses it.

It comes back at the same address with everything that it acknowledged, so that its clients wait and go on. They need
no help: nobody but the broker is started again.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from infra.errors import FreshetError
from infra.kafka.broker import LocalBroker, start_broker
from infra.log import begin_anew, get_logger
from infra.supervisor import HEALTHY_S, RESTART_DELAYS_S

POLL_S = 0.2
START_TIMEOUT_S = 180.0
"""A broker that was killed reads the ends of its logs first, beside everything that waits for it."""

log = get_logger()


class Upkeep:
    """Watches a broker in a thread, and starts it again as a supervisor does its processes."""

    def __init__(
        self, broker: LocalBroker, *, jars_dir: Path | None = None, log_max_bytes: int
    ) -> None:
        self.broker = broker
        self.failure: FreshetError | None = None
        """Why it was given up."""
        self._jars_dir, self._log_max_bytes = jars_dir, log_max_bytes
        self._started_s = time.monotonic()
        self._restarts = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="broker", daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stopping.wait(POLL_S):
            begin_anew(self.broker.log_path, longer_than_bytes=self._log_max_bytes)
            if self.broker.process.poll() is None:
                continue
            log.warning("broker_ended", status=self.broker.process.returncode)
            if not self._revive() and not self._stopping.is_set():
                log.error("broker_given_up", error=str(self.failure))
                os.kill(os.getpid(), signal.SIGTERM)  # nothing works without it
                return

    def _revive(self) -> bool:
        """Return whether there is a broker again."""
        if time.monotonic() - self._started_s >= HEALTHY_S:
            self._restarts = 0
        while self._restarts < len(RESTART_DELAYS_S):
            if self._stopping.wait(RESTART_DELAYS_S[self._restarts]):
                return False
            self._restarts += 1
            try:
                self.broker = start_broker(
                    self.broker.data_dir, jars_dir=self._jars_dir, timeout_s=START_TIMEOUT_S
                )
            except FreshetError as error:
                self.failure = error
                continue
            self._started_s, self.failure = time.monotonic(), None
            log.info("broker_started", pid=self.broker.pid, restarts=self._restarts)
            return True
        self.failure = self.failure or FreshetError(
            f"the broker in {self.broker.data_dir} ended {self._restarts + 1} times within minutes; "
            f"{self.broker.log_path} says why"
        )
        return False

    def stop(self) -> None:
        """Watch no longer, and stop the broker."""
        self._stopping.set()
        self._thread.join()
        self.broker.stop()


@contextmanager
def broker_kept_up(
    data_dir: Path, *, jars_dir: Path | None = None, log_max_bytes: int = 50_000_000
) -> Iterator[LocalBroker]:
    """Run a broker on `data_dir` while the context does, and start it again whenever it ends by itself.

    Its log begins anew when it is longer than `log_max_bytes`; the one before is kept.

    Where that fails again and again, this process gets SIGTERM, and the context ends with the error.

    Raises:
        ConfigError: jars cannot be had, or the directory or a port is in use.
        FreshetError: the broker does not start, or did not start again.
    """
    upkeep = Upkeep(
        start_broker(data_dir, jars_dir=jars_dir), jars_dir=jars_dir, log_max_bytes=log_max_bytes
    )
    try:
        yield upkeep.broker
    finally:
        upkeep.stop()
    if upkeep.failure is not None:
        raise upkeep.failure
