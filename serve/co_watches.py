"""Which video was watched right before which: what "people who watched this went on to that" rests on.

Bounded: a video remembers its few most frequent predecessors, and the videos that were followed to longest ago are
forgotten. Fed by one thread and read by many; lost with the process, and counted anew from the topics. Knows nothing of
users: it cannot tell whose watches it counts.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, defaultdict
from typing import NamedTuple

PREDECESSORS_MAX = 32
PAIRS_MAX = 500_000
"""Of two videos, one behind the other: some 250 bytes each, where every id is a string of its own."""


class _Count(NamedTuple):
    """How often a pair was seen, at most; `taken_over` of these were of those whose place it took."""

    most: int
    taken_over: int


class CoWatches:
    """Counts how often one video followed another; tells of no more than there were.

    A video whose places are all taken gives that of its rarest predecessor, and its count, to a new one (space-saving:
    Metwally et al. 2005), so that a frequent predecessor is found though it comes late. What is told is the part of a
    count that is certain: exact while places are free, and else less by at most the number of times the video was
    followed to, divided by `predecessors_max`. Who forgets, after a removal or for lack of room, begins at 0.
    """

    def __init__(
        self, *, predecessors_max: int = PREDECESSORS_MAX, pairs_max: int = PAIRS_MAX
    ) -> None:
        """Start empty.

        Raises:
            ValueError: there would be no room for one video's predecessors.
        """
        if not 1 <= predecessors_max <= pairs_max:
            raise ValueError(
                f"predecessors_max is {predecessors_max}, expected 1 to pairs_max, which is {pairs_max}"
            )
        self._predecessors_max, self._pairs_max = predecessors_max, pairs_max
        self._lock = threading.Lock()
        self._pairs = 0
        self._before: OrderedDict[str, dict[str, _Count]] = OrderedDict()
        self._after: defaultdict[str, set[str]] = defaultdict(set)

    def __len__(self) -> int:
        """Return how many pairs are remembered."""
        return self._pairs

    def add(self, previous_video_id: str, video_id: str) -> None:
        """Count that somebody watched a video right after another; the same one again does not count."""
        if previous_video_id == video_id:
            return
        with self._lock:
            counts = self._before.setdefault(video_id, {})
            self._before.move_to_end(video_id)
            seen = counts.get(previous_video_id)
            if seen is None:
                self._put(video_id, previous_video_id, counts)
            else:
                counts[previous_video_id] = seen._replace(most=seen.most + 1)

    def before(self, video_id: str, k: int = 10) -> list[tuple[str, int]]:
        """Return up to k videos after which this one was watched, and how often at least; most often first."""
        with self._lock:
            counts = list(self._before.get(video_id, {}).items())
        certain = [(each, count.most - count.taken_over) for each, count in counts]
        return sorted(certain, key=lambda pair: (-pair[1], pair[0]))[:k]

    def remove(self, video_id: str) -> None:
        """Forget a video, on either side."""
        with self._lock:
            self._forget(video_id)
            for follower in list(self._after.get(video_id, ())):
                self._drop(follower, video_id)
                if not self._before[follower]:
                    del self._before[follower]

    def _put(self, video_id: str, previous_video_id: str, counts: dict[str, _Count]) -> None:
        taken_over = 0
        if len(counts) == self._predecessors_max:
            rarest = min(counts, key=lambda each: counts[each].most)
            taken_over = counts[rarest].most
            self._drop(video_id, rarest)
        counts[previous_video_id] = _Count(taken_over + 1, taken_over)
        self._after[previous_video_id].add(video_id)
        self._pairs += 1
        while self._pairs > self._pairs_max:
            self._forget(next(iter(self._before)))

    def _drop(self, video_id: str, previous_video_id: str) -> None:
        del self._before[video_id][previous_video_id]
        self._after[previous_video_id].discard(video_id)
        if not self._after[previous_video_id]:
            del self._after[previous_video_id]
        self._pairs -= 1

    def _forget(self, video_id: str) -> None:
        for previous_video_id in list(self._before.get(video_id, ())):
            self._drop(video_id, previous_video_id)
        self._before.pop(video_id, None)
