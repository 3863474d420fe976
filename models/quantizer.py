"""Fuses a video's modality embeddings and codes the result coarse to fine, as one torch module.

- Fusion is inside: project each modality, normalise, take the weighted mean over the modalities that are present.
- The quantizer is residual: level l codes what levels 0..l-1 left over.
- Everything fitted is a buffer, so that a checkpoint carries it all.

Knows nothing of encoders, of how its buffers are fitted, and of ONNX.

Legend: B videos, M modalities, D dimension of a modality or of the fused embedding, L levels, K codes of a level.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from models.encoders import MODALITIES, Modality


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantizerConfig:
    """What a quantizer is made of, and how it is fitted."""

    codebook_sizes: tuple[int, ...] = (256, 128, 64)
    """Codes per level, coarse to fine (PLUM 2510.07784 halves each level); here 2^21 cells."""
    embedding_dim: int = 64
    """Dimensions of the fused embedding, at most those of every modality."""
    modality_weights: tuple[float, ...] = (0.5, 0.3, 0.2)
    """Share of text, frames and audio in the embedding of a video that has all three."""
    whitening: float = 0.5
    """0 keeps each principal component's share of the variance, 1 makes all shares equal."""
    kmeans_iterations: int = 25
    """Lloyd steps per level."""
    fit_rows_max: int = 100_000
    """Embeddings the codebooks are fitted on; of more, a random sample."""

    def __post_init__(self) -> None:
        if not self.codebook_sizes or min(self.codebook_sizes) < 2:
            raise ValueError(f"codebook_sizes is {self.codebook_sizes}; each level needs 2 or more")
        if len(self.modality_weights) != len(MODALITIES) or min(self.modality_weights) <= 0:
            raise ValueError(
                f"modality_weights is {self.modality_weights}; expected a positive one for each of "
                f"{MODALITIES}"
            )
        if not 0 <= self.whitening <= 1:
            raise ValueError(f"whitening is {self.whitening}; expected a number from 0 to 1")

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """Return the config that `asdict` turned into JSON."""
        as_tuples = ("codebook_sizes", "modality_weights")
        values: dict[str, Any] = {
            name: tuple(value) if name in as_tuples else value for name, value in document.items()
        }
        return cls(**values)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object that `from_json` reads."""
        return asdict(self)


class Quantized(NamedTuple):
    """What is known of a video once it is coded.

    Attributes:
        codes_BL: int64, the code of each level.
        embedding_BD: the fused embedding, of length 1.
        residual_norm_B: how far the embedding is from what its codes stand for.
    """

    codes_BL: Tensor
    embedding_BD: Tensor
    residual_norm_B: Tensor


class Quantizer(nn.Module):
    """Modality embeddings and which of them are present -> codes; see `models.quantizer_fit` for the fit."""

    def __init__(self, config: QuantizerConfig, dimensions: Mapping[Modality, int]) -> None:
        super().__init__()
        self.config = config
        for modality, dimension in dimensions.items():
            self.register_buffer(f"mean_{modality}", torch.zeros(dimension))
            self.register_buffer(
                f"projection_{modality}", torch.zeros(dimension, config.embedding_dim)
            )
        self.register_buffer("weight_M", torch.tensor(config.modality_weights))
        for level, size in enumerate(config.codebook_sizes):
            self.register_buffer(f"codebook_{level}", torch.zeros(size, config.embedding_dim))

    def forward(
        self, text_BD: Tensor, frames_BD: Tensor, audio_BD: Tensor, present_BM: Tensor
    ) -> Quantized:
        """Return codes, embedding and residual norm of each video.

        Shapes: modality embeddings float32 [B, dimension], present_BM bool [B, 3] -> codes_BL int64,
            embedding_BD float32, residual_norm_B float32. An absent modality's row is never read.
        """
        embedding_BD = self.fuse((text_BD, frames_BD, audio_BD), present_BM)
        codes_BL, residual_BD = self.quantize(embedding_BD)
        return Quantized(codes_BL, embedding_BD, residual_BD.norm(dim=1))

    def fuse(self, modalities: tuple[Tensor, Tensor, Tensor], present_BM: Tensor) -> Tensor:
        """Return the direction of the weighted mean over the modalities that are present.

        Shapes: three of [B, dimension], present_BM bool [B, 3] -> [B, D], unit length.
        """
        fused_BD = torch.zeros(())
        for index, (modality, rows_BD) in enumerate(zip(MODALITIES, modalities, strict=True)):
            centred_BD = rows_BD - self.get_buffer(f"mean_{modality}")
            projected_BD = centred_BD @ self.get_buffer(f"projection_{modality}")
            weighted_BD = (
                nn.functional.normalize(projected_BD, dim=1) * self.get_buffer("weight_M")[index]
            )
            # `where`, not a product with the mask: whatever an absent row holds, it must not count.
            fused_BD = fused_BD + torch.where(
                present_BM[:, index : index + 1], weighted_BD, torch.zeros_like(weighted_BD)
            )
        return nn.functional.normalize(fused_BD, dim=1)

    def quantize(self, embedding_BD: Tensor) -> tuple[Tensor, Tensor]:
        """Return the nearest code of each level, and what no level covers.

        Shapes: [B, D] -> codes_BL int64, residual_BD.
        Source: Lee et al. 2022 (RQ-VAE) sec. 3.1, without the autoencoder.
        """
        residual_BD = embedding_BD
        codes = []
        for level in range(len(self.config.codebook_sizes)):
            codebook_KD = self.get_buffer(f"codebook_{level}")
            code_B = nearest(residual_BD, codebook_KD)
            residual_BD = residual_BD - codebook_KD[code_B]
            codes.append(code_B)
        return torch.stack(codes, dim=1), residual_BD


def nearest(rows_BD: Tensor, codebook_KD: Tensor) -> Tensor:
    """Return the index of each row's nearest code vector; shapes [B, D], [K, D] -> [B] int64."""
    # |r - c|^2 without |r|^2, which is the same for all c.
    distance_BK = codebook_KD.square().sum(1) - 2 * rows_BD @ codebook_KD.T
    return distance_BK.argmin(dim=1)
