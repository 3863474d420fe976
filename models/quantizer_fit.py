"""Fits a quantizer to a catalogue: principal components for the fusion, then clusters, then codes by either method.

Knows nothing of where the embeddings come from and where the quantizer goes.

Legend: N videos of the catalogue, M modalities, D dimension, K codes of a level, P pairs.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.encoders import MODALITIES, Embeddings, Modality
from models.kmeans import kmeans, nearest, restarted
from models.quantizer import Quantizer, QuantizerConfig
from models.rqvae import Views, train_rqvae

Progress = Callable[[str, float], None]

# Fewer samples than this per component, and the principal components are those of the noise.
_SAMPLES_PER_COMPONENT = 4
# A cluster of fewer videos says little of their kind.
_VIDEOS_PER_CLUSTER = 32
# Embeddings have length 1, so that a centroid this far from 0 is never the nearest.
_FAR = 100.0


def fit_quantizer(
    embeddings: Embeddings,
    *,
    config: QuantizerConfig | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    pairs: NDArray[np.int64] | None = None,
) -> Quantizer:
    """Return a quantizer fitted to the videos; the same videos, pairs and seed give the same quantizer.

    Args:
        embeddings: of a catalogue; a modality that few videos have is projected at random.
        config: method, sizes and weights.
        seed: of every random choice.
        progress: told a stage's name ("fusion", "clusters", "codebooks") and the share done, 0 to 1.
        pairs: int64 [P, 2], rows of videos that were watched one after the other, for the contrastive loss of rqvae.

    Raises:
        ValueError: the catalogue has fewer videos than the largest codebook has codes, or a pair names no row of it.
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
    pairs_P2 = _checked(pairs, num_videos)
    if not config.contrastive_weight:
        pairs_P2 = pairs_P2[:0]
    if num_videos > config.fit_rows_max:
        embeddings, pairs_P2 = _sample(embeddings, pairs_P2, config.fit_rows_max, generator)
    quantizer, views = _fused(embeddings, config, generator, report)
    report("clusters", 0.0)
    _fit_clusters(quantizer, views.full.embedding_BD, generator)
    report("codebooks", 0.0)
    if config.method == "rqvae":
        train_rqvae(quantizer, views, pairs_P2, generator, lambda share: report("codebooks", share))
    else:
        _fit_codebooks(quantizer, views.full.embedding_BD, generator)
    report("codebooks", 1.0)
    return quantizer.requires_grad_(requires_grad=False).eval()


def _checked(pairs: NDArray[np.int64] | None, num_videos: int) -> Tensor:
    """Return the pairs of two different videos."""
    if pairs is None or not len(pairs):
        return torch.zeros(0, 2, dtype=torch.int64)
    if pairs.ndim != 2 or pairs.shape[1] != 2 or pairs.min() < 0 or pairs.max() >= num_videos:
        raise ValueError(
            f"pairs are {pairs.shape} of {pairs.min()} to {pairs.max()}; expected [P, 2] of rows below {num_videos}"
        )
    return torch.from_numpy(pairs[pairs[:, 0] != pairs[:, 1]].astype(np.int64))


def _sample(
    embeddings: Embeddings, pairs_P2: Tensor, num_rows: int, generator: torch.Generator
) -> tuple[Embeddings, Tensor]:
    """Return some of the rows, and the pairs among them, renumbered."""
    num_videos = len(embeddings.present_BM)
    chosen = torch.randperm(num_videos, generator=generator)[:num_rows].sort().values
    place_N = torch.full((num_videos,), -1).index_copy_(0, chosen, torch.arange(num_rows))
    pairs_P2 = place_N[pairs_P2]
    rows = chosen.numpy()
    sampled = Embeddings(
        embeddings.text_BD[rows],
        embeddings.frames_BD[rows],
        embeddings.audio_BD[rows],
        embeddings.present_BM[rows],
    )
    return sampled, pairs_P2[(pairs_P2 >= 0).all(dim=1)]


def _fused(
    embeddings: Embeddings, config: QuantizerConfig, generator: torch.Generator, report: Progress
) -> tuple[Quantizer, Views]:
    """Return a quantizer whose fusion is fitted, and the catalogue through it: whole, and with modalities hidden."""
    rows = {
        modality: torch.from_numpy(getattr(embeddings, f"{modality}_BD")) for modality in MODALITIES
    }
    present_NM = torch.from_numpy(embeddings.present_BM)
    quantizer = Quantizer(config, {modality: rows[modality].shape[1] for modality in MODALITIES})
    for index, modality in enumerate(MODALITIES):
        report("fusion", index / len(MODALITIES))
        known_ND = rows[modality][present_NM[:, index]]
        _fit_projection(quantizer, modality, known_ND, generator)
    everything = rows["text"], rows["frames"], rows["audio"]
    left_NM = _some_hidden(present_NM, config.modality_dropout, generator)
    return quantizer, Views(
        full=quantizer.fuse(everything, present_NM),
        partial=quantizer.fuse(everything, left_NM),
        present_NM=present_NM,
        left_NM=left_NM,
    )


def _some_hidden(present_NM: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Return `present_NM` with each modality hidden by chance, but never all that a video has."""
    left_NM = present_NM & (torch.rand(present_NM.shape, generator=generator) >= share)
    return torch.where(left_NM.any(dim=1, keepdim=True), left_NM, present_NM)


def _fit_projection(
    quantizer: Quantizer, modality: Modality, known_ND: Tensor, generator: torch.Generator
) -> None:
    """Set a modality's mean and projection: principal components, or a random rotation if few know it."""
    projection_DE = quantizer.get_buffer(f"projection_{modality}")
    num_components = min(projection_DE.shape[1], len(known_ND) // _SAMPLES_PER_COMPONENT)
    if num_components < quantizer.config.embedding_dim:
        # Activations are never negative, so all have much of the diagonal in common: leave that out.
        random_DE = torch.randn(projection_DE.shape, generator=generator)
        projection_DE.copy_(torch.linalg.qr(random_DE - random_DE.mean(0))[0])
        return
    quantizer.get_buffer(f"mean_{modality}").copy_(known_ND.mean(0))
    variance_D, components_DD = torch.linalg.eigh(torch.cov(known_ND.T))  # ascending
    variance_E = variance_D[-num_components:].flip(0).clamp(min=1e-8)
    components_DE = components_DD[:, -num_components:].flip(1)
    projection_DE[:, :num_components] = components_DE * variance_E ** (
        -quantizer.config.whitening / 2
    )


def _fit_clusters(quantizer: Quantizer, embedding_ND: Tensor, generator: torch.Generator) -> None:
    config = quantizer.config
    num_clusters = min(config.num_clusters, max(1, len(embedding_ND) // _VIDEOS_PER_CLUSTER))
    clusters_KD = quantizer.get_buffer("clusters").fill_(_FAR)
    clusters_KD[:num_clusters] = kmeans(
        embedding_ND, num_clusters, iterations=config.kmeans_iterations, generator=generator
    )


def _fit_codebooks(quantizer: Quantizer, embedding_ND: Tensor, generator: torch.Generator) -> None:
    """Residual k-means: each level's code vectors are the means of what the levels before left over."""
    residual_ND = embedding_ND
    for level, size in enumerate(quantizer.config.codebook_sizes):
        codebook_KD = kmeans(
            residual_ND,
            size,
            iterations=quantizer.config.kmeans_iterations,
            generator=generator if level else restarted(generator),
        )
        quantizer.get_buffer(f"codebook_{level}").copy_(codebook_KD)
        residual_ND = residual_ND - codebook_KD[nearest(residual_ND, codebook_KD)]
