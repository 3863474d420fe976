"""Real titles to simulate with, and what is true of each: its topics and how good it is; knows nothing of viewers.

What is true decides what simulated viewers make of a video. A recommender sees what an uploader says (title, tags,
description, genres), which tells part of it, as it does in life.

| data | seen | true topics | true quality |
| --- | --- | --- | --- |
| MovieLens | title, genres, tags | the genres, and an unnamed one | people's mean rating |
| YouTube, where set | title, description, tags, channel | the category, and an unnamed one | drawn |
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import NormalDist, fmean, pstdev

import numpy as np
from numpy.typing import NDArray

from infra.settings import Settings
from streams import movielens, youtube_trending
from streams.events import VideoUploaded

UNNAMED_SHARE = 0.25
"""Of a video's topics, what no genre or category says."""
PRIOR_RATINGS = 5
"""As so many people of the mean opinion count: a film that one person loved is not the best of all."""
MEDIAN_DURATION_S = 300.0


@dataclass(frozen=True, eq=False)
class PooledVideo:
    """A video that could be uploaded.

    Attributes:
        upload: as its uploader describes it; when it is uploaded is for others to say.
        topic_shares: what it is about, as shares of `VideoPool.topics`; they sum to 1.
        quality: how good it is, apart from any taste; over the pool of mean 0 and deviation 1.
    """

    upload: VideoUploaded
    topic_shares: NDArray[np.float64]
    quality: float

    @property
    def video_id(self) -> str:
        """The upload's."""
        return self.upload.video_id

    @property
    def duration_s(self) -> float:
        """How long it is, which every upload of a pool says."""
        assert self.upload.duration_s is not None
        return self.upload.duration_s


@dataclass(frozen=True)
class VideoPool:
    """Videos over one list of topics."""

    topics: tuple[str, ...]
    videos: tuple[PooledVideo, ...]


def load_pool(settings: Settings) -> VideoPool:
    """Return MovieLens, and YouTube's trending videos where `FRESHET_DATA__YOUTUBE_TRENDING` is set.

    Raises:
        ConfigError: the files of a data set are missing or no such files.
    """
    uploads, named, quality = _movielens()
    if settings.data.youtube_trending is not None:
        found = youtube_trending.load_trending(settings)
        for upload in found.timeline.uploads():
            uploads.append(upload)
            named[upload.video_id] = (found.categories[upload.video_id],)
            quality[upload.video_id] = NormalDist().inv_cdf(_share_of(upload.video_id, "quality"))
    return pool_of(uploads, named, quality)


def pool_of(
    uploads: Iterable[VideoUploaded],
    named: Mapping[str, tuple[str, ...]],
    quality: Mapping[str, float],
) -> VideoPool:
    """Return a pool of uploads whose named topics and quality are known; one without a topic is left out.

    The topic that nobody names and the duration, where the upload has none, follow from the id.
    """
    topics = tuple(sorted({topic for names in named.values() for topic in names}))
    number_of = {topic: number for number, topic in enumerate(topics)}
    videos = []
    for upload in uploads:
        names = named[upload.video_id]
        if not names:
            continue
        topic_shares = np.zeros(len(topics))
        for name in names:
            topic_shares[number_of[name]] += (1 - UNNAMED_SHARE) / len(names)
        unnamed = int(_share_of(upload.video_id, "topic") * len(topics))
        topic_shares[unnamed] += UNNAMED_SHARE
        duration_s = upload.duration_s or _duration_s(upload.video_id)
        upload = upload.model_copy(update={"duration_s": duration_s})
        videos.append(PooledVideo(upload, topic_shares, quality[upload.video_id]))
    return VideoPool(topics, tuple(videos))


def _movielens() -> tuple[list[VideoUploaded], dict[str, tuple[str, ...]], dict[str, float]]:
    timeline = movielens.load_timeline()
    newest = {upload.video_id: upload for upload in timeline.uploads()}  # with all its tags
    shares: dict[str, list[float]] = defaultdict(list)
    for watch in timeline.watches():
        shares[watch.video_id].append(watch.watched_s / watch.duration_s)
    everyone = fmean(share for some in shares.values() for share in some)
    shrunk = {
        video_id: (sum(shares[video_id]) + PRIOR_RATINGS * everyone)
        / (len(shares[video_id]) + PRIOR_RATINGS)
        for video_id in newest
    }
    mean, deviation = fmean(shrunk.values()), pstdev(shrunk.values())
    uploads = [one.model_copy(update={"type": "uploaded"}) for one in newest.values()]
    return (
        uploads,
        {one.video_id: one.topics for one in uploads},
        {video_id: (value - mean) / deviation for video_id, value in shrunk.items()},
    )


def _duration_s(video_id: str) -> float:
    """Return a length drawn from a log-normal distribution, from one minute to half an hour."""
    drawn = MEDIAN_DURATION_S * math.exp(
        0.7 * NormalDist().inv_cdf(_share_of(video_id, "duration"))
    )
    return round(min(max(drawn, 60.0), 1800.0), 1)


def _share_of(video_id: str, what: str) -> float:
    """Return a number between 0 and 1, both excluded, that follows from a video and a word."""
    digest = hashlib.blake2b(f"{what}/{video_id}".encode(), digest_size=6).digest()
    return (int.from_bytes(digest) + 0.5) / 2**48
