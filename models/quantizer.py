"""Fuses a video's modality embeddings and codes the result coarse to fine, as one torch module.

- Fusion is inside: project each modality, normalise, take the weighted mean over the modalities that are present.
- The quantizer is residual: level l codes what levels 0..l-1 left over.
- Two methods: `rkmeans` codes the embedding itself; `rqvae` codes level 0 there, where meaning is, and all further
  levels in the latent of an encoder that is told the residual and the code vector of level 0.
- A flat clustering of the same embedding travels along.
- Everything fitted is in the state dict, so that a checkpoint carries it all.

Knows nothing of encoders of media, of how it is fitted, and of ONNX.

Legend: B videos, M modalities, D fused embedding, E detail (a wider one), C latent, L levels, K codes of a level.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Literal, NamedTuple, Self, get_args

import torch
from torch import Tensor, nn

from models.encoders import MODALITIES, Modality
from models.kmeans import nearest

Method = Literal["rqvae", "rkmeans"]
METHODS: tuple[Method, ...] = get_args(Method)

LEVEL_SIZES: Mapping[int, tuple[int, ...]] = {
    3: (256, 128, 64),
    5: (256, 128, 64, 32, 16),
    8: (256, 128, 64, 32, 16, 8, 4, 2),
}
"""Recommended codes per level, by number of levels: each level halves, as in PLUM (2510.07784), for there is less left
to say. Three levels have 2^21 cells; eight take 36 bits of a packed semantic ID's 63."""


CO_WATCHING_WEIGHT = 2.0
"""The contrastive weight where co-watching counts: enough to change level 0, too little to lose the content."""


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantizerConfig:
    """What a quantizer is made of, and how it is fitted."""

    method: Method = "rqvae"
    """`rqvae` trains an encoder, so that almost every video has its own cell; `rkmeans` takes a second to fit."""
    codebook_sizes: tuple[int, ...] = LEVEL_SIZES[3]
    """Codes per level, coarse to fine."""
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
    num_clusters: int = 256
    """Flat clusters beside the codes, at most one per 32 videos (Kuaishou's M3CSR: 1,000 for 100 M videos)."""
    detail_dim: int = 256
    """Principal components the rqvae's encoder sees, more than the embedding has; at most those of a modality."""
    latent_dim: int = 6
    """Dimensions in which the rqvae codes all levels but the first: few, so that codes cover them evenly."""
    hidden_dim: int = 256
    """Width of the encoder's and the decoder's two hidden layers."""
    steps: int = 1000
    """Training steps."""
    batch_size: int = 384
    """Videos per step."""
    learning_rate: float = 2e-3
    """The highest; it rises for a sixteenth of the steps, then falls along a cosine."""
    spread_weight: float = 1.5
    """How much the latents of videos under one code of level 0 are driven apart (KoLeo)."""
    commitment_weight: float = 0.02
    """How much latents are drawn to their code vectors."""
    ema_decay: float = 0.98
    """Share of the former code vector that each step keeps."""
    modality_dropout: float = 0.5
    """Chance of each of a video's modalities to be hidden in its second view."""
    contrastive_weight: float = 0.0
    """How much co-watched videos are drawn together on level 0; 0 leaves codes to the content, which does not drift."""
    contrastive_temperature: float = 0.2
    """Scale of the similarities in the contrastive loss."""

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method is {self.method!r}; expected one of {METHODS}")
        if not self.codebook_sizes or min(self.codebook_sizes) < 2:
            raise ValueError(f"codebook_sizes is {self.codebook_sizes}; each level needs 2 or more")
        if len(self.modality_weights) != len(MODALITIES) or min(self.modality_weights) <= 0:
            raise ValueError(
                f"modality_weights is {self.modality_weights}; expected a positive one for each of "
                f"{MODALITIES}"
            )
        for name in _SHARES:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a number from 0 to 1")
        for name in _COUNTS:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 1 or more")

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


_SHARES = ("whitening", "modality_dropout", "ema_decay")
_COUNTS = ("embedding_dim", "num_clusters", "latent_dim", "hidden_dim", "steps", "batch_size")


class Quantized(NamedTuple):
    """What is known of a video once it is coded.

    Attributes:
        codes_BL: int64, the code of each level.
        embedding_BD: the fused embedding, of length 1.
        residual_norm_B: how far the embedding is from what its codes stand for.
        cluster_id_B: int64, the nearest of the flat clusters.
    """

    codes_BL: Tensor
    embedding_BD: Tensor
    residual_norm_B: Tensor
    cluster_id_B: Tensor


class Fused(NamedTuple):
    """One video's modalities as one: `embedding_BD` of length 1, and the wider `detail_BE` behind it."""

    embedding_BD: Tensor
    detail_BE: Tensor


class Quantizer(nn.Module):
    """Modality embeddings and which of them are present -> codes; see `models.quantizer_fit` for the fit."""

    def __init__(self, config: QuantizerConfig, dimensions: Mapping[Modality, int]) -> None:
        super().__init__()
        self.config = config
        width = max(config.embedding_dim, min(config.detail_dim, *dimensions.values()))
        for modality, dimension in dimensions.items():
            self.register_buffer(f"mean_{modality}", torch.zeros(dimension))
            self.register_buffer(f"projection_{modality}", torch.zeros(dimension, width))
        self.register_buffer("weight_M", torch.tensor(config.modality_weights))
        self.register_buffer("clusters", torch.zeros(config.num_clusters, config.embedding_dim))
        learned = config.method == "rqvae"
        for level, size in enumerate(config.codebook_sizes):
            code_dim = config.latent_dim if learned and level > 0 else config.embedding_dim
            self.register_buffer(f"codebook_{level}", torch.zeros(size, code_dim))
        if learned:
            self.vae = LatentCoder(config, width)

    def forward(
        self, text_BD: Tensor, frames_BD: Tensor, audio_BD: Tensor, present_BM: Tensor
    ) -> Quantized:
        """Return codes, embedding, residual norm and cluster of each video.

        Shapes: modality embeddings float32 [B, dimension], present_BM bool [B, 3] -> codes_BL int64,
            embedding_BD float32, residual_norm_B float32, cluster_id_B int64. An absent modality's row is never read.
        """
        fused = self.fuse((text_BD, frames_BD, audio_BD), present_BM)
        codes_BL, residual_BD = self.quantize(fused, present_BM)
        cluster_id_B = nearest(fused.embedding_BD, self.get_buffer("clusters"))
        return Quantized(codes_BL, fused.embedding_BD, residual_BD.norm(dim=1), cluster_id_B)

    def fuse(self, modalities: tuple[Tensor, Tensor, Tensor], present_BM: Tensor) -> Fused:
        """Return the direction of the weighted mean over the modalities that are present.

        Shapes: three of [B, dimension], present_BM bool [B, 3] -> [B, D] and [B, E], both of unit length.
        """
        embedding_BD, detail_BE = torch.zeros(()), torch.zeros(())
        for index, (modality, rows_BD) in enumerate(zip(MODALITIES, modalities, strict=True)):
            # `where`, not a product with the mask: whatever an absent row holds, it must not count.
            here_B1 = present_BM[:, index : index + 1]
            known_BD = torch.where(here_B1, rows_BD, self.get_buffer(f"mean_{modality}"))
            centred_BD = known_BD - self.get_buffer(f"mean_{modality}")
            projected_BE = centred_BD @ self.get_buffer(f"projection_{modality}")
            weight = self.get_buffer("weight_M")[index]
            leading_BD = projected_BE[:, : self.config.embedding_dim]
            embedding_BD = embedding_BD + weight * nn.functional.normalize(leading_BD, dim=1)
            detail_BE = detail_BE + weight * nn.functional.normalize(projected_BE, dim=1)
        return Fused(
            nn.functional.normalize(embedding_BD, dim=1), nn.functional.normalize(detail_BE, dim=1)
        )

    def quantize(self, fused: Fused, present_BM: Tensor) -> tuple[Tensor, Tensor]:
        """Return the nearest code of each level, and what no level covers of the embedding.

        Shapes: B videos -> codes_BL int64, residual_BD.
        Source: Lee et al. 2022 (RQ-VAE) sec. 3.1; for rqvae, what follows level 0 depends on it as in Huijben et al.
            2024 (QINCo).
        """
        if self.config.method == "rkmeans":
            codes, sums = self.nearest_codes(fused.embedding_BD, first_level=0)
            return torch.stack(codes, dim=1), fused.embedding_BD - sums[-1]
        place_BD = self.vae.place(fused.embedding_BD, present_BM)
        codebook_KD = self.get_buffer("codebook_0")
        code_B = nearest(place_BD, codebook_KD)
        coarse_BD = codebook_KD[code_B]
        if len(self.config.codebook_sizes) == 1:
            return code_B.unsqueeze(1), fused.embedding_BD - coarse_BD
        latent_BC = self.vae.encode(self.vae.inputs(fused.detail_BE, place_BD, coarse_BD))
        codes, sums = self.nearest_codes(latent_BC, first_level=1)
        decoded_BD = self.vae.decode(sums[-1], coarse_BD)
        return torch.stack([code_B, *codes], dim=1), fused.embedding_BD - decoded_BD

    def nearest_codes(
        self, rows_BD: Tensor, *, first_level: int
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return, for each level from `first_level` on, the code of what is left over and the sum so far.

        Shapes: [B, D] -> codes int64 [B] and sums [B, D], one each per level.
        """
        codes, sums = [], []
        sum_BD = torch.zeros_like(rows_BD)
        for level in range(first_level, len(self.config.codebook_sizes)):
            codebook_KD = self.get_buffer(f"codebook_{level}")
            code_B = nearest(rows_BD - sum_BD, codebook_KD)
            sum_BD = sum_BD + codebook_KD[code_B]
            codes.append(code_B)
            sums.append(sum_BD)
        return codes, sums


class LatentCoder(nn.Module):
    """The networks of the rqvae: where a video stands on level 0, its latent for the rest, and the way back.

    Until it is trained it leaves the embedding where it is: the last layer of `moves` is zero.
    """

    def __init__(self, config: QuantizerConfig, detail_dim: int) -> None:
        super().__init__()
        dim, hidden, latent = config.embedding_dim, config.hidden_dim, config.latent_dim
        num_inputs = detail_dim + 2 * dim
        self.moves = _network(dim + len(MODALITIES), hidden, dim, num_hidden=1)
        self.encoder = _network(num_inputs, hidden, latent, num_hidden=2)
        self.decoder = _network(latent + dim, hidden, dim, num_hidden=2)
        self.register_buffer("input_mean", torch.zeros(num_inputs))
        self.register_buffer("input_scale", torch.ones(num_inputs))
        self.register_buffer("residual_scale", torch.ones(()))
        nn.init.zeros_(self.moves[-1].get_parameter("weight"))

    def place(self, embedding_BD: Tensor, present_BM: Tensor) -> Tensor:
        """Return where level 0 looks for the video: its embedding, moved for co-watches and for what is missing."""
        moved_BD = self.moves(torch.cat([embedding_BD, present_BM.float()], dim=1))
        return nn.functional.normalize(embedding_BD + moved_BD, dim=1)

    def inputs(self, detail_BE: Tensor, place_BD: Tensor, coarse_BD: Tensor) -> Tensor:
        """Return what the encoder is given, each number with mean 0 and variance 1 over the catalogue."""
        inputs_BI = torch.cat([detail_BE, place_BD - coarse_BD, coarse_BD], dim=1)
        return (inputs_BI - self.get_buffer("input_mean")) * self.get_buffer("input_scale")

    def encode(self, inputs_BI: Tensor) -> Tensor:
        """Return the latent, of length 1; shapes [B, I] -> [B, C]."""
        return nn.functional.normalize(self.encoder(inputs_BI), dim=1)

    def decode(self, latent_BC: Tensor, coarse_BD: Tensor) -> Tensor:
        """Return the embedding that the latent, or its code vectors' sum, stands for under a code vector of level 0."""
        left_BD: Tensor = self.decoder(torch.cat([latent_BC, coarse_BD], dim=1))
        return coarse_BD + left_BD * self.get_buffer("residual_scale")


def _network(num_inputs: int, hidden: int, num_outputs: int, *, num_hidden: int) -> nn.Sequential:
    sizes = (num_inputs, *(hidden,) * num_hidden)
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), nn.GELU()]
    return nn.Sequential(*layers, nn.Linear(hidden, num_outputs))
