"""Requests at a fixed rate, whatever becomes of those before, and what each answer was; knows nothing of kills."""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx

from streams.events import Surface
from tests.soak.ledger import Seen
from tests.soak.load import Shown, Stream, user_id
from tests.soak.options import SoakOptions
from tests.soak.threads import KeptThread

K = 10
THREADS = 32
TIMEOUT_S = 30.0
"""Longer than the endpoint gives itself."""
SURFACES: tuple[Surface, ...] = ("home", "watch_next", "shorts")
FORGET_S = 20.0
"""For how long an answer may show a removed video: a replica whose broker died dials again within 10 s."""


@dataclass(frozen=True)
class Asked:
    """One request.

    Attributes:
        sent_s, done_s: on the wall clock.
        status: of HTTP; 0 where there was no answer.
        wrong: what is wrong with an answer that says that it is right.
    """

    sent_s: float
    done_s: float
    status: int
    wrong: str = ""


def fault_of(
    answer: Mapping[str, Any], *, is_known: Mapping[str, float], asked_s: float, k: int = K
) -> str:
    """Return what is wrong with an answer, in words; empty where nothing is.

    `is_known` has the videos that there ever were, each with when its removal was seen, infinite for a live one.
    """
    items = [one["video_id"] for one in answer["items"]]
    if not items:
        return "it has no videos"
    if len(items) > k:
        return f"it has {len(items)} videos, {k} were asked for"
    if len(set(items)) < len(items):
        return "it has a video twice"
    for video_id in items:
        if video_id not in is_known:
            return f"nobody ever uploaded {video_id}"
        if is_known[video_id] + FORGET_S < asked_s:
            return f"{video_id} was removed {asked_s - is_known[video_id]:.0f} s before"
    return ""


class Asker:
    """Threads that ask until told to stop."""

    def __init__(self, url: str, options: SoakOptions, stream: Stream, seen: Seen) -> None:
        self._options, self._stream, self._seen = options, stream, seen
        self.asked: list[Asked] = []
        self._rng = random.Random(f"requests {options.seed}")
        self._past = dict.fromkeys(stream.past, float("inf"))
        self._client = httpx.Client(base_url=url, timeout=TIMEOUT_S)
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="ask")
        self._stopping = threading.Event()
        self._lost: list[BaseException] = []
        self._thread = KeptThread(self._run, name="asker")

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def check(self) -> None:
        """Raise what ended the thread, or a request before it was written down."""
        self._thread.check()
        for error in self._lost:
            raise error

    def stop(self) -> None:
        """Ask no more, and return when all answers are there."""
        self._stopping.set()
        self._thread.join()
        self._pool.shutdown()
        self._client.close()

    def _run(self) -> None:
        started_s, number = time.monotonic(), 0
        while not self._stopping.is_set():
            due_s = started_s + number / self._options.requests_per_s - time.monotonic()
            if due_s > 0 and self._stopping.wait(due_s):
                return
            number += 1
            self._pool.submit(self._ask, self._body()).add_done_callback(self._note_lost)

    def _note_lost(self, asked: Future[None]) -> None:
        if (error := asked.exception()) is not None:
            self._lost.append(error)

    def _body(self) -> dict[str, Any]:
        rng = self._rng
        body: dict[str, Any] = {
            "user_id": user_id(rng.randrange(self._options.users)),
            "surface": rng.choice(SURFACES),
            "k": K,
        }
        if body["surface"] == "watch_next":
            body["context_video_id"] = rng.choice(self._stream.past)
        return body

    def _ask(self, body: dict[str, Any]) -> None:
        sent_s, status, wrong = time.time(), 0, ""
        try:
            response = self._client.post("/v1/recommendations", json=body)
            status = response.status_code
            if status == httpx.codes.OK:
                wrong = self._taken(response.json(), body, sent_s)
        except httpx.HTTPError:
            pass
        except (ValueError, KeyError, TypeError) as error:
            wrong = f"not what an answer is: {error!r}"
        self.asked.append(Asked(sent_s, time.time(), status, wrong))

    def _taken(self, answer: dict[str, Any], body: dict[str, Any], sent_s: float) -> str:
        """Keep for the viewers what was shown, and return what is wrong with it."""
        is_known = self._past | _ours(self._stream.live, self._seen)
        wrong = fault_of(answer, is_known=is_known, asked_s=sent_s)
        if not wrong:
            first = answer["items"][0]["video_id"]
            self._stream.shown.append(
                Shown(answer["request_id"], body["user_id"], answer["arm"], body["surface"], first)
            )
        return wrong


def _ours(live: deque[str], seen: Seen) -> dict[str, float]:
    """Return our own videos: those that are live, and those that were, with when that was seen to end."""
    known = dict.fromkeys(tuple(seen.servable), float("inf")) | dict.fromkeys(
        tuple(live), float("inf")
    )
    return known | dict(seen.removed)


def statuses(asked: Sequence[Asked]) -> dict[str, int]:
    """Return how often each status came, 0 where none did."""
    found: dict[str, int] = {}
    for one in asked:
        found[str(one.status)] = found.get(str(one.status), 0) + 1
    return dict(sorted(found.items()))
