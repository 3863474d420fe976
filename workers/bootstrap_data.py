"""What a codebook is fitted on and judged by: a data set, cut in two, its co-watched pairs and its categories.

Knows nothing of quantizers and of Kafka.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from infra.errors import ConfigError
from infra.settings import Settings
from streams import beauty, movielens, youtube_trending
from streams.events import VideoUploaded, WatchEvent
from streams.timeline import Timeline

DATA_NAMES = ("movielens", "beauty", "youtube")
_EMBEDDED = (
    "part of the embedded text: agreement says that the codes keep them, not that they were found"
)
_NOT_EMBEDDED = "no part of the embedded text: agreement says that the codes found them"
_CO_WATCHED = (
    "watched by one user directly one after the other, after the cut; "
    "the fit may have seen pairs from before it"
)


@dataclass(frozen=True)
class DataSet:
    """A named timeline with what is known of it.

    Attributes:
        categories: video_id -> category, where the uploads must not say it; None: the uploads say it.
        malformed: rows of the files that were left out, and why.
    """

    name: str
    timeline: Timeline
    categories: Mapping[str, str] | None = None
    malformed: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Later:
    """What came after the part that a codebook is fitted on; it is judged by this, and never fitted on it.

    Attributes:
        held_out: videos that were uploaded later.
        watches: after the cut, of videos from before and after it.
        categories: as in `DataSet`.
        data: the data set's name, for the card.
        malformed: rows of its files that were left out, for the card.
    """

    held_out: Sequence[VideoUploaded] = ()
    watches: Sequence[WatchEvent] = ()
    categories: Mapping[str, str] | None = None
    data: str = ""
    malformed: Sequence[str] = ()

    @property
    def notes(self) -> dict[str, str]:
        """What a reader of the card has to know."""
        embedded = _EMBEDDED if self.categories is None else _NOT_EMBEDDED
        return {
            "data": self.data,
            "category": f"one label per video, as specific as the data have it; {embedded}",
            "co_watching": _CO_WATCHED if self.watches else "no watches from after the cut",
        }


def load_data(name: str, settings: Settings) -> DataSet:
    """Return a data set by name.

    Raises:
        ConfigError: there is no such data set, or its folder is not set, or its files are not good.
    """
    if name == "movielens":
        return DataSet(name, movielens.load_timeline())
    if name == "beauty":
        return DataSet(name, beauty.load_timeline(settings))
    if name == "youtube":
        found = youtube_trending.load_trending(settings)
        return DataSet(name, found.timeline, found.categories, found.malformed)
    raise ConfigError(f"data is {name!r}; there are {', '.join(DATA_NAMES)}")


def split_catalogue(timeline: Timeline, share: float) -> tuple[Timeline, Timeline]:
    """Return the part with the earliest `share` of all videos, up to the upload of the next one, and the rest."""
    first_seen: dict[str, int] = {}
    for at, each in enumerate(timeline.events):
        if isinstance(each.event, VideoUploaded):
            first_seen.setdefault(each.event.video_id, at)
    num_earlier = round(share * len(first_seen))
    cut = next(islice(first_seen.values(), num_earlier, None), len(timeline.events))
    return Timeline(timeline.events[:cut]), Timeline(timeline.events[cut:])


def catalogue_of(timeline: Timeline) -> list[VideoUploaded]:
    """Return each video's newest state, in the order of first upload."""
    newest: dict[str, VideoUploaded] = {}
    for upload in timeline.uploads():
        newest[upload.video_id] = upload
    return list(newest.values())


def later_part(data: DataSet, earlier: Timeline, later: Timeline) -> Later:
    """Return what a codebook that is fitted on the earlier part is judged by."""
    known = {upload.video_id for upload in earlier.uploads()}
    held_out = [upload for upload in catalogue_of(later) if upload.video_id not in known]
    return Later(
        held_out=held_out,
        watches=later.watches(),
        categories=data.categories,
        data=data.name,
        malformed=data.malformed,
    )


def co_watched(watches: Iterable[WatchEvent]) -> Iterator[tuple[str, str]]:
    """Yield the videos that one user watched directly one after the other, as often as that happened.

    The same video twice in a row is no pair.
    """
    previous_of_user: dict[str, str] = {}
    for watch in watches:
        previous = previous_of_user.get(watch.user_id)
        if previous is not None and previous != watch.video_id:
            yield previous, watch.video_id
        previous_of_user[watch.user_id] = watch.video_id


def pair_rows(watches: Iterable[WatchEvent], video_ids: Sequence[str]) -> NDArray[np.int64]:
    """Return the co-watched pairs as positions in `video_ids`, those of other videos left out; shape [P, 2]."""
    row_of = {video_id: row for row, video_id in enumerate(video_ids)}
    rows = [
        (row_of[one], row_of[other])
        for one, other in co_watched(watches)
        if one in row_of and other in row_of
    ]
    return np.array(rows, dtype=np.int64).reshape(-1, 2)


def labels_of(
    uploads: Sequence[VideoUploaded], categories: Mapping[str, str] | None
) -> NDArray[np.int64]:
    """Return each video's category as a number, -1 where it has none; by default all its upload says of it.

    That is a film's whole set of genres, a product's whole path: the most specific label there is.
    """
    names = [
        " > ".join((*upload.topics, upload.category))
        if categories is None
        else categories.get(upload.video_id, "")
        for upload in uploads
    ]
    numbers = {name: number for number, name in enumerate(sorted(set(names)))}
    return np.array([numbers[name] if name else -1 for name in names], dtype=np.int64)
