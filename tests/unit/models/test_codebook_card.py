from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from models.codebook_card import Evidence, codebook_card
from models.onnx_quantizer import QuantizedBatch
from tests.codebook_factories import quantized_batch

CODES_NL = np.array([[0, 0], [0, 0], [1, 1], [2, 1], [2, 1], [3, 0]])
NORM_N = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], np.float32)


def quantized() -> QuantizedBatch:
    embedding_ND = np.random.default_rng(0).standard_normal((6, 8)).astype(np.float16)
    return quantized_batch(CODES_NL, embedding_ND, NORM_N)


def evidence(num_fitted: int, **changed: Any) -> Evidence:
    values: dict[str, Any] = {
        "num_fitted": num_fitted,
        "label_N": np.array([0, 0, 1, 1, 1, 0]),
        "pair_P2": np.array([[0, 1], [2, 4], [5, 5]]),
        "notes": {"data": "six videos"},
    }
    return Evidence(**values | changed)


def card_of(num_fitted: int, **changed: Any) -> dict[str, Any]:
    return codebook_card(quantized(), (4, 2), evidence(num_fitted, **changed), seed=0)


def test_card_counts_cells_usage_dead_codes_and_perplexity() -> None:
    fitted = card_of(4)["fitted"]
    assert fitted["videos"] == 4
    assert fitted["uniqueness"] == 0.5
    assert fitted["collisions"] == {"1": 2, "2": 2}
    assert fitted["code_counts"] == [[2, 1, 1, 0], [2, 2]]
    assert fitted["usage"] == [0.75, 1.0]
    assert fitted["dead_codes"] == [1, 0]
    assert fitted["perplexity"] == pytest.approx([2**1.5, 2.0])


def test_videos_held_out_are_unique_only_if_alone_among_all() -> None:
    held_out = card_of(4)["held_out"]
    assert held_out["videos"] == 2
    assert held_out["uniqueness"] == 0.5  # the fifth video has the cell of the fourth
    assert held_out["collisions"] == {"1": 1, "2": 1}


def test_videos_held_out_change_nothing_of_the_fitted_ones() -> None:
    part = quantized_batch(CODES_NL[:4], quantized().embedding_BD[:4], NORM_N[:4])
    known = evidence(4, label_N=np.array([0, 0, 1, 1]), pair_P2=np.array([[0, 1]]))
    assert card_of(4)["fitted"] == codebook_card(part, (4, 2), known, seed=0)["fitted"]


def test_reconstruction_is_the_squared_error_and_the_variance_it_leaves() -> None:
    found = card_of(6)["fitted"]["reconstruction"]
    error = float(np.mean(NORM_N.astype(float) ** 2))
    variance = float(quantized().embedding_BD.astype(float).var(axis=0).sum())
    assert found["mean_squared_error"] == pytest.approx(error)
    assert found["variance_explained"] == pytest.approx(1 - error / variance)


def test_meaning_is_told_of_quantizer_and_both_baselines_for_each_prefix() -> None:
    for section in ("fitted", "held_out"):
        meaning = card_of(4)[section]["meaning"]
        assert meaning.keys() == {"quantizer", "random", "lsh"}
        for arm in meaning.values():
            for measure in ("category", "co_watching"):
                assert [line["prefix"] for line in arm[measure]] == [1, 2]


def test_pairs_of_videos_held_out_are_not_counted_as_fitted() -> None:
    card = card_of(4)
    assert card["fitted"]["meaning"]["quantizer"]["co_watching"][0]["pairs"] == 1
    assert card["held_out"]["meaning"]["quantizer"]["co_watching"][0]["pairs"] == 1


def test_card_of_a_catalogue_with_nothing_held_out_says_so() -> None:
    card = card_of(6)
    assert card["held_out"] is None
    assert card["fitted"]["videos"] == 6


def test_card_is_json_without_nan() -> None:
    nothing = {"label_N": np.full(6, -1), "pair_P2": np.empty((0, 2), np.int64)}
    for card in (card_of(4), card_of(4, **nothing)):
        assert json.loads(json.dumps(card, allow_nan=False)) == card
