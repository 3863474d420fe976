"""A world to try recommenders in: uploads at a steady rate, viewers in twins, what they watched before, when they ask.

A function of its sizes and a seed. Each viewer exists once in every arm: the same tastes, whims and moments of asking,
under user ids that the experiment deals to different arms. So arms are compared on the same people.

Before the start nobody recommends: a page shows what is popular, what a topic that the viewer likes holds, what is
newest, and anything. That past is what the first models learn from. Knows nothing of Kafka and HTTP.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from typing import NamedTuple

import numpy as np

from infra.errors import ConfigError
from infra.settings import ExperimentSettings
from streams.arms import arm_of, shares
from streams.events import Surface, VideoUploaded, WatchEvent
from streams.timeline import Timeline, on_timeline
from streams.video_pool import PooledVideo, VideoPool
from streams.viewers import HOUR_MS, Mood, Sight, Viewer, Watched, draw_viewers, visit

PLACES = 10
FRONT_PAGE = {"popular": 1, "topic": 6, "newest": 1, "any": 2}
"""Places of a page of the past."""
POPULAR, NEWEST, COUNT_EVERY = 50, 10, 100
WATCH_NEXT_SHARE = 0.3
"""Of the moments of asking, those beside the video that was watched last."""
_PAST, _ASKS, _SLATES, _TITLES = range(
    4
)  # of random numbers that have nothing to do with each other


@dataclass(frozen=True, kw_only=True)
class WorldSize:
    """How much of everything; hours are of event time.

    Attributes:
        viewers: in each arm.
        past_videos: uploaded before the start, at the same rate as after it.
        past_visits: pages that each user looked through in the last `visiting_h` before the start, on average.
        asks_per_day: of each user, on average.
    """

    viewers: int
    past_videos: int
    uploads_per_h: float
    hours: float
    asks_per_day: float
    past_visits: float = 60.0
    visiting_h: float = 168.0

    @property
    def past_h(self) -> float:
        """Hours before the start in which there were uploads."""
        return self.past_videos / self.uploads_per_h


class Upload(NamedTuple):
    """A video with the moment of its upload."""

    time_ms: int
    video: PooledVideo

    @property
    def event(self) -> VideoUploaded:
        """What the upload service says."""
        update = {"event_time_ms": self.time_ms, "event_id": f"upload-{self.video.video_id}"}
        return self.video.upload.model_copy(update=update)


class User(NamedTuple):
    """A viewer in an arm; `number` is the viewer's, which twins share."""

    user_id: str
    arm: str
    number: int
    viewer: Viewer


class Ask(NamedTuple):
    """A moment at which a viewer and all twins ask.

    Attributes:
        id: a number that no other has: what chance does to the answers follows from it.
        number: the viewer's.
    """

    id: int
    time_ms: int
    number: int
    surface: Surface


@dataclass(frozen=True)
class World:
    """Everything that is there before anybody asks; make it with `make_world`."""

    size: WorldSize
    seed: int
    start_ms: int
    past: tuple[Upload, ...]
    new: tuple[Upload, ...]
    users: tuple[User, ...]
    num_topics: int

    @cached_property
    def uploads(self) -> dict[str, Upload]:
        """All videos, by id."""
        return {upload.video.video_id: upload for upload in (*self.past, *self.new)}

    def asks(self) -> list[Ask]:
        """Return when viewers ask, in time order."""
        rng = np.random.default_rng([self.seed, _ASKS])
        end_ms = self.start_ms + round(self.size.hours * HOUR_MS)
        moments = []
        for number in range(self.size.viewers):
            times = rng.integers(
                self.start_ms, end_ms, rng.poisson(self.size.asks_per_day * self.size.hours / 24)
            )
            moments += [(int(time_ms), number) for time_ms in times]
        moments.sort()
        next_to = rng.random(len(moments)) < WATCH_NEXT_SHARE
        return [
            Ask(one, time_ms, number, "watch_next" if beside else "home")
            for one, ((time_ms, number), beside) in enumerate(zip(moments, next_to, strict=True))
        ]

    def chances(self, ask: Ask, places: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        """Return the random numbers of a visit, the same for all twins; shape [places, 4]."""
        return np.random.default_rng([self.seed, _SLATES, ask.id]).random((places, 4))


def make_world(
    pool: VideoPool,
    experiment: ExperimentSettings,
    size: WorldSize,
    *,
    start_ms: int,
    seed: int,
) -> World:
    """Draw a world; its loop begins at `start_ms`, event time.

    Raises:
        ConfigError: the pool has too few videos for it.
    """
    num_new = round(size.hours * size.uploads_per_h)
    if size.past_videos + num_new > len(pool.videos):
        raise ConfigError(
            f"{size.past_videos} videos of the past and {num_new} new ones are wanted, the pool has {len(pool.videos)}"
        )
    rng = np.random.default_rng([seed, _TITLES])
    drawn = rng.permutation(len(pool.videos))[: size.past_videos + num_new].tolist()
    past_ms = np.sort(
        rng.integers(start_ms - round(size.past_h * HOUR_MS), start_ms, size.past_videos)
    )
    new_ms = [start_ms + round((at + 0.5) * HOUR_MS / size.uploads_per_h) for at in range(num_new)]
    uploads = [
        Upload(int(time_ms), pool.videos[number])
        for time_ms, number in zip([*past_ms.tolist(), *new_ms], drawn, strict=True)
    ]
    viewers = draw_viewers(size.viewers, len(pool.topics), seed=seed)
    return World(
        size,
        seed,
        start_ms,
        tuple(uploads[: size.past_videos]),
        tuple(uploads[size.past_videos :]),
        tuple(_twins(viewers, experiment)),
        len(pool.topics),
    )


def _twins(viewers: Sequence[Viewer], experiment: ExperimentSettings) -> Iterator[User]:
    """Yield each viewer once in every arm, under the first id that the experiment deals to it."""
    for number, viewer in enumerate(viewers):
        for arm in shares(experiment):
            ids = (f"viewer-{number}-{again}" for again in count())
            user_id = next(one for one in ids if arm_of(one, experiment) == arm)
            yield User(user_id, arm, number, viewer)


def watch_of(
    user: User,
    watched: Watched,
    *,
    event_id: str,
    time_ms: int,
    surface: Surface,
    request_id: str | None = None,
    context_video_id: str | None = None,
    arm: str | None = None,
) -> WatchEvent:
    """Return what the player says of a watch that began at `time_ms`."""
    return WatchEvent(
        event_id=event_id,
        event_time_ms=time_ms,
        user_id=user.user_id,
        video_id=watched.video.video_id,
        surface=surface,
        watched_s=round(watched.watched_s, 1),
        duration_s=watched.video.duration_s,
        liked=watched.liked,
        request_id=request_id,
        context_video_id=context_video_id,
        arm=arm,
        user=user.viewer.features,
    )


def past_of(world: World) -> Timeline:
    """Return the uploads and watches before the start."""
    rng = np.random.default_rng([world.seed, _PAST])
    pages = _FrontPages(world, rng)
    moments: list[tuple[int, int]] = []
    first_ms = world.start_ms - round(world.size.visiting_h * HOUR_MS)
    for at in range(len(world.users)):
        times = rng.integers(first_ms, world.start_ms, rng.poisson(world.size.past_visits))
        moments += [(int(time_ms), at) for time_ms in times]
    beside = rng.random(len(moments)) < WATCH_NEXT_SHARE
    seen: dict[str, dict[str, None]] = {user.user_id: {} for user in world.users}
    moods = dict.fromkeys(seen, Mood(np.zeros(world.num_topics)))
    watches = []
    for number, (time_ms, at) in enumerate(sorted(moments)):
        user = world.users[at]
        slate = pages.page(user.viewer, time_ms)
        found = visit(
            user.viewer,
            moods[user.user_id],
            slate,
            now_ms=time_ms,
            seen=seen[user.user_id],
            random_numbers=rng.random((len(slate), 4)),
        )
        moods[user.user_id] = found.mood
        context = next(reversed(seen[user.user_id]), None) if beside[number] else None
        for one in found.watches:
            seen[user.user_id][one.video.video_id] = None
            pages.views[one.video.video_id] += 1
            watches.append(
                watch_of(
                    user,
                    one,
                    event_id=f"past-{number}-{one.place}",
                    time_ms=time_ms + 1000 * one.place,
                    surface="home" if context is None else "watch_next",
                    context_video_id=context,
                )
            )
    events: list[VideoUploaded | WatchEvent] = [upload.event for upload in world.past]
    events += watches
    return Timeline(
        tuple(sorted(map(on_timeline, events), key=lambda each: (each.event_time_ms, each.kind)))
    )


class _FrontPages:
    """What a site without a recommender shows."""

    def __init__(self, world: World, rng: np.random.Generator) -> None:
        self.views: Counter[str] = Counter()
        self._world, self._rng = world, rng
        self._times = [upload.time_ms for upload in world.past]
        self._of_topic = [
            [at for at, upload in enumerate(world.past) if upload.video.topic_shares[topic] > 0]
            for topic in range(world.num_topics)
        ]
        self._popular: list[str] = []
        self._pages = 0

    def page(self, viewer: Viewer, now_ms: int) -> list[Sight]:
        """Return a page in random order; a video stands on it once."""
        if self._pages % COUNT_EVERY == 0:
            self._popular = [video_id for video_id, _ in self.views.most_common(POPULAR)]
        self._pages += 1
        rng, there = self._rng, bisect_right(self._times, now_ms)
        topic = int(rng.choice(self._world.num_topics, p=viewer.tastes))
        of_topic = self._of_topic[topic][: bisect_right(self._of_topic[topic], there - 1)]
        shelves: dict[str, Sequence[int]] = {
            "topic": of_topic,
            "newest": range(max(0, there - NEWEST), there),
            "any": range(there),
        }
        ids = [
            self._world.past[shelf[int(rng.integers(len(shelf)))]].video.video_id
            for name, shelf in shelves.items()
            if len(shelf)
            for _ in range(FRONT_PAGE[name])
        ]
        if self._popular:
            ids += rng.choice(self._popular, FRONT_PAGE["popular"]).tolist()
        different = list(dict.fromkeys(ids))
        rng.shuffle(different)
        return [self.sight(video_id) for video_id in different]

    def sight(self, video_id: str) -> Sight:
        """Return a video as everybody sees it."""
        upload = self._world.uploads[video_id]
        return Sight(upload.video, upload.time_ms, self.views[video_id])
