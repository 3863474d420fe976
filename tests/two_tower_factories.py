"""Contents of videos and untrained two-towers, as the tests of their rounds need them."""

from __future__ import annotations

import numpy as np

from models.codebook import CodebookManifest
from streams.events import TWO_TOWER_CLUSTER
from workers.two_tower_state import TWO_TOWERS, Content, TwoTowerState, new_two_tower

EMBEDDING_DIM, NUM_CLUSTERS = 4, 4
MANIFEST = CodebookManifest(
    codebook_version=1,
    codebook_sizes=(8, 4),
    disambiguation_size=4,
    embedding_dim=EMBEDDING_DIM,
    encoders_sha256="",
    quantizer={"num_clusters": NUM_CLUSTERS},
    card={},
    files={},
)


def content(number: int) -> Content:
    """What a two-tower is told of video `v<number>`: every fourth is of its kind."""
    embedding_C = np.full(EMBEDDING_DIM, number / 1000, dtype=np.float16)
    embedding_C[number % EMBEDDING_DIM] = 1
    return Content(embedding_C, number % NUM_CLUSTERS)


def some_content(count: int = 24) -> dict[str, Content]:
    return {f"v{number}": content(number) for number in range(count)}


def tiny_two_tower(model_name: str = TWO_TOWER_CLUSTER, *, seed: int = 0) -> TwoTowerState:
    """Return an untrained state over `some_content`."""
    return new_two_tower(TWO_TOWERS[model_name], MANIFEST, some_content(), seed=seed)
