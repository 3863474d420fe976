"""How much the first codes of a semantic ID say about what a video is, and about who watches it, in exact numbers.

Videos that share a prefix of p codes should be alike. Two measures, for p = 1, 2, 3, over pairs of different videos:

- category: P(same category | same prefix), against P(same category) of any pair. A category is one label per video, as
  specific as the data set has it. Sharing one of several labels would hold for nearly half of all pairs of films, so
  that no codebook could be much better than chance.
- co-watching: P(same prefix | one viewer watched one directly after the other), against P(same prefix) of any pair, and
  of any pair drawn as often as its videos are watched. The last takes out what a codebook gains by putting popular
  videos together.

All follow from the sizes of groups, so nothing is quadratic in the number of videos. Two baselines are measured alike:
random codes, and signs of random projections (LSH) of the same embedding, with as many bits per level.
Knows nothing of how a codebook is fitted and of where categories and watches come from.

Legend: N videos, P pairs, L levels, D dimension of the fused embedding, E bits of all levels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

PREFIXES_MAX = 3
BASELINE_DRAWS = 10
"""Random codes and random projections differ from draw to draw; theirs are means."""

Bool = NDArray[np.bool_]
Int64 = NDArray[np.int64]
Float = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What is known of N coded videos, to compare their codes with.

    Attributes:
        label_N: int64, the category as a number; -1 where it is unknown.
        pair_P2: int64, which two videos were co-watched, as often as they were.
        counted_N: bool; of each pair at least one video is among these, such as those held out of a fit.
    """

    label_N: Int64
    pair_P2: Int64
    counted_N: Bool


def meaning(codes_NL: Int64, judged: Judged) -> dict[str, Any]:
    """Return both measures for each length of prefix, ready for JSON.

    Returns:
        `category` and `co_watching`: a list of `prefix`, `agreement`, `random` and `over_random`, the quotient of both;
        and `pairs`, over how many pairs the agreement is a share (those that share the prefix, or were co-watched); of
        `co_watching` also `over_popularity`. None where no pair qualifies.
    """
    lengths = range(1, min(PREFIXES_MAX, codes_NL.shape[1]) + 1)
    groups = [(length, _groups(codes_NL[:, :length])) for length in lengths]
    pair_P2 = judged.pair_P2[judged.pair_P2[:, 0] != judged.pair_P2[:, 1]]
    return {
        "category": [{"prefix": p, **_category(group_N, judged)} for p, group_N in groups],
        "co_watching": [
            {"prefix": p, **_co_watching(group_N, pair_P2, judged.counted_N)}
            for p, group_N in groups
        ],
    }


def _category(group_N: Int64, judged: Judged) -> dict[str, float | int | None]:
    known_N = judged.label_N >= 0
    group_N, label_N = group_N[known_N], judged.label_N[known_N]
    counted_N = judged.counted_N[known_N]
    one_N = np.ones(len(group_N))
    both_N = _groups(np.stack([group_N, label_N], axis=1))
    sharing = _weight_within(group_N, one_N, counted_N)
    agreeing = _weight_within(both_N, one_N, counted_N)
    everything = _weight_within(np.zeros_like(group_N), one_N, counted_N)
    agreement = _quotient(agreeing, sharing)
    random = _quotient(_weight_within(label_N, one_N, counted_N), everything)
    return {
        "agreement": agreement,
        "random": random,
        "over_random": _quotient(agreement, random),
        "pairs": round(sharing / 2),
    }


def _co_watching(group_N: Int64, pair_P2: Int64, counted_N: Bool) -> dict[str, float | int | None]:
    watched_N = np.bincount(pair_P2.ravel(), minlength=len(group_N)).astype(float)
    pair_P2 = pair_P2[counted_N[pair_P2].any(axis=1)]
    same_P = group_N[pair_P2[:, 0]] == group_N[pair_P2[:, 1]]
    agreement = float(same_P.mean()) if len(same_P) else None
    random = _share_within(group_N, np.ones(len(group_N)), counted_N)
    popular = _share_within(group_N, watched_N, counted_N)
    return {
        "agreement": agreement,
        "random": random,
        "over_random": _quotient(agreement, random),
        "over_popularity": _quotient(agreement, popular),
        "pairs": len(pair_P2),
    }


def _share_within(group_N: Int64, weight_N: Float, counted_N: Bool) -> float | None:
    """Return P(same group) of two different videos, each drawn as often as its weight says."""
    everything = _weight_within(np.zeros_like(group_N), weight_N, counted_N)
    return _quotient(_weight_within(group_N, weight_N, counted_N), everything)


def _weight_within(group_N: Int64, weight_N: Float, counted_N: Bool) -> float:
    """Return the summed products of weights over ordered pairs in one group, at least one of which is counted."""
    return _all_pairs(group_N, weight_N) - _all_pairs(group_N[~counted_N], weight_N[~counted_N])


def _all_pairs(group_N: Int64, weight_N: Float) -> float:
    weight_G = np.bincount(group_N, weights=weight_N)
    return float((weight_G**2).sum() - (weight_N**2).sum())


def _groups(rows_NL: Int64) -> Int64:
    """Return a number per row, the same for equal rows; shapes [N, L] -> [N]."""
    return np.unique(rows_NL, axis=0, return_inverse=True)[1].reshape(-1)


def _quotient(over: float | None, under: float | None) -> float | None:
    return over / under if over is not None and under else None


def baselines(
    embedding_ND: NDArray[np.floating[Any]],
    codebook_sizes: Sequence[int],
    judged: Judged,
    *,
    seed: int,
) -> dict[str, Any]:
    """Return `meaning` of random codes and of LSH codes with levels of these sizes, each a mean over draws."""
    rng = np.random.default_rng(seed)
    return {
        "random": _mean_of(lambda: random_codes(len(embedding_ND), codebook_sizes, rng), judged),
        "lsh": _mean_of(lambda: lsh_codes(embedding_ND, codebook_sizes, rng), judged),
    }


def random_codes(num_videos: int, codebook_sizes: Sequence[int], rng: np.random.Generator) -> Int64:
    """Return codes that say nothing; shape [N, L]."""
    return np.stack([rng.integers(0, size, num_videos) for size in codebook_sizes], axis=1)


def lsh_codes(
    embedding_ND: NDArray[np.floating[Any]],
    codebook_sizes: Sequence[int],
    rng: np.random.Generator,
) -> Int64:
    """Return codes of signs of random projections; a level of K codes has log2 K of them, rounded down.

    Shapes: [N, D] -> [N, L].
    Source: Charikar 2002; the baseline of Rajput et al. 2023 (TIGER) sec. 4.4.
    """
    bits = [int(size).bit_length() - 1 for size in codebook_sizes]
    direction_DE = rng.standard_normal((embedding_ND.shape[1], sum(bits)))
    above_NE = (embedding_ND.astype(np.float64) @ direction_DE > 0).astype(np.int64)
    levels = np.split(above_NE, np.cumsum(bits)[:-1], axis=1)
    return np.stack([level @ (1 << np.arange(level.shape[1])) for level in levels], axis=1)


def _mean_of(draw: Callable[[], Int64], judged: Judged) -> dict[str, Any]:
    drawn = [meaning(draw(), judged) for _ in range(BASELINE_DRAWS)]
    return {
        measure: [_mean([each[measure][at] for each in drawn]) for at in range(len(lines))]
        for measure, lines in drawn[0].items()
    }


def _mean(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the mean of each number; draws in which it is None do not count."""
    mean: dict[str, Any] = {}
    for name in lines[0]:
        values = [line[name] for line in lines if line[name] is not None]
        mean[name] = sum(values) / len(values) if values else None
    return mean | {"prefix": lines[0]["prefix"]}
