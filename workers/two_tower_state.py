"""Everything that refreshing a two-tower must not lose, as one folder; the layout is that of `workers.training_state`.

    <store>/checkpoints/<model name>/000007/
        model.safetensors two_tower.json      what a retrieval arm loads
        optimizer.safetensors reservoir.parquet watch_counts.json state.json      what the next round needs as well

Knows nothing of Kafka and Ray.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from infra.storage import ObjectStore
from models.codebook import CodebookManifest
from models.next_item import NextItemTraining, make_optimizer
from models.retriever import Retriever, build_retriever, load_retriever, save_retriever
from models.training import optimizer_tensors, restore_optimizer
from models.two_tower import ItemContents, ItemTower, TwoTowerConfig
from streams.codes import decode_embedding
from streams.events import TWO_TOWER_CLUSTER, TWO_TOWER_HASH, SemanticIdAssigned
from workers.replay import Reservoir
from workers.training_state import (
    OPTIMIZER_FILE,
    Positions,
    RoundState,
    complete_checkpoint,
    empty_folder,
    open_checkpoint,
    round_state_of,
)

TWO_TOWERS: dict[str, ItemTower] = {TWO_TOWER_CLUSTER: "cluster", TWO_TOWER_HASH: "hash"}
TRAINING = NextItemTraining(peak_learning_rate=2e-3, round_learning_rate=1e-3)
"""As the quality benchmark's validation chose."""


class Content(NamedTuple):
    """What a two-tower is told of a video: its fused embedding, float16 [C], and its flat cluster."""

    embedding_C: NDArray[np.float16]
    cluster: int

    @classmethod
    def of(cls, assigned: SemanticIdAssigned) -> Self | None:
        """Return that part of an assignment; None where it has none, as those of early codebooks."""
        if assigned.cluster_id is None or not assigned.embedding_f16:
            return None
        return cls(decode_embedding(assigned.embedding_f16), assigned.cluster_id)


@dataclass(kw_only=True)
class TwoTowerState(RoundState):
    """The mutable whole that a round of a two-tower moves forward."""

    retriever: Retriever
    training: NextItemTraining
    optimizer: torch.optim.Adam

    def set_catalogue(self, videos: Mapping[str, Content]) -> None:
        """Make these videos the catalogue; the order in which they came has no part in it."""
        self.retriever.set_items(contents_of(videos, self.retriever.model.content_NC.shape[1]))


def contents_of(videos: Mapping[str, Content], embedding_dim: int) -> ItemContents:
    """Return the videos in the order of their ids, as item towers take them."""
    ids = sorted(videos)
    embedding_NC = np.empty((len(ids), embedding_dim), dtype=np.float32)
    for row, one in enumerate(ids):
        embedding_NC[row] = videos[one].embedding_C
    cluster_N = torch.tensor([videos[one].cluster for one in ids], dtype=torch.int64)
    return ItemContents(ids, torch.from_numpy(embedding_NC), cluster_N)


def new_two_tower(
    item_tower: ItemTower,
    manifest: CodebookManifest,
    videos: Mapping[str, Content],
    *,
    seed: int,
    reservoir_rows: int = 2000,
) -> TwoTowerState:
    """Return the state before any training, for the contents and clusters of this codebook."""
    retriever = build_retriever(
        contents_of(videos, manifest.embedding_dim),
        config=TwoTowerConfig(
            item_tower=item_tower, num_clusters=manifest.quantizer["num_clusters"]
        ),
        codebook_version=manifest.codebook_version,
        seed=seed,
    )
    return TwoTowerState(
        retriever=retriever,
        training=TRAINING,
        optimizer=make_optimizer(retriever.model, TRAINING),
        reservoir=Reservoir(reservoir_rows),
        positions=Positions(),
        rng=random.Random(seed),
    )


def save_two_tower(
    state: TwoTowerState,
    store: ObjectStore,
    model_name: str,
    *,
    scratch: Path,
    record: dict[str, Any],
) -> str:
    """Write the state as checkpoint `model_version` and return its weights' sha256.

    `record` goes into state.json: what was measured, and what the announcement will say.

    Delivery: killed before the last step, there is no such checkpoint and the round is repeated from the one before.
    """
    folder = empty_folder(state, store, model_name, scratch)
    sha256 = save_retriever(state.retriever, folder)
    save_file(optimizer_tensors(state.retriever.model, state.optimizer), folder / OPTIMIZER_FILE)
    document = {
        "codebook_version": state.retriever.codebook_version,
        "config": asdict(state.training),
        "sha256": sha256,
        "record": record,
    }
    complete_checkpoint(state, folder, document, store, model_name)
    return sha256


def load_two_tower(
    store: ObjectStore, model_name: str, model_version: int, *, cache: Path
) -> TwoTowerState:
    """Return the state as it was saved, every file's hash checked first; raises like `open_checkpoint`."""
    document, folder = open_checkpoint(store, model_name, model_version, cache=cache)
    retriever = load_retriever(folder, sha256=document["sha256"])
    training = NextItemTraining(**document["config"])
    optimizer = make_optimizer(retriever.model, training)
    restore_optimizer(retriever.model, optimizer, load_file(folder / OPTIMIZER_FILE))
    return TwoTowerState(
        retriever=retriever,
        training=training,
        optimizer=optimizer,
        **round_state_of(document, folder),
    )
