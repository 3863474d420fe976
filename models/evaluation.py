"""Recall, NDCG and the popularity baseline; one relevant video per request, as in next-video prediction."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Container, Iterable, Sequence


def recall_at_k(ranked: Sequence[Sequence[str]], targets: Sequence[str], k: int = 10) -> float:
    """Return the share of targets among the first k; 0 for no targets."""
    hits = sum(target in ids[:k] for ids, target in zip(ranked, targets, strict=True))
    return hits / max(1, len(targets))


def ndcg_at_k(ranked: Sequence[Sequence[str]], targets: Sequence[str], k: int = 10) -> float:
    """Return the mean of 1 / log2(rank + 1) over the targets among the first k; 0 for no targets."""
    gains = [
        1 / math.log2(list(ids[:k]).index(target) + 2) if target in ids[:k] else 0.0
        for ids, target in zip(ranked, targets, strict=True)
    ]
    return sum(gains) / max(1, len(targets))


class Popularity:
    """The most watched videos so far, without those the viewer has watched: the baseline every model must beat."""

    def __init__(self) -> None:
        self.views: Counter[str] = Counter()

    def add(self, video_ids: Iterable[str]) -> None:
        """Count some watches."""
        self.views.update(video_ids)

    def top(
        self, k: int, *, excluded: Collection[str] = (), live: Container[str] | None = None
    ) -> list[str]:
        """Return the k most watched; ties go to the smaller id."""
        found = []
        for video_id, _ in sorted(self.views.items(), key=lambda item: (-item[1], item[0])):
            if video_id not in excluded and (live is None or video_id in live):
                found.append(video_id)
                if len(found) == k:
                    break
        return found
