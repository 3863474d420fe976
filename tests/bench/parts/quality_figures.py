"""Recall and NDCG over targets of unequal weight, with their standard errors; knows nothing of models and streams."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tests.bench.parts.quality_stream import Target


@dataclass(frozen=True)
class Asked:
    """A target, and by arm its place among the first ten, from 0; None where it is not among them."""

    target: Target
    places: dict[str, int | None]


class Figure(NamedTuple):
    """A weighted mean over some targets with its standard error, as if targets were independent."""

    mean: float
    error: float
    targets: int


def recall(
    asked: Sequence[Asked], arm: str, *, of: Callable[[Target], bool] = lambda target: True
) -> Figure:
    """Return recall@10 over the targets that `of` keeps."""
    return _mean(asked, arm, of, lambda place: 1.0)


def ndcg(
    asked: Sequence[Asked], arm: str, *, of: Callable[[Target], bool] = lambda target: True
) -> Figure:
    """Return NDCG@10 over the targets that `of` keeps."""
    return _mean(asked, arm, of, lambda place: 1 / math.log2(place + 2))


def _mean(
    asked: Sequence[Asked],
    arm: str,
    of: Callable[[Target], bool],
    gain: Callable[[int], float],
) -> Figure:
    kept = [one for one in asked if of(one.target)]
    total = sum(one.target.weight for one in kept)
    if not total:
        return Figure(0.0, 0.0, 0)
    gains = [0.0 if (place := one.places[arm]) is None else gain(place) for one in kept]
    mean = sum(one.target.weight * each for one, each in zip(kept, gains, strict=True)) / total
    squares = sum(
        (one.target.weight * (each - mean)) ** 2 for one, each in zip(kept, gains, strict=True)
    )
    return Figure(mean, math.sqrt(squares) / total, len(kept))
