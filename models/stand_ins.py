"""New videos in the place of watched ones that are like them: for an LRM that proposes what nobody has watched yet.

A watch says that whoever watched as this viewer did watches such videos; the first code of a semantic ID says which
are such. So a few watches of videos under a new one's first code are learned once more, behind the same histories,
with the new video in their place: it is proposed to whom it may be for, before it was shown to anybody. Knows nothing
of tokens and of where rows come from.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from models.prompts import TimedWatchLike, Videos


class Place(NamedTuple):
    """Where a video was watched: a row, and which of its watches."""

    row: int
    at: int


def places_for(
    new_video_ids: Iterable[str],
    rows: Sequence[Sequence[TimedWatchLike]],
    videos: Videos,
    *,
    count: float,
    rng: random.Random,
) -> list[tuple[str, Place]]:
    """Return, for each new video, up to `count` watches of videos that share its first code, drawn from all rows.

    Args:
        new_video_ids: those that are not among `videos` get none.
        rows: watches to draw from, each in time order.
        videos: all live ones.
        count: for each new video; what is beyond a whole number is a probability.
        rng: draws.
    """
    watched: dict[int, list[Place]] = defaultdict(list)
    for row, watches in enumerate(rows):
        for at, watch in enumerate(watches):
            video = videos.get(watch.video_id)
            if video is not None:
                watched[video.semantic_id[0]].append(Place(row, at))
    found = []
    for video_id in new_video_ids:
        video = videos.get(video_id)
        if video is None:
            continue
        like_it = watched[video.semantic_id[0]]
        wanted = int(count) + (rng.random() < count % 1)
        found += [(video_id, place) for place in rng.sample(like_it, min(wanted, len(like_it)))]
    return found
