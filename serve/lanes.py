"""The fresh lane: some places of an answer are for new videos; knows nothing of models and requests.

An arm's lane helps a video to its first views: once those are there, it competes like any other. A caller who asks for
new videos gets all of them.

STATIC (2602.22647) decodes under an age constraint to get new videos shown; here that fills a share of the places.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import NamedTuple

from serve.schemas import Source


class Pick(NamedTuple):
    """A video that is to be shown.

    Attributes:
        score: natural log of a model's probability, where one spoke.
    """

    video_id: str
    score: float | None
    source: Source


class FreshLane(NamedTuple):
    """How many of an answer's places are for how young videos.

    Attributes:
        uploaded_after_ms: a video uploaded since then is new.
        share: of the places, above 0; 1 is all of them.
        had_enough: videos that need no help, new or not.
        smoothing: of the lane's search; see `models.recommend.Request`.
    """

    uploaded_after_ms: int
    share: float
    had_enough: Collection[str] = ()
    smoothing: float = 0.0

    def places(self, k: int) -> int:
        """Return how many of k places the lane has, at least one."""
        return math.ceil(self.share * k - 1e-9)


def merged(
    main: Sequence[Pick], fresh: Sequence[Pick], *, is_new: Sequence[bool], k: int, places: int
) -> list[Pick]:
    """Return up to k picks, `places` of them new where so many are known, each video once.

    New videos that stand among the first k by themselves count; only what is missing comes from the lane, spread
    evenly, and the last of the others give way. Where the lane has too few, the others keep the places.

    Args:
        main: best first, of any age.
        fresh: best first, all new.
        is_new: of each in `main`, whether the lane is for it.
        k: wanted.
        places: of the lane.
    """
    first = list(zip(main, is_new, strict=True))[:k]
    shown = {pick.video_id for pick, _ in first}
    missing = max(0, places - sum(new for _, new in first))
    added = [pick for pick in fresh if pick.video_id not in shown][:missing]
    surplus = len(first) + len(added) - k
    old = [place for place, (_, new) in enumerate(first) if not new]
    giving_way = set(old[len(old) - surplus :]) if surplus > 0 else set()
    answer = [pick for place, (pick, _) in enumerate(first) if place not in giving_way]
    total = len(answer) + len(added)
    for number, pick in enumerate(added):
        answer.insert((number + 1) * total // (len(added) + 1), pick)
    return answer
