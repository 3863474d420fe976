"""How well a codebook spreads a catalogue over its cells, in numbers; knows nothing of how it was fitted.

Legend: N videos, L levels, K codes of a level.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def codebook_card(
    codes_NL: NDArray[np.int64],
    residual_norm_N: NDArray[np.float32],
    codebook_sizes: tuple[int, ...],
) -> dict[str, Any]:
    """Return the card of a fit, ready for JSON.

    Returns:
        `videos`; `uniqueness`: share of videos alone in their cell, before disambiguation; `collisions`: how many cells
        hold 1, 2, 3, ... videos; per level `usage` (share of codes used) and `perplexity` (how many codes it is as if
        all were used alike); `residual_norm` p50 and p99, the baseline for drift.
    """
    cell_sizes = np.unique(codes_NL, axis=0, return_counts=True)[1]
    levels = [np.bincount(codes_NL[:, i], minlength=k) for i, k in enumerate(codebook_sizes)]
    p50, p99 = np.quantile(residual_norm_N, (0.5, 0.99))
    return {
        "videos": len(codes_NL),
        "uniqueness": float((cell_sizes == 1).sum() / len(codes_NL)),
        "collisions": {
            str(size): int(cells)
            for size, cells in zip(*np.unique(cell_sizes, return_counts=True), strict=True)
        },
        "usage": [float((count_K > 0).mean()) for count_K in levels],
        "perplexity": [_perplexity(count_K) for count_K in levels],
        "residual_norm": {"p50": float(p50), "p99": float(p99)},
    }


def _perplexity(count_K: NDArray[np.int64]) -> float:
    share_K = count_K[count_K > 0] / count_K.sum()
    return float(np.exp(-(share_K * np.log(share_K)).sum()))
