"""Quantized videos and cards for tests."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np

from models.codebook_card import Evidence, codebook_card
from models.onnx_quantizer import QuantizedBatch
from models.prefix_agreement import random_codes


def quantized_batch(
    codes_NL: np.ndarray, embedding_ND: np.ndarray, residual_norm_N: np.ndarray
) -> QuantizedBatch:
    """A batch with these values; whatever else a batch holds is zero."""
    values: dict[str, Any] = {
        each.name: np.zeros(len(codes_NL), np.int64) for each in fields(QuantizedBatch)
    }
    return QuantizedBatch(
        **values
        | {"codes_BL": codes_NL, "embedding_BD": embedding_ND, "residual_norm_B": residual_norm_N}
    )


def card(
    *,
    num_fitted: int = 30,
    codebook_sizes: tuple[int, ...] = (8, 4, 2),
    judged: bool = True,
) -> dict[str, Any]:
    """The card of 40 videos with random codes; unless `judged`, without categories and watches."""
    rng = np.random.default_rng(0)
    quantized = quantized_batch(
        random_codes(40, codebook_sizes, rng),
        rng.standard_normal((40, 8)).astype(np.float16),
        rng.random(40).astype(np.float32),
    )
    evidence = Evidence(
        num_fitted=num_fitted,
        label_N=rng.integers(0, 4, 40) if judged else np.full(40, -1),
        pair_P2=rng.integers(0, 40, (100 if judged else 0, 2)),
        notes={"data": "made up", "category": "a number below four", "co_watching": "made up too"},
    )
    return {
        "codebook_version": 7,
        "quantizer": {"method": "rkmeans", "contrastive_weight": 0.0},
        **codebook_card(quantized, codebook_sizes, evidence, seed=0),
        "skipped": {},
        "malformed": [],
    }
