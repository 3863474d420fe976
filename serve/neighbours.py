"""What is near a video, asked of the catalogue in Qdrant; a request loses next to nothing where it does not answer.

Asks the server that is named, or else the catalogue worker of the same folder, which answers Qdrant's query call. For
explanations and for viewers of whom nothing is known, never on the decode path. Knows nothing of how the catalogue is
kept, and of which videos a request may be shown: the caller asks for more and leaves out what it must.
"""

from __future__ import annotations

import threading
import time

import httpx

from infra import metrics
from infra.errors import DecodeError
from infra.log import get_logger
from infra.settings import Settings
from streams.neighbours import Neighbour, catalogue_url, neighbours_in, query, query_path

TIMEOUT_S = 0.2
RETRY_S = 2.0
NOT_FOUND = 404


class Neighbours:
    """Asks from any thread; after a failure one question in `RETRY_S` is asked, until one is answered."""

    def __init__(
        self, settings: Settings, *, timeout_s: float = TIMEOUT_S, retry_s: float = RETRY_S
    ) -> None:
        """Ask nothing yet.

        Args:
            settings: say where to ask; a worker that starts later, or elsewhere, is found.
            timeout_s: longest wait for a connection, and for each part of an answer.
            retry_s: time after a failure in which nothing is asked.
        """
        self._settings, self._retry_s = settings, retry_s
        # No proxy of the environment's: the catalogue is a part of this deployment.
        self._client = httpx.Client(timeout=timeout_s, trust_env=False)
        self._lock = threading.Lock()
        self._failing = False
        self._retry_at = 0.0
        for outcome in ("answered", "failed", "not_asked"):
            metrics.NEIGHBOURS.labels(outcome)

    def of(self, video_id: str, k: int, *, codebook_version: int) -> list[Neighbour]:
        """Return the k videos nearest to a live one, nearest first, without itself.

        None for a video that is not live, and, counted in `freshet_serving_neighbours_total`, where nobody answers.
        """
        if k < 1:
            return []
        if not self._may_ask():
            metrics.NEIGHBOURS.labels("not_asked").inc()
            return []
        try:
            found = self._ask(video_id, k, codebook_version)
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError, DecodeError) as error:
            metrics.NEIGHBOURS.labels("failed").inc()
            self._settle(failing=True, why=str(error) or type(error).__name__)
            return []
        metrics.NEIGHBOURS.labels("answered").inc()
        self._settle(failing=False)
        return found

    def close(self) -> None:
        """Drop the connections."""
        self._client.close()

    def _ask(self, video_id: str, k: int, codebook_version: int) -> list[Neighbour]:
        url = catalogue_url(self._settings)
        if not url:
            raise ConnectionError(
                "no catalogue worker runs, and FRESHET_QDRANT__URL names no server"
            )
        answer = self._client.post(f"{url}{query_path(codebook_version)}", json=query(video_id, k))
        if answer.status_code == NOT_FOUND:  # the video, or as yet its codebook
            return []
        answer.raise_for_status()
        return neighbours_in(answer.content)

    def _may_ask(self) -> bool:
        with self._lock:
            if not self._failing:
                return True
            now = time.monotonic()
            if now < self._retry_at:
                return False
            self._retry_at = now + self._retry_s  # this caller alone tries
            return True

    def _settle(self, *, failing: bool, why: str = "") -> None:
        with self._lock:
            changed, self._failing = self._failing != failing, failing
            if failing:
                self._retry_at = time.monotonic() + self._retry_s
        if changed and failing:
            get_logger().warning("neighbours_unavailable", error=why)
        elif changed:
            get_logger().info("neighbours_available")
