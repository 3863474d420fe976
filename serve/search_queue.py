"""Beam searches of many callers, batched: while one batch is searched, the next gathers; knows nothing of HTTP and Ray.

    search() ---> waiting, at most max_waiting ---> a searching thread ---> back to the caller
       |                                             takes the first, and what can be searched with it
    Overloaded                                       out of those behind it, in order

Searched together are calls for one model, one catalogue and one beam width; their views may differ. Whoever comes
first is searched first: a call waits for those before it, never for a batch to fill.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from infra import metrics
from infra.errors import Overloaded, TransientError
from models.beam_search import Candidate
from models.lrm import Lrm
from models.prompts import Videos
from models.recommend import Request, recommend
from models.trie import TrieView

Answers = list[list[Candidate]]


@dataclass(frozen=True, eq=False)
class _Call:
    """What one caller waits for."""

    lrm: Lrm
    requests: Sequence[Request]
    views: Sequence[TrieView]
    videos: Videos
    top_k: int
    since_s: float = field(default_factory=time.monotonic)
    answers: Future[Answers] = field(default_factory=Future)


class SearchQueue:
    """Searches for threads that wait for their answers."""

    def __init__(
        self,
        *,
        beam_width: int,
        threads: int = 1,
        max_batch: int = 4,
        max_waiting: int = 64,
    ) -> None:
        """Start the searching threads.

        Args:
            beam_width: beams of a request; more where a caller wants more candidates.
            threads: batches searched at once; more than there are cores would make each slower and none sooner.
            max_batch: requests searched together; a call with more is searched by itself.
            max_waiting: calls that may wait, beside those that are being searched.
        """
        self._beam_width = beam_width
        self._max_batch, self._max_waiting = max_batch, max_waiting
        self._waiting: deque[_Call] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._threads = [
            threading.Thread(target=self._search_on, name=f"search-{number}", daemon=True)
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def search(
        self,
        lrm: Lrm,
        requests: Sequence[Request],
        view: TrieView | Sequence[TrieView],
        videos: Videos,
        *,
        top_k: int,
    ) -> Answers:
        """Return what `recommend` returns for these requests; blocks until they are searched.

        Raises:
            ValueError: requests and views differ in number.
            Overloaded: as many wait as may; at once.
            TransientError: the queue is closed, or was before their turn came.
        """
        views = [view] * len(requests) if isinstance(view, TrieView) else view
        if len(views) != len(requests):
            raise ValueError(f"got {len(requests)} requests and {len(views)} views; each has one")
        call = _Call(lrm, requests, views, videos, top_k)
        with self._changed:
            if self._closed:
                raise _closed()
            if len(self._waiting) >= self._max_waiting:
                raise Overloaded(
                    f"{len(self._waiting)} searches wait already, and no more may: ask again later",
                    len(self._waiting),
                )
            self._waiting.append(call)
            self._changed.notify()
        return call.answers.result()

    @property
    def alive(self) -> bool:
        """Whether all searching threads live."""
        return all(thread.is_alive() for thread in self._threads)

    @property
    def waiting(self) -> int:
        """How many calls wait for their search to begin."""
        return len(self._waiting)

    def close(self) -> None:
        """Refuse what waits and what comes, and return when the searches under way have ended."""
        with self._changed:
            self._closed = True
            refused = list(self._waiting)
            self._waiting.clear()
            self._changed.notify_all()
        for call in refused:
            call.answers.set_exception(_closed())
        for thread in self._threads:
            thread.join()

    def _search_on(self) -> None:
        while batch := self._next_batch():
            try:
                answers = self._searched(batch)
            except Exception as error:  # noqa: BLE001 - it is the callers' to handle, and the next batch is another's
                for call in batch:
                    call.answers.set_exception(error)
                continue
            for call in batch:
                count = len(call.requests)
                call.answers.set_result([found[: call.top_k] for found in answers[:count]])
                answers = answers[count:]

    def _next_batch(self) -> list[_Call]:
        """Wait for calls and take those that are searched together; none once the queue is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            if self._closed:
                return []
            batch = [self._waiting.popleft()]
            free = self._max_batch - len(batch[0].requests)
            left = deque[_Call]()
            for call in self._waiting:
                if len(call.requests) <= free and self._go_together(batch[0], call):
                    batch.append(call)
                    free -= len(call.requests)
                else:
                    left.append(call)
            self._waiting = left
        begun_s = time.monotonic()
        for call in batch:
            metrics.SEARCH_WAIT.observe(begun_s - call.since_s)
        metrics.SEARCH_BATCH.observe(sum(len(call.requests) for call in batch))
        return batch

    def _go_together(self, first: _Call, other: _Call) -> bool:
        same_model = first.lrm is other.lrm and first.videos is other.videos
        return same_model and self._width(first) == self._width(other)

    def _width(self, call: _Call) -> int:
        return max(self._beam_width, call.top_k)

    def _searched(self, batch: Sequence[_Call]) -> Answers:
        first = batch[0]
        return recommend(
            first.lrm,
            [request for call in batch for request in call.requests],
            [view for call in batch for view in call.views],
            first.videos,
            top_k=max(call.top_k for call in batch),
            beam_width=self._width(first),
        )


def _closed() -> TransientError:
    return TransientError("the search queue is closed, as this replica stops: ask another")
