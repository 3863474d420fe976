"""Fits a quantizer to a catalogue: principal components for the fusion, residual k-means for the codebooks.

Knows nothing of where the embeddings come from and where the quantizer goes.

Legend: N videos of the catalogue, D dimension, K codes of a level, M modalities.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from models.encoders import MODALITIES, Embeddings, Modality
from models.quantizer import Quantizer, QuantizerConfig, nearest

Progress = Callable[[str, float], None]

# Fewer samples than this per component, and the principal components are those of the noise.
_SAMPLES_PER_COMPONENT = 4


def fit_quantizer(
    embeddings: Embeddings,
    *,
    config: QuantizerConfig | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Quantizer:
    """Return a quantizer fitted to the videos; the same videos and seed give the same quantizer.

    Args:
        embeddings: of a catalogue; a modality that few videos have is projected at random.
        config: sizes and weights.
        seed: of every random choice.
        progress: told a stage's name and the share done, 0 to 1.

    Raises:
        ValueError: the catalogue has fewer videos than the largest codebook has codes.
    """
    config = config or QuantizerConfig()
    num_videos = len(embeddings.present_BM)
    if num_videos < max(config.codebook_sizes):
        raise ValueError(
            f"{num_videos} videos cannot fill a codebook of {max(config.codebook_sizes)}; "
            "bootstrap on more videos or choose smaller codebook_sizes"
        )
    generator = torch.Generator().manual_seed(seed)
    report = progress or (lambda _stage, _share: None)
    rows = {
        modality: torch.from_numpy(getattr(embeddings, f"{modality}_BD")) for modality in MODALITIES
    }
    present_NM = torch.from_numpy(embeddings.present_BM)
    quantizer = Quantizer(config, {modality: rows[modality].shape[1] for modality in MODALITIES})
    for index, modality in enumerate(MODALITIES):
        report("fusion", index / len(MODALITIES))
        known_ND = rows[modality][present_NM[:, index]]
        _fit_projection(quantizer, modality, known_ND, generator)
    embedding_ND = quantizer.fuse((rows["text"], rows["frames"], rows["audio"]), present_NM)
    if num_videos > config.fit_rows_max:
        chosen = torch.randperm(num_videos, generator=generator)[: config.fit_rows_max]
        embedding_ND = embedding_ND[chosen]
    _fit_codebooks(quantizer, embedding_ND, generator, report)
    return quantizer.eval()


def _fit_projection(
    quantizer: Quantizer, modality: Modality, known_ND: Tensor, generator: torch.Generator
) -> None:
    """Set a modality's mean and projection: principal components, or a random rotation if few know it."""
    config = quantizer.config
    projection_DE = quantizer.get_buffer(f"projection_{modality}")
    if len(known_ND) < _SAMPLES_PER_COMPONENT * config.embedding_dim:
        # Activations are never negative, so all have much of the diagonal in common: leave that out.
        random_DE = torch.randn(projection_DE.shape, generator=generator)
        projection_DE.copy_(torch.linalg.qr(random_DE - random_DE.mean(0))[0])
        return
    mean_D = known_ND.mean(0)
    covariance_DD = torch.cov(known_ND.T)
    variance_D, components_DD = torch.linalg.eigh(covariance_DD)  # ascending
    variance_E = variance_D[-config.embedding_dim :].flip(0).clamp(min=1e-8)
    components_DE = components_DD[:, -config.embedding_dim :].flip(1)
    quantizer.get_buffer(f"mean_{modality}").copy_(mean_D)
    projection_DE.copy_(components_DE * variance_E ** (-config.whitening / 2))


def _fit_codebooks(
    quantizer: Quantizer, embedding_ND: Tensor, generator: torch.Generator, report: Progress
) -> None:
    sizes = quantizer.config.codebook_sizes
    residual_ND = embedding_ND
    for level, size in enumerate(sizes):
        report("codebooks", level / len(sizes))
        codebook_KD = kmeans(
            residual_ND, size, iterations=quantizer.config.kmeans_iterations, generator=generator
        )
        quantizer.get_buffer(f"codebook_{level}").copy_(codebook_KD)
        residual_ND = residual_ND - codebook_KD[nearest(residual_ND, codebook_KD)]
    report("codebooks", 1.0)


def kmeans(
    rows_ND: Tensor, num_codes: int, *, iterations: int, generator: torch.Generator
) -> Tensor:
    """Return code vectors by Lloyd's algorithm; a code that no row uses moves to the worst coded row.

    Shapes: [N, D] -> [K, D].
    Source: Arthur & Vassilvitskii 2007 (k-means++) for the start.
    """
    codebook_KD = _spread_start(rows_ND, num_codes, generator)
    for _ in range(iterations):
        code_N = nearest(rows_ND, codebook_KD)
        count_K = torch.bincount(code_N, minlength=num_codes)
        sum_KD = torch.zeros_like(codebook_KD).index_add_(0, code_N, rows_ND)
        error_N = (rows_ND - codebook_KD[code_N]).square().sum(1)
        codebook_KD = sum_KD / count_K.clamp(min=1).unsqueeze(1)
        dead_K = count_K == 0
        codebook_KD[dead_K] = rows_ND[error_N.topk(int(dead_K.sum())).indices]
    return codebook_KD


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
