"""Drift of a codebook: against distributions whose distance is known, and over a window that slides."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from models.codebook import CodebookManifest
from models.codebook_drift import (
    MIN_VIDEOS,
    DriftFigures,
    DriftWindow,
    collision_ratio,
    jensen_shannon_bits,
)

SIZES = (4, 2)
CARD = {"residual_norm": {"p50": 0.5, "p99": 2.0}, "code_counts": [[10, 10, 0, 0], [5, 15]]}


def manifest(card: dict[str, Any]) -> CodebookManifest:
    return CodebookManifest(
        codebook_version=1,
        codebook_sizes=SIZES,
        disambiguation_size=64,
        embedding_dim=8,
        encoders_sha256="",
        quantizer={},
        card=card,
        files={},
    )


def observed(
    window: DriftWindow, codes: list[tuple[int, int]], norm: float, times: int
) -> DriftFigures | None:
    """Take in the codes one video at a time, `times` over; return the last figures."""
    newest = None
    for _ in range(times):
        for each in codes:
            found = window.observe(np.array([each]), np.array([norm], dtype=np.float32))
            newest = found or newest
    return newest


@pytest.mark.parametrize(
    ("one", "other", "bits"),
    [
        ([1, 1], [50, 50], 0.0),
        ([1, 0], [0, 1], 1.0),
        ([1, 1, 0, 0], [0, 0, 3, 1], 1.0),
        ([1, 0], [1, 1], 0.3112781),
    ],
)
def test_divergence_is_zero_for_equal_shares_and_one_bit_for_disjoint_ones(
    one: list[int], other: list[int], bits: float
) -> None:
    assert jensen_shannon_bits(np.array(one), np.array(other)) == pytest.approx(bits)
    assert jensen_shannon_bits(np.array(other), np.array(one)) == pytest.approx(bits)


def test_collision_ratio_counts_videos_and_not_cells() -> None:
    codes = np.array([(0, 0), (0, 0), (0, 0), (0, 1), (1, 0)])
    assert collision_ratio(codes, SIZES) == pytest.approx(3 / 5)


def test_window_like_the_fit_has_not_drifted() -> None:
    codes = [(0, 0), (1, 1), (0, 1), (1, 1)]
    found = observed(DriftWindow(manifest({"fitted": CARD})), codes, 0.5, 50)
    assert found is not None
    assert found.usage_divergences == pytest.approx((0, 0))
    assert found.residual_norm_ratios == pytest.approx({0.5: 1.0, 0.99: 0.25})


def test_window_forgets_what_is_older_than_its_length() -> None:
    window = DriftWindow(manifest({"fitted": CARD}), window=200)
    observed(window, [(0, 0)], 0.5, 1000)
    found = observed(window, [(2, 1), (3, 0)], 1.0, 100)
    assert found is not None
    assert found.videos == 200
    assert found.usage_divergences[0] == pytest.approx(1.0)
    assert found.residual_norm_ratios[0.5] == pytest.approx(2.0)
    assert found.collision_ratio == 1.0


def test_batches_of_any_size_say_the_same() -> None:
    rng = np.random.default_rng(0)
    codes, norms = rng.integers(0, SIZES, (1000, 2)), rng.random(1000).astype(np.float32)
    sizes = (50, 100, 500)
    windows = [DriftWindow(manifest({"fitted": CARD}), window=300) for _ in sizes]
    last = [
        [
            window.observe(codes[at : at + size], norms[at : at + size])
            for at in range(0, 1000, size)
        ][-1]
        for window, size in zip(windows, sizes, strict=True)
    ]
    assert last[0] is not None
    assert last[0] == last[1] == last[2]


def test_few_videos_say_nothing() -> None:
    assert observed(DriftWindow(manifest({"fitted": CARD})), [(0, 0)], 0.5, MIN_VIDEOS - 1) is None


def test_card_without_the_figures_leaves_them_out() -> None:
    found = observed(DriftWindow(manifest({})), [(0, 0), (1, 1)], 0.5, MIN_VIDEOS)
    assert found is not None
    assert (found.usage_divergences, found.residual_norm_ratios) == ((), {})
