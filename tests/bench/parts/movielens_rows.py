"""MovieLens as training rows and videos with codes, in seconds; knows nothing of Kafka and of how a model is trained.

The codes are those of residual k-means over the words of each film: fitting the real codebook takes minutes in which
nothing of training is measured, and a text has as many tokens whatever its codes are.

Legend: N videos, D dimension.
"""

from __future__ import annotations

import random
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.kmeans import kmeans, nearest
from models.quantizer import LEVEL_SIZES
from models.semantic_id import SemanticIdSpace
from streams.events import SemanticIdAssigned, VideoUploaded
from streams.movielens import load_timeline
from streams.shards import ShardRow
from streams.timeline import split
from workers.bootstrap import rows_of
from workers.bootstrap_data import catalogue_of

SPACE = SemanticIdSpace(codebook_version=1, codebook_sizes=LEVEL_SIZES[3])
PAST_SHARE = 0.8
WORD_DIM = 32
KMEANS_ITERATIONS = 5


@dataclass(frozen=True)
class MovieLensRows:
    """The catalogue of the past with semantic IDs, its rows, and the rows of what came later."""

    assigned: Sequence[SemanticIdAssigned]
    past: Sequence[ShardRow]
    later: Sequence[ShardRow]


def movielens_rows(seed: int) -> MovieLensRows:
    """Return all of MovieLens, cut where `PAST_SHARE` of its watches have happened."""
    past, later = split(load_timeline(), PAST_SHARE)
    return MovieLensRows(
        assigned=_assigned(catalogue_of(past), seed),
        past=list(rows_of(past.watches(), SPACE.codebook_version)),
        later=list(rows_of(later.watches(), SPACE.codebook_version)),
    )


def _assigned(uploads: Sequence[VideoUploaded], seed: int) -> list[SemanticIdAssigned]:
    taken: Counter[tuple[int, ...]] = Counter()
    assigned = []
    for upload, codes in zip(uploads, _codes(_of_words(uploads), seed), strict=True):
        if taken[codes] == SPACE.disambiguation_size:
            continue
        assigned.append(
            SemanticIdAssigned(
                video_id=upload.video_id,
                title=upload.title,
                topics=upload.topics,
                codes=codes,
                disambiguation_code=taken[codes],
                codebook_version=SPACE.codebook_version,
                embedding_f16="",
                upload_time_ms=upload.event_time_ms,
                upload_append_time_ms=0,
                upload_position=0,
                assigned_time_ms=0,
            )
        )
        taken[codes] += 1
    return assigned


def _of_words(uploads: Sequence[VideoUploaded]) -> Tensor:
    """Return the mean of a random vector per word of title and topics; shape [N, D]."""
    rows = []
    for upload in uploads:
        words = [*upload.title.split(), *upload.topics]
        rows.append(torch.stack([_of_word(word) for word in words]).mean(0))
    return torch.stack(rows)


def _of_word(word: str) -> Tensor:
    generator = random.Random(zlib.crc32(word.encode()))
    return torch.tensor([generator.gauss(0, 1) for _ in range(WORD_DIM)])


def _codes(rows_ND: Tensor, seed: int) -> list[tuple[int, ...]]:
    generator = torch.Generator().manual_seed(seed)
    residual_ND, levels = rows_ND, []
    for size in SPACE.codebook_sizes:
        codebook_KD = kmeans(residual_ND, size, iterations=KMEANS_ITERATIONS, generator=generator)
        code_N = nearest(residual_ND, codebook_KD)
        residual_ND = residual_ND - codebook_KD[code_N]
        levels.append(code_N)
    return [tuple(codes) for codes in torch.stack(levels, 1).tolist()]
