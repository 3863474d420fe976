"""First embeddings of code tokens: where a codebook's code vectors lie, said in a base model's own scale.

Codes that are near each other in the codebook begin near each other in the model. A nano LRM, which has nothing else
to begin with, learns much more of a small past so; to a pretrained one with a few texts per film it makes no difference
(LOG.md).

Shape suffixes: V vocabulary of the base, K codes of a level, C dimensions of its code vectors, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from safetensors.torch import load
from torch import Tensor

from models.semantic_id import SemanticIdSpace

Start = Literal["codebook", "mean", "random"]
SPREAD = 0.3
"""Deviation of the codes' rows, of that of the known ones. At 1, codes take a tenth of a nat from every English word
before anything is learned; at 0.3 nothing."""


def code_embeddings(
    known_VD: Tensor,
    space: SemanticIdSpace,
    code_vectors: Sequence[Tensor],
    *,
    start: Start = "codebook",
    spread: float = SPREAD,
    seed: int = 0,
) -> Tensor:
    """Return a row per code token, level by level, around the known rows' mean, at `spread` of their deviation.

    `codebook` turns each level's code vectors by a random rotation of its own, so that distances stay and levels
    differ; the disambiguation level, which has no code vectors, is `random`. `mean` gives all codes the mean of the
    known rows and a thousandth of noise (after Hewitt, "Initializing new word embeddings for pretrained language
    models", 2021).

    Shapes: known_VD, L - 1 times [K_level, C_level] -> [sum of level_sizes, D] float32.

    Raises:
        ValueError: a level's code vectors are not one per code.
    """
    sizes = [len(vectors) for vectors in code_vectors]
    if sizes != list(space.codebook_sizes):
        raise ValueError(f"code vectors are for levels of {sizes}, expected {space.codebook_sizes}")
    generator = torch.Generator().manual_seed(seed)
    mean_D, deviation_D = known_VD.mean(dim=0), known_VD.std(dim=0)
    levels = []
    for level, size in enumerate(space.level_sizes):
        drawn_KD = torch.randn(size, len(mean_D), generator=generator)
        if start == "codebook" and level < len(code_vectors):
            drawn_KD = _turned(code_vectors[level], len(mean_D), generator)
        levels.append(drawn_KD * (1e-3 if start == "mean" else spread))
    return mean_D + torch.cat(levels) * deviation_D


def read_code_vectors(quantizer_weights: bytes, space: SemanticIdSpace) -> list[Tensor]:
    """Return each level's code vectors from a codebook's quantizer.safetensors, but for the disambiguation level."""
    tensors = load(quantizer_weights)
    return [tensors[f"codebook_{level}"] for level in range(len(space.codebook_sizes))]


def _turned(vectors_KC: Tensor, hidden_size: int, generator: torch.Generator) -> Tensor:
    """Return the code vectors around their mean in `hidden_size` dimensions, with a mean square of 1 per dimension."""
    centred_KC = vectors_KC.float() - vectors_KC.float().mean(dim=0)
    rotation_CD = torch.empty(centred_KC.shape[1], hidden_size)
    torch.nn.init.orthogonal_(rotation_CD, generator=generator)
    turned_KD = centred_KC @ rotation_CD
    return turned_KD / turned_KD.square().mean().sqrt().clamp(min=1e-12)
