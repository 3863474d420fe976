"""K-means over all rows, or by moving averages over batches, both reviving dead codes; knows nothing of videos.

Legend: N rows, B rows of a batch, D dimension, K codes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# A code that gets fewer than this share of an even use is dead.
DEAD_SHARE = 0.05


def kmeans(
    rows_ND: Tensor,
    num_codes: int,
    *,
    iterations: int,
    generator: torch.Generator,
    start_KD: Tensor | None = None,
) -> Tensor:
    """Return code vectors by Lloyd's algorithm; a code that no row uses moves to the worst coded row.

    Shapes: [N, D] -> [K, D]; N is at least K.
    Source: Arthur & Vassilvitskii 2007 (k-means++) for the start, where none is given.
    """
    codebook_KD = _spread_start(rows_ND, num_codes, generator) if start_KD is None else start_KD
    for _ in range(iterations):
        code_N = nearest(rows_ND, codebook_KD)
        count_K = torch.bincount(code_N, minlength=num_codes)
        sum_KD = torch.zeros_like(codebook_KD).index_add_(0, code_N, rows_ND)
        error_N = (rows_ND - codebook_KD[code_N]).square().sum(1)
        codebook_KD = sum_KD / count_K.clamp(min=1).unsqueeze(1)
        dead_K = count_K == 0
        codebook_KD[dead_K] = rows_ND[error_N.topk(int(dead_K.sum())).indices]
    return codebook_KD


def restarted(generator: torch.Generator) -> torch.Generator:
    """Return a generator of the same seed that has drawn nothing yet.

    Level 0 starts from it by either method: a start's luck would hide which method is better.
    """
    return torch.Generator().manual_seed(generator.initial_seed())


def nearest(rows_BD: Tensor, codebook_KD: Tensor) -> Tensor:
    """Return the index of each row's nearest code vector; shapes [B, D], [K, D] -> [B] int64."""
    # |r - c|^2 without |r|^2, which is the same for all c.
    distance_BK = codebook_KD.square().sum(1) - 2 * rows_BD @ codebook_KD.T
    return distance_BK.argmin(dim=1)


def _spread_start(rows_ND: Tensor, num_codes: int, generator: torch.Generator) -> Tensor:
    """Choose rows as first code vectors, each with a chance that grows with its distance to those chosen."""
    first = int(torch.randint(len(rows_ND), (1,), generator=generator))
    chosen = [first]
    distance_N = (rows_ND - rows_ND[first]).square().sum(1)
    for _ in range(num_codes - 1):
        # The small constant keeps a chance for all when every row equals a chosen one.
        index = int(torch.multinomial(distance_N + 1e-12, 1, generator=generator))
        chosen.append(index)
        distance_N = torch.minimum(distance_N, (rows_ND - rows_ND[index]).square().sum(1))
    return rows_ND[chosen]


class MovingAverages:
    """Code vectors that follow what they code; one that codes hardly anything moves to a row of the batch.

    `codebooks` are changed in place. What else is here is of no use after the training, and dies with it.
    """

    def __init__(self, codebooks: Sequence[Tensor], decay: float) -> None:
        self._codebooks = codebooks
        self._decay = decay
        # An even use; the first batches correct it.
        self._uses = [torch.ones(len(codebook_KD)) for codebook_KD in codebooks]
        self._sums = [codebook_KD.clone() for codebook_KD in codebooks]

    def follow(self, rows_BD: Tensor) -> list[Tensor]:
        """Code the rows, then move the code vectors; return the sum of code vectors after each level."""
        sums, sum_BD = [], torch.zeros_like(rows_BD)
        for level, codebook_KD in enumerate(self._codebooks):
            residual_BD = rows_BD - sum_BD
            code_B = nearest(residual_BD, codebook_KD)
            sum_BD = sum_BD + codebook_KD[code_B]
            sums.append(sum_BD)
            self._move(level, residual_BD, code_B)
        return sums

    def _move(self, level: int, residual_BD: Tensor, code_B: Tensor) -> None:
        """Counts are relative to an even use of 1 per code."""
        codebook_KD, uses_K, sums_KD = self._codebooks[level], self._uses[level], self._sums[level]
        even = len(residual_BD) / len(codebook_KD)
        count_K = torch.bincount(code_B, minlength=len(codebook_KD)) / even
        sum_KD = torch.zeros_like(sums_KD).index_add_(0, code_B, residual_BD) / even
        uses_K.lerp_(count_K, 1 - self._decay)
        sums_KD.lerp_(sum_KD, 1 - self._decay)
        dead = torch.nonzero(uses_K < DEAD_SHARE)[:, 0]
        # The worst coded first; no two dead codes move to the same row.
        error_B = (residual_BD - codebook_KD[code_B]).square().sum(1)
        dead = dead[: len(residual_BD)]
        sums_KD[dead] = residual_BD[error_B.topk(len(dead)).indices]
        uses_K[dead] = 1.0
        codebook_KD.copy_(sums_KD / uses_K.clamp(min=1e-6).unsqueeze(1))
