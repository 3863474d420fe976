"""How far the newest videos have moved away from those that a codebook was fitted on, in numbers; nothing of streams.

Three things say that a codebook grows old. Residuals are longer than they were in its own catalogue: what is uploaded
lies where no code vectors are. Codes are used in other shares. And more videos share all their codes.

Legend: B videos, L levels, K codes of a level, W videos of the window.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.codebook import CodebookManifest

WINDOW_VIDEOS = 10_000
MIN_VIDEOS = 100
"""Fewer say little: the shares of 256 codes are not to be had from 20 videos."""
REFRESHES_PER_WINDOW = 100
QUANTILES = {"p50": 0.5, "p99": 0.99}


@dataclass(frozen=True)
class DriftFigures:
    """What a window says.

    Attributes:
        videos: how many it is taken from.
        residual_norm_ratios: quantile -> residual norm of the window over that of the fit.
        usage_divergences: per level, how differently the codes are used, in bits; none where the card counts no codes.
        collision_ratio: share of the videos with whom another of the window, or an edit of its own, shares all codes.
    """

    videos: int
    residual_norm_ratios: Mapping[float, float]
    usage_divergences: tuple[float, ...]
    collision_ratio: float


class DriftWindow:
    """The codes and residual norms of the newest videos, beside what the codebook's card says of its fit."""

    def __init__(self, manifest: CodebookManifest, *, window: int = WINDOW_VIDEOS) -> None:
        self._sizes = manifest.codebook_sizes
        self._codes_WL = np.zeros((window, len(self._sizes)), dtype=np.int64)
        self._norm_W = np.zeros(window, dtype=np.float32)
        self._seen = self._told = 0
        # The card keeps the videos of the fit apart from those held out from it.
        card: Mapping[str, Any] = manifest.card.get("fitted") or manifest.card
        self._fitted_norm: Mapping[str, float] = card.get("residual_norm") or {}
        counts = card.get("code_counts") or ()
        self._fitted_counts = [np.asarray(count_K, dtype=np.float64) for count_K in counts]

    def observe(
        self, codes_BL: NDArray[np.integer], residual_norm_B: NDArray[np.floating]
    ) -> DriftFigures | None:
        """Take in some videos; return the figures when a hundredth of the window is new, else None.

        So a video costs the same however large the window is.
        """
        window = len(self._norm_W)
        at_B = (self._seen + np.arange(len(codes_BL))) % window
        self._codes_WL[at_B] = codes_BL
        self._norm_W[at_B] = residual_norm_B
        self._seen += len(codes_BL)
        size = min(self._seen, window)
        if size < MIN_VIDEOS or self._seen - self._told < size / REFRESHES_PER_WINDOW:
            return None
        self._told = self._seen
        return self._figures(self._codes_WL[:size], self._norm_W[:size])

    def _figures(self, codes_WL: NDArray[np.integer], norm_W: NDArray[np.floating]) -> DriftFigures:
        return DriftFigures(
            videos=len(norm_W),
            residual_norm_ratios={
                quantile: float(np.quantile(norm_W, quantile)) / self._fitted_norm[name]
                for name, quantile in QUANTILES.items()
                if self._fitted_norm.get(name)
            },
            usage_divergences=tuple(
                jensen_shannon_bits(np.bincount(codes_WL[:, level], minlength=size), fitted_K)
                for level, (size, fitted_K) in enumerate(
                    zip(self._sizes, self._fitted_counts, strict=False)
                )
            ),
            collision_ratio=collision_ratio(codes_WL, self._sizes),
        )


def collision_ratio(codes_WL: NDArray[np.integer], codebook_sizes: tuple[int, ...]) -> float:
    """Return the share of rows whose codes another row has as well."""
    cell_W = np.ravel_multi_index(tuple(codes_WL.T), codebook_sizes)
    _, counts = np.unique(cell_W, return_counts=True)
    return float(counts[counts > 1].sum() / len(codes_WL))


def jensen_shannon_bits(one_K: NDArray[Any], other_K: NDArray[Any]) -> float:
    """Return how different two distributions, given as counts, are: 0 for the same shares, 1 for no code in common.

    Source: Lin 1991, "Divergence measures based on the Shannon entropy", with both weighted alike.
    """
    one_share_K, other_share_K = one_K / one_K.sum(), other_K / other_K.sum()
    both_share_K = (one_share_K + other_share_K) / 2
    halves = (_entropy_bits(one_share_K) + _entropy_bits(other_share_K)) / 2
    return max(0.0, _entropy_bits(both_share_K) - halves)  # rounding may fall below 0


def _entropy_bits(share_K: NDArray[Any]) -> float:
    present = share_K[share_K > 0]
    return float(-(present * np.log2(present)).sum())
