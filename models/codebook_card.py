"""How well a codebook spreads a catalogue over its cells and what its codes mean, in numbers; nothing of its fit.

A card tells the videos that the codebook was fitted on (`fitted`) from later ones that it never saw (`held_out`).

Legend: N videos, L levels, K codes of a level, D dimension of the fused embedding.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.onnx_quantizer import QuantizedBatch
from models.prefix_agreement import Judged, baselines, meaning


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What the codes of N videos are compared with, row by row: first those of the fit, then those held out.

    Attributes:
        num_fitted: how many of the N videos the codebook was fitted on.
        label_N: int64, the category as a number; -1 where it is unknown.
        pair_P2: int64, which two videos were co-watched, as often as they were.
        notes: where categories and pairs come from, and what the codebook has seen of them; goes onto the card.
    """

    num_fitted: int
    label_N: NDArray[np.int64]
    pair_P2: NDArray[np.int64]
    notes: dict[str, Any] = field(default_factory=dict)


def codebook_card(
    quantized: QuantizedBatch, codebook_sizes: tuple[int, ...], evidence: Evidence, *, seed: int
) -> dict[str, Any]:
    """Return the card of a fit, ready for JSON.

    Returns:
        `codebook_sizes`; `notes`; `fitted`, over the pairs within these videos; `held_out` (None where there are none),
        of which each is compared with all videos, and of each pair at least one is held out. Both hold what
        `_section` says, and their `meaning`, that of random codes and that of LSH.
    """
    total, num_fitted = len(quantized), evidence.num_fitted
    held_out_N = np.arange(total) >= num_fitted
    sections: dict[str, Any] = {"fitted": None, "held_out": None}
    for name, end, counted_N in (
        ("fitted", num_fitted, ~held_out_N[:num_fitted]),
        ("held_out", total, held_out_N),
    ):
        if not counted_N.any():
            continue
        codes_NL = quantized.codes_BL[:end]
        pair_P2 = evidence.pair_P2[(evidence.pair_P2 < end).all(axis=1)]
        judged = Judged(label_N=evidence.label_N[:end], pair_P2=pair_P2, counted_N=counted_N)
        embedding_ND = quantized.embedding_BD[:end]
        sections[name] = {
            **_section(quantized, codebook_sizes, np.flatnonzero(counted_N), end),
            "meaning": {
                "quantizer": meaning(codes_NL, judged),
                **baselines(embedding_ND, codebook_sizes, judged, seed=seed),
            },
        }
    return {"codebook_sizes": list(codebook_sizes), "notes": evidence.notes, **sections}


def _section(
    quantized: QuantizedBatch,
    codebook_sizes: tuple[int, ...],
    rows: NDArray[np.int64],
    end: int,
) -> dict[str, Any]:
    """Return what the codes of these rows are like, among the first `end` videos.

    Returns:
        `videos`; `uniqueness`: share of the videos alone in their cell, before disambiguation; `collisions`: how many
        of them are in cells of 1, 2, 3, ... videos; per level `code_counts` (how many of them have each code), `usage`
        (share of codes used), `dead_codes` (number not used) and `perplexity` (how many codes it is as if all were used
        alike); `residual_norm` p50 and p99, with the counts the baseline for drift; `reconstruction`: the mean squared
        error of the embedding, whose length is 1, and the share of its variance that the codes explain.
    """
    _, cell_N, size_C = np.unique(
        quantized.codes_BL[:end], axis=0, return_inverse=True, return_counts=True
    )
    size_N = size_C[cell_N.reshape(-1)][rows]
    codes_NL, norm_N = quantized.codes_BL[rows], quantized.residual_norm_B[rows]
    levels = [np.bincount(codes_NL[:, i], minlength=k) for i, k in enumerate(codebook_sizes)]
    p50, p99 = np.quantile(norm_N, (0.5, 0.99))
    return {
        "videos": len(rows),
        "uniqueness": float((size_N == 1).mean()),
        "collisions": {
            str(size): int(videos)
            for size, videos in zip(*np.unique(size_N, return_counts=True), strict=True)
        },
        "code_counts": [count_K.tolist() for count_K in levels],
        "usage": [float((count_K > 0).mean()) for count_K in levels],
        "dead_codes": [int((count_K == 0).sum()) for count_K in levels],
        "perplexity": [_perplexity(count_K) for count_K in levels],
        "residual_norm": {"p50": float(p50), "p99": float(p99)},
        "reconstruction": _reconstruction(quantized.embedding_BD[rows], norm_N),
    }


def _reconstruction(
    embedding_ND: NDArray[np.float16], norm_N: NDArray[np.float32]
) -> dict[str, float]:
    error = float((norm_N.astype(np.float64) ** 2).mean())
    variance = float(embedding_ND.astype(np.float64).var(axis=0).sum())
    explained = 1 - error / variance if variance else 0.0
    return {"mean_squared_error": error, "variance_explained": explained}


def _perplexity(count_K: NDArray[np.int64]) -> float:
    share_K = count_K[count_K > 0] / count_K.sum()
    return float(np.exp(-(share_K * np.log(share_K)).sum()))
