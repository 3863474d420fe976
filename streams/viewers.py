"""Simulated viewers: a slate in, what they watch of it out; plain functions, and nothing of Kafka, HTTP and models.

A viewer looks down a slate and clicks what appeals, which is the sum of

    taste        the viewer's for the video's true topics
    quality      of the video, the same for everybody
    novelty      what the viewer sees in a video just because it is new; gone within a day or two
    popularity   what everybody watches draws
    fatigue      the more of a topic was watched lately, the less of it appeals
    chance       a whim of this viewer about this video, the same whenever it is shown

How much of it is watched, and whether it is liked, follows from taste, quality, fatigue and whim alone: novelty and
popularity make people click, not stay. Further down, fewer look (position bias). Nothing is watched twice.

Everything follows from what is passed in: the same viewer, mood, slate and random numbers give the same watches. So
twins, viewers of the same tastes who are shown different slates, differ by their slates only.

Legend: K places of a slate, T topics.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streams.events import UserFeatures
from streams.video_pool import PooledVideo

HOUR_MS = 3_600_000
NOVELTY_FADES_H = 12.0
"""Hours in which the appeal of what is new falls to 1 / e."""
FATIGUE_FADES_H = 3.0
"""The same of fatigue."""
TASTE_WEIGHT, QUALITY_WEIGHT, CHANCE_WEIGHT = 14.0, 0.5, 0.6
"""So that in a simulated past a two-tower finds the next watch twice as often as popularity does, as in MovieLens."""
POPULARITY_UNIT = np.log(100.0)
"""A video with 99 views has the whole of a viewer's pull, one without any has none."""
STAY_UNIT = 3.0
_REGIONS, _DEVICES = ("US", "GB", "FR", "DE"), ("phone", "tablet", "tv")


@dataclass(frozen=True)
class Viewer:
    """Somebody with tastes.

    Attributes:
        name: whims follow from it; twins share it.
        tastes: shares of the topics; they sum to 1.
        novelty, popularity, fatigue: how much each moves this viewer; 0 is not at all.
        patience: the share of those who looked at one place that look at the next.
        reserve: what appeal must overcome; at this appeal every second look is a click.
    """

    name: str
    tastes: NDArray[np.float64]
    novelty: float
    popularity: float
    fatigue: float
    patience: float
    reserve: float
    features: UserFeatures


@dataclass(frozen=True)
class Mood:
    """What a viewer has had lately: videos' worth of each topic [T], as of a time."""

    had: NDArray[np.float64]
    at_ms: int = 0

    def at(self, now_ms: int) -> Mood:
        """Return the same, faded until then."""
        hours = max(0, now_ms - self.at_ms) / HOUR_MS
        return Mood(self.had * np.exp(-hours / FATIGUE_FADES_H), now_ms)

    def after(self, video: PooledVideo, share: float) -> Mood:
        """Return the mood after a share of a video was watched."""
        return Mood(self.had + share * video.topic_shares, self.at_ms)


class Sight(NamedTuple):
    """A video in a slate, as everybody can see it: when it was uploaded and how often it was watched."""

    video: PooledVideo
    upload_time_ms: int
    views: int


class Watched(NamedTuple):
    """One watch.

    Attributes:
        place: in the slate, from 0.
        share: of the video that was watched, 0 to 1.
    """

    place: int
    video: PooledVideo
    share: float
    liked: bool

    @property
    def watched_s(self) -> float:
        """Seconds watched."""
        return self.share * self.video.duration_s


class Visit(NamedTuple):
    """What came of one slate; `looked` is how many places were seen."""

    watches: tuple[Watched, ...]
    looked: int
    mood: Mood


def draw_viewers(count: int, num_topics: int, *, seed: int) -> list[Viewer]:
    """Return viewers, each keen on a few topics; the first ones are the same however many are drawn."""
    viewers = []
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        viewers.append(
            Viewer(
                name=f"{seed}-{number}",
                tastes=rng.dirichlet(np.full(num_topics, 0.1)),
                novelty=rng.gamma(2.0, 0.4),
                popularity=rng.gamma(2.0, 0.25),
                fatigue=rng.gamma(4.0, 0.2),
                patience=rng.uniform(0.75, 0.95),
                reserve=rng.normal(4.0, 0.4),
                features=UserFeatures(
                    region=str(rng.choice(_REGIONS)),
                    age=int(rng.integers(13, 75)),
                    device=str(rng.choice(_DEVICES)),
                    language="en",
                ),
            )
        )
    return viewers


def worth(viewer: Viewer, mood: Mood, video: PooledVideo) -> float:
    """Return what a video is worth to a viewer who watches it."""
    taste = TASTE_WEIGHT * float(viewer.tastes @ video.topic_shares)
    tired = viewer.fatigue * float(mood.had @ video.topic_shares)
    return taste + QUALITY_WEIGHT * video.quality - tired + CHANCE_WEIGHT * _whim(viewer, video)


def draw_of(viewer: Viewer, sight: Sight, now_ms: int) -> float:
    """Return what draws a viewer to a video beyond its worth: that it is new, and that others watch it."""
    age_h = max(0, now_ms - sight.upload_time_ms) / HOUR_MS
    crowd = float(np.log1p(sight.views) / POPULARITY_UNIT)
    return viewer.novelty * float(np.exp(-age_h / NOVELTY_FADES_H)) + viewer.popularity * crowd


def visit(
    viewer: Viewer,
    mood: Mood,
    slate: Sequence[Sight],
    *,
    now_ms: int,
    seen: Collection[str],
    random_numbers: NDArray[np.float64],
) -> Visit:
    """Return what a viewer watches of a slate, from the top down.

    Args:
        viewer: who looks.
        mood: before; it fades until now.
        slate: best place first.
        now_ms: event time.
        seen: ids of what the viewer has watched before, and does not watch again.
        random_numbers: uniform in [0, 1), a row for each place: look further, click, stay, like.
    """
    mood = mood.at(now_ms)
    watches: list[Watched] = []
    looked = 0
    for place, (sight, numbers) in enumerate(zip(slate, random_numbers, strict=True)):
        further, click, stay, like = numbers.tolist()
        if place and further >= viewer.patience:
            break
        looked = place + 1
        if sight.video.video_id in seen:
            continue
        value = worth(viewer, mood, sight.video)
        if click >= _logistic(value + draw_of(viewer, sight, now_ms) - viewer.reserve):
            continue
        content = _logistic(STAY_UNIT * (value - viewer.reserve + 1.5) / 2)
        share = _watched_share(content, stay)
        watches.append(Watched(place, sight.video, share, like < 0.4 * share * content))
        mood = mood.after(sight.video, share)
    return Visit(tuple(watches), looked, mood)


def _watched_share(content: float, stay: float) -> float:
    """Return how much of a video is watched: 2 % and more, the whole of it for some; its mean rises with content."""
    share: float = stay ** ((1 - content) / max(content, 0.02))
    return min(1.0, max(0.02, share))


def _logistic(value: float) -> float:
    return float(1 / (1 + np.exp(-value)))


def _whim(viewer: Viewer, video: PooledVideo) -> float:
    """Return a number drawn from a standard normal distribution, the same for the same two."""
    digest = hashlib.blake2b(f"{viewer.name}/{video.video_id}".encode(), digest_size=6).digest()
    return NormalDist().inv_cdf((int.from_bytes(digest) + 0.5) / 2**48)
