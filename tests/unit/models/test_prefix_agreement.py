from __future__ import annotations

import json
from itertools import combinations, permutations
from typing import Any

import numpy as np
import pytest

from models.prefix_agreement import Judged, baselines, lsh_codes, meaning, random_codes

NUM_VIDEOS = 30
SIZES = (4, 2, 2)


def judged(rng: np.random.Generator, *, held_out: int | None = None) -> Judged:
    """Thirty videos, some without a category, and pairs that favour the first of them."""
    counted_N = np.ones(NUM_VIDEOS, bool)
    if held_out is not None:
        counted_N[: NUM_VIDEOS - held_out] = False
    popular_P2 = (NUM_VIDEOS * rng.random((200, 2)) ** 2).astype(np.int64)
    return Judged(label_N=rng.integers(-1, 3, NUM_VIDEOS), pair_P2=popular_P2, counted_N=counted_N)


def by_brute_force(codes_NL: np.ndarray, found: Judged, prefix: int) -> dict[str, Any]:
    """The definitions, pair by pair."""

    def same(one: int, other: int) -> bool:
        return bool((codes_NL[one, :prefix] == codes_NL[other, :prefix]).all())

    def counts(one: int, other: int) -> bool:
        return bool(found.counted_N[one] or found.counted_N[other])

    videos = range(len(codes_NL))
    label = found.label_N
    everyone = [pair for pair in combinations(videos, 2) if counts(*pair)]
    known = [(a, b) for a, b in everyone if label[a] >= 0 and label[b] >= 0]
    sharing = [pair for pair in known if same(*pair)]
    watched = [(int(a), int(b)) for a, b in found.pair_P2 if a != b]
    weight = np.bincount(np.array(watched).ravel(), minlength=len(codes_NL))
    drawn = {(a, b): weight[a] * weight[b] for a, b in permutations(videos, 2) if counts(a, b)}
    watched = [pair for pair in watched if counts(*pair)]
    agreement = np.mean([label[a] == label[b] for a, b in sharing])
    any_pair = np.mean([label[a] == label[b] for a, b in known])
    together = np.mean([same(*pair) for pair in watched])
    by_chance = np.mean([same(*pair) for pair in everyone])
    popular = sum(w for pair, w in drawn.items() if same(*pair)) / sum(drawn.values())
    return {
        "category": {
            "prefix": prefix, "agreement": agreement, "random": any_pair,
            "over_random": agreement / any_pair, "pairs": len(sharing),
        },
        "co_watching": {
            "prefix": prefix, "agreement": together, "random": by_chance,
            "over_random": together / by_chance, "over_popularity": together / popular,
            "pairs": len(watched),
        },
    }  # fmt: skip


@pytest.mark.parametrize("held_out", [None, 8])
@pytest.mark.parametrize("seed", range(4))
def test_meaning_equals_the_definitions_pair_by_pair(seed: int, held_out: int | None) -> None:
    rng = np.random.default_rng(seed)
    found, codes_NL = judged(rng, held_out=held_out), random_codes(NUM_VIDEOS, SIZES, rng)
    measured = meaning(codes_NL, found)
    for prefix in (1, 2, 3):
        expected = by_brute_force(codes_NL, found, prefix)
        for measure, line in expected.items():
            assert measured[measure][prefix - 1] == pytest.approx(line), measure


def test_codes_that_are_the_categories_agree_whenever_they_share_a_prefix() -> None:
    label_N = np.array([0, 0, 0, 1, 1, 1])
    found = Judged(label_N=label_N, pair_P2=np.array([[0, 1], [3, 4]]), counted_N=np.ones(6, bool))
    measured = meaning(label_N[:, None], found)
    # 6 of the 15 pairs share their category.
    assert measured["category"] == [
        {"prefix": 1, "agreement": 1.0, "random": 0.4, "over_random": 2.5, "pairs": 6}
    ]
    assert measured["co_watching"][0]["agreement"] == 1.0
    assert measured["co_watching"][0]["over_random"] == 2.5


def test_video_watched_twice_in_a_row_is_no_pair() -> None:
    codes_NL = np.array([[0], [1], [1]])
    found = Judged(
        label_N=np.full(3, -1),
        pair_P2=np.array([[0, 0], [0, 0], [0, 1]]),
        counted_N=np.ones(3, bool),
    )
    (line,) = meaning(codes_NL, found)["co_watching"]
    assert (line["agreement"], line["pairs"]) == (0.0, 1)


def test_catalogue_without_categories_and_watches_has_no_numbers_instead_of_wrong_ones() -> None:
    found = Judged(
        label_N=np.full(4, -1),
        pair_P2=np.empty((0, 2), np.int64),
        counted_N=np.ones(4, bool),
    )
    measured = meaning(np.array([[0, 0], [0, 1], [1, 0], [1, 1]]), found)
    assert measured["category"][0]["agreement"] is None
    assert measured["category"][0]["over_random"] is None
    assert measured["co_watching"][0]["agreement"] is None
    assert json.loads(json.dumps(measured, allow_nan=False)) == measured


def test_prefixes_are_never_longer_than_the_codes() -> None:
    rng = np.random.default_rng(0)
    measured = meaning(random_codes(NUM_VIDEOS, (4, 2), rng), judged(rng))
    assert [line["prefix"] for line in measured["category"]] == [1, 2]


def test_random_codes_mean_nothing_and_lsh_codes_of_clusters_mean_something() -> None:
    rng = np.random.default_rng(0)
    label_N = np.arange(400) % 4
    embedding_ND = np.eye(4)[label_N] + 0.1 * rng.standard_normal((400, 4))
    found = Judged(
        label_N=label_N, pair_P2=np.empty((0, 2), np.int64), counted_N=np.ones(400, bool)
    )
    measured = baselines(embedding_ND, (8, 4), found, seed=1)
    assert measured["random"]["category"][0]["over_random"] == pytest.approx(1, abs=0.1)
    assert measured["lsh"]["category"][0]["over_random"] > 1.5
    assert measured == baselines(embedding_ND, (8, 4), found, seed=1)


@pytest.mark.parametrize("sizes", [(8, 4, 2), (16,), (6, 3)])
def test_lsh_codes_fit_their_levels_and_hold_equal_signs(sizes: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    embedding_ND = rng.standard_normal((500, 16)).astype(np.float16)
    codes_NL = lsh_codes(embedding_ND, sizes, np.random.default_rng(1))
    assert (codes_NL >= 0).all()
    powers = [1 << (size.bit_length() - 1) for size in sizes]
    assert codes_NL.max(axis=0).tolist() == [power - 1 for power in powers]
    scaled_NL = lsh_codes(3 * embedding_ND, sizes, np.random.default_rng(1))
    assert (codes_NL == scaled_NL).all()
    opposite_NL = lsh_codes(-embedding_ND, sizes, np.random.default_rng(1))
    assert (codes_NL + opposite_NL == np.array(powers) - 1).all()
