"""The main job: play the later part of a timeline through the running system, and ask it what comes next.

Just before each of a sample of real watches the HTTP endpoint is asked what that viewer would watch next, with the
history that a product surface knows at that moment. What is measured is in `workers.demo_report`.
"""

from __future__ import annotations

import random
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx

from infra.clock import now_ms
from infra.errors import TransientError
from infra.settings import KafkaSettings, Settings
from streams.admin import group_is_ready
from streams.client import wait_until
from streams.events import WatchEvent
from streams.history import percent_watched
from streams.replay import replay
from streams.timeline import Timeline, TimelineEvent
from workers.demo_observer import Observations, Observer

TOP_K = 10
WORKER_GROUPS = ("freshet-uploads", "freshet-watches")
ASKERS = 2  # requests in flight at most
REQUEST_TIMEOUT_S = 60.0
DRAIN_TIMEOUT_S = 180.0


@dataclass(frozen=True)
class Asked:
    """One request and its answer.

    Attributes:
        watch: what the viewer really watched next.
        history: the viewer's watches up to then, oldest first.
        asked_at_ms: wall clock when it was sent.
        earlier_watches: how often the target had been watched by anyone before.
        recommended: video ids, best first; empty where it failed.
        semantic_ids: of the recommended, as answered.
        error: why it failed, or empty.
    """

    watch: WatchEvent
    history: tuple[WatchEvent, ...]
    excluded: frozenset[str]
    asked_at_ms: int
    earlier_watches: int
    popular: tuple[str, ...]
    recommended: tuple[str, ...]
    semantic_ids: tuple[str, ...]
    model_version: int
    codebook_version: int
    seconds: float
    error: str


@dataclass
class Played:
    """What the driver itself knows at the end."""

    asked: list[Asked] = field(default_factory=list)
    sent: Counter[str] = field(default_factory=Counter)
    stream_s: float = 0.0


class Surface:
    """A product surface: it knows what its viewers watched, and asks."""

    def __init__(self, base_url: str, earlier: Timeline, settings: Settings) -> None:
        self._client = httpx.Client(base_url=base_url, timeout=REQUEST_TIMEOUT_S)
        self._length = settings.watches.history_length
        self._histories: dict[str, deque[WatchEvent]] = defaultdict(
            lambda: deque(maxlen=self._length)
        )
        self._watched: dict[str, set[str]] = defaultdict(set)
        self.views: Counter[str] = Counter()
        for watch in earlier.watches():
            self.remember(watch)

    def remember(self, watch: WatchEvent) -> None:
        """Take in a watch that has happened."""
        self._histories[watch.user_id].append(watch)
        self._watched[watch.user_id].add(watch.video_id)
        self.views[watch.video_id] += 1

    def question(self, watch: WatchEvent) -> Callable[[], Asked]:
        """Return a call that asks what comes next for the viewer of `watch`, with what is known now."""
        history = tuple(self._histories[watch.user_id])
        excluded = frozenset(self._watched[watch.user_id])
        earlier_watches = self.views[watch.video_id]
        popular = tuple(_most_watched(self.views, excluded))

        def ask() -> Asked:
            asked_at_ms, started = now_ms(), time.monotonic()
            answer: dict[str, Any] = {}
            error = ""
            try:
                response = self._client.post(
                    "/v1/recommendations", json=_body(watch, history, excluded)
                )
                response.raise_for_status()
                answer = response.json()
            except httpx.HTTPError as cause:
                error = f"{type(cause).__name__}: {cause}"
            items = answer.get("items", [])
            return Asked(
                watch=watch,
                history=history,
                excluded=excluded,
                asked_at_ms=asked_at_ms,
                earlier_watches=earlier_watches,
                popular=popular,
                recommended=tuple(item["video_id"] for item in items),
                semantic_ids=tuple(item["semantic_id"] for item in items),
                model_version=answer.get("model_version") or 0,
                codebook_version=answer.get("codebook_version") or 0,
                seconds=time.monotonic() - started,
                error=error,
            )

        return ask

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


def _most_watched(views: Counter[str], excluded: frozenset[str]) -> list[str]:
    found = []
    for video_id, _ in views.most_common(TOP_K + len(excluded)):
        if video_id not in excluded:
            found.append(video_id)
    return found[:TOP_K]


def _body(
    watch: WatchEvent, history: tuple[WatchEvent, ...], excluded: frozenset[str]
) -> dict[str, Any]:
    return {
        "user_id": watch.user_id,
        "surface": watch.surface,
        "context_video_id": watch.context_video_id,
        "k": TOP_K,
        "history": [
            {
                "video_id": one.video_id,
                "percent": percent_watched(one),
                "watched_s": one.watched_s,
                "surface": one.surface,
                "context_video_id": one.context_video_id,
            }
            for one in history
        ],
        "exclude": {"video_ids": sorted(excluded)},
    }


def play(
    settings: Settings,
    surface: Surface,
    later: Timeline,
    *,
    events_per_s: float,
    num_requests: int,
    on_progress: Callable[[Played], None] | None = None,
) -> Played:
    """Play the timeline, asking before a sample of its watches; return when all is sent and answered.

    Blocks: for the length of the timeline at this pace.
    """
    watches = later.watches()
    rng = random.Random(settings.seed)
    sample = {one.event_id for one in rng.sample(watches, min(num_requests, len(watches)))}
    played = Played()
    pending: list[Future[Asked]] = []

    def before(each: TimelineEvent) -> None:
        event = each.event
        if not isinstance(event, WatchEvent):
            return
        if event.event_id in sample:
            # A question that waited here would be asked after its watch was sent, perhaps of a model that knows it.
            while len(pending) >= ASKERS:
                played.asked.append(pending.pop(0).result())
            pending.append(askers.submit(surface.question(event)))
        surface.remember(event)

    def progress(sent: Counter[str]) -> None:
        played.sent = sent
        if on_progress is not None:
            on_progress(played)

    started = time.monotonic()
    askers = ThreadPoolExecutor(ASKERS, thread_name_prefix="ask")
    try:
        replay(
            settings.kafka,
            later.events,
            events_per_s=events_per_s,
            before=before,
            on_progress=progress,
        )
        played.asked += [one.result() for one in pending]
    finally:
        askers.shutdown(cancel_futures=True)
    played.stream_s = time.monotonic() - started
    return played


def drain(observer: Observer, played: Played, check: Callable[[], None]) -> list[str]:
    """Wait until everything that was sent has come all the way to serving; return what did not, in words."""
    seen = observer.seen

    def everything_served() -> bool:
        check()
        return (
            len(seen.uploads) == played.sent["uploaded"] + played.sent["updated"]
            and seen.uploads_without_sid() <= 0
            and _new_videos_servable(seen)
            and seen.watches_in_shards() == played.sent["watched"]
            and _newest_shard_served(seen)
        )

    try:
        wait_until(
            everything_served,
            timeout_s=DRAIN_TIMEOUT_S,
            what="the last upload and the last watch being served",
            interval_s=0.3,
        )
    except TransientError as error:
        return [str(error)]
    return []


def _new_videos_servable(seen: Observations) -> bool:
    assigned = {one.video_id for _, one in list(seen.assigned) if one.upload_position >= 0}
    uploaded = {
        event.video_id for _, event in list(seen.uploads.values()) if event.type == "uploaded"
    }
    return assigned & uploaded <= seen.first_servable.keys()


def _newest_shard_served(seen: Observations) -> bool:
    wanted = {shard.shard_id for _, shard in list(seen.shards) if shard.watches}
    learned = {one for _, checkpoint in list(seen.checkpoints) for one in checkpoint.shard_ids}
    if not wanted <= learned or not seen.checkpoints:
        return False
    newest = max(checkpoint.model_version for _, checkpoint in list(seen.checkpoints))
    return any(
        swap.outcome == "succeeded" and swap.model_version >= newest for swap in list(seen.swaps)
    )


def wait_ready(
    base_url: str, kafka: KafkaSettings, check: Callable[[], None], *, timeout_s: float = 300
) -> None:
    """Wait until the endpoint can recommend and every worker owns its partitions.

    Raises:
        TransientError: they do not in time.
    """
    with httpx.Client(base_url=base_url, timeout=5) as client:

        def ready() -> bool:
            check()
            try:
                return client.get("/readyz").status_code == 200
            except httpx.HTTPError:
                return False

        wait_until(ready, timeout_s=timeout_s, what=f"{base_url}/readyz", interval_s=0.3)

    def owned() -> bool:
        check()
        return all(group_is_ready(kafka, group) for group in WORKER_GROUPS)

    wait_until(owned, timeout_s=timeout_s, what=f"an assignment of {WORKER_GROUPS}", interval_s=0.3)
