"""The closed loop: simulated viewers ask the live endpoint, watch what it shows them, and so teach what it shows next.

The surface is a feed: what a viewer has looked at it does not ask for again, whoever answers.

Event time runs in steps of `refresh_h` hours. Within a step viewers ask over HTTP in the order of their times, and
uploads and watches are sent to Kafka. The next step but one begins once what a step sent is served: its uploads
can be shown, and every model has learned its watches. So how stale a model may be is a matter of event time, a step to
two, however fast the machine is; all models are refreshed on the same watches, those of all arms.

Knows nothing of how answers are found, and of the figures that are made of them.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np

from infra.settings import KafkaSettings
from streams.client import flush, producer, send
from streams.simulated_world import PLACES, Ask, Upload, User, World, watch_of
from streams.topics import UPLOADS, WATCHES
from streams.viewers import HOUR_MS, Mood, Sight, Visit, visit
from workers.closed_loop_refreshes import Refreshes, Sent

REQUEST_TIMEOUT_S = 60.0
ASKERS = 6
"""Requests in flight at most."""
MOMENTS_AT_ONCE = 3
"""Of asking, that all see what was watched before the first of them."""


@dataclass(frozen=True)
class Answer:
    """What one request was answered; `error` is why it failed, or empty."""

    video_ids: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    request_id: str = ""
    arm: str = ""
    model_version: int = 0
    seconds: float = 0.0
    error: str = ""


@dataclass(frozen=True)
class Asked:
    """One request, its answer, and what came of it."""

    ask: Ask
    user: User
    answer: Answer
    visit: Visit


@dataclass
class Played:
    """What the driver knows, as it goes on."""

    asked: list[Asked] = field(default_factory=list)
    uploaded: set[str] = field(default_factory=set)
    watches: int = 0
    steps: int = 0
    waited_s: float = 0.0
    seconds: float = 0.0


@dataclass
class _UserState:
    mood: Mood
    watched: set[str] = field(default_factory=set)
    looked_at: dict[str, None] = field(default_factory=dict)
    last: str | None = None


class Loop:
    """Viewers in front of an endpoint."""

    def __init__(
        self,
        base_url: str,
        kafka: KafkaSettings,
        world: World,
        refreshes: Refreshes,
        *,
        refresh_h: float,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Be ready to play; `check` is called while waiting, and raises if the system is down."""
        self._client = httpx.Client(base_url=base_url, timeout=REQUEST_TIMEOUT_S)
        self._kafka, self._world, self._refreshes = kafka, world, refreshes
        self._step_ms, self._check = round(refresh_h * HOUR_MS), check
        self._producer = producer(kafka)
        self._views: Counter[str] = Counter()
        self._users = {
            user.user_id: _UserState(Mood(np.zeros(world.num_topics))) for user in world.users
        }
        self._twins: list[list[User]] = [[] for _ in range(world.size.viewers)]
        for user in world.users:
            self._twins[user.number].append(user)

    def remember(self, user_id: str, video_id: str) -> None:
        """Take in a watch of the past."""
        self._views[video_id] += 1
        state = self._users[user_id]
        state.watched.add(video_id)
        state.last = video_id

    def play(self, on_progress: Callable[[Played], None] = lambda played: None) -> Played:
        """Play from start to end, and return when all of it is served.

        Blocks: for minutes.

        Raises:
            TransientError: something that was sent is not served.
        """
        played, started_s = Played(), time.monotonic()
        asks, uploads = self._world.asks(), list(self._world.new)
        before: Sent | None = None
        end_ms = self._world.start_ms + round(self._world.size.hours * HOUR_MS)
        with ThreadPoolExecutor(ASKERS, thread_name_prefix="ask") as askers:
            for step_ms in range(self._world.start_ms, end_ms, self._step_ms):
                until_ms = min(end_ms, step_ms + self._step_ms)
                step = [ask for ask in asks if step_ms <= ask.time_ms < until_ms]
                for moments in chunks_of(step, MOMENTS_AT_ONCE):
                    uploads = self._upload(uploads, moments[0].time_ms, played)
                    self._ask(moments, askers, played)
                    self._check()
                    on_progress(played)
                uploads = self._upload(uploads, until_ms, played)
                flush(self._producer)
                sent = self._refreshes.sent_so_far(played.uploaded)
                if before is not None:
                    self._wait(before, played)
                before = sent
                played.steps += 1
            if before is not None:
                self._wait(before, played)
        played.seconds = time.monotonic() - started_s
        on_progress(played)
        return played

    def _upload(self, uploads: list[Upload], until_ms: int, played: Played) -> list[Upload]:
        """Send what is due, and return the rest."""
        due = [upload for upload in uploads if upload.time_ms < until_ms]
        for upload in due:
            send(self._producer, self._kafka, UPLOADS, upload.video.video_id, upload.event)
            played.uploaded.add(upload.video.video_id)
        return uploads[len(due) :]

    def _wait(self, sent: Sent, played: Played) -> None:
        started_s = time.monotonic()
        self._refreshes.wait_for(sent, self._check)
        played.waited_s += time.monotonic() - started_s

    def _ask(self, moments: Sequence[Ask], askers: ThreadPoolExecutor, played: Played) -> None:
        """Have all twins ask at some moments, then look at what they were shown."""
        pairs = [(ask, user) for ask in moments for user in self._twins[ask.number]]
        bodies = [self._body(ask, user) for ask, user in pairs]
        answers = list(askers.map(self._post, bodies))
        views = self._views.copy()  # no twin sees what another one watched just now
        for (ask, user), body, answer in zip(pairs, bodies, answers, strict=True):
            found = self._visit(ask, user, answer, views)
            played.asked.append(Asked(ask, user, answer, found))
            self._watch(ask, user, answer, found, body.get("context_video_id"))
            played.watches += len(found.watches)

    def _body(self, ask: Ask, user: User) -> dict[str, Any]:
        features = user.viewer.features.model_dump(exclude_none=True)
        state = self._users[user.user_id]
        body: dict[str, Any] = {"user_id": user.user_id, "user": features, "k": PLACES}
        body["exclude"] = {"video_ids": list(state.looked_at)}
        last = state.last
        if ask.surface == "watch_next" and last is not None:
            return body | {"surface": "watch_next", "context_video_id": last}
        return body | {"surface": "home"}

    def _post(self, body: dict[str, Any]) -> Answer:
        started_s = time.monotonic()
        try:
            response = self._client.post("/v1/recommendations", json=body)
            response.raise_for_status()
        except httpx.HTTPError as error:
            return Answer(error=f"{type(error).__name__}: {error}")
        found = response.json()
        return Answer(
            video_ids=tuple(item["video_id"] for item in found["items"]),
            sources=tuple(item["source"] for item in found["items"]),
            request_id=found["request_id"],
            arm=found["arm"],
            model_version=found["model_version"],
            seconds=time.monotonic() - started_s,
        )

    def _visit(self, ask: Ask, user: User, answer: Answer, views: Counter[str]) -> Visit:
        state, uploads = self._users[user.user_id], self._world.uploads
        slate = [
            Sight(uploads[one].video, uploads[one].time_ms, views[one]) for one in answer.video_ids
        ]
        return visit(
            user.viewer,
            state.mood,
            slate,
            now_ms=ask.time_ms,
            seen=state.watched,
            random_numbers=self._world.chances(ask, len(slate)),
        )

    def _watch(
        self, ask: Ask, user: User, answer: Answer, found: Visit, context: str | None
    ) -> None:
        """Send the watches, and remember them."""
        state = self._users[user.user_id]
        state.mood = found.mood
        state.looked_at |= dict.fromkeys(answer.video_ids[: found.looked])
        for one in found.watches:
            watch = watch_of(
                user,
                one,
                event_id=f"watch-{ask.id}-{user.arm}-{one.place}",
                time_ms=ask.time_ms + 1000 * one.place,
                surface="home" if context is None else "watch_next",
                request_id=answer.request_id,
                context_video_id=context,
                arm=answer.arm,
            )
            send(self._producer, self._kafka, WATCHES, user.user_id, watch)
            self.remember(user.user_id, one.video.video_id)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()
        self._producer.close()


def chunks_of(asks: Sequence[Ask], most: int) -> Iterator[list[Ask]]:
    """Yield the asks in order, up to `most` at once, each of another viewer."""
    chunk: list[Ask] = []
    for ask in asks:
        if len(chunk) == most or any(ask.number == one.number for one in chunk):
            yield chunk
            chunk = []
        chunk.append(ask)
    if chunk:
        yield chunk
