"""A small catalogue and a tiny LRM, as the tests of serving need them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from shutil import rmtree

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from infra.storage import ObjectStore
from models.codebook import CodebookManifest, publish_codebook
from models.lrm import TINY, Lrm, build_lrm, load_lrm, save_lrm
from models.retriever import Retriever, build_retriever, save_retriever
from models.semantic_id import SemanticIdSpace
from models.surface_adapters import Adapter, Base, adapted, adapter_weights, save_adapter
from models.two_tower import ItemContents, TwoTowerConfig
from serve.follower import Record
from streams.catalogue import semantic_id_key
from streams.codes import encode_embedding
from streams.events import (
    LRM_MODEL_NAME,
    TWO_TOWER_HASH,
    CheckpointPromoted,
    SemanticIdAssigned,
    WatchEvent,
    to_json,
)
from streams.topics import SEMANTIC_IDS, WATCHES

SPACE = SemanticIdSpace(codebook_version=1, codebook_sizes=(8, 4), disambiguation_size=4)
NOON_MS = 1_700_000_000_000
HOUR_MS = 3_600_000
CONTENT_DIM, NUM_CLUSTERS = 4, 4


def tiny_lrm(seed: int = 0, space: SemanticIdSpace = SPACE) -> Lrm:
    """An untrained model; another seed is another model."""
    texts = ["User: unknown\nWatch history:", "home watch_next video channel 100% 60s"]
    return build_lrm(texts, space, config=TINY, seed=seed)


def assigned(
    number: int, *, channel: str = "channel", age_h: float = 0, append_time_ms: int = 0
) -> SemanticIdAssigned:
    """Video `v-<number>`, `age_h` hours before noon."""
    return SemanticIdAssigned(
        video_id=f"v-{number}",
        title=f"Video {number}",
        channel=channel,
        codes=(number % 8, number // 8 % 4),
        disambiguation_code=number // 32,
        codebook_version=1,
        embedding_f16="",
        upload_time_ms=NOON_MS - round(age_h * HOUR_MS),
        upload_append_time_ms=append_time_ms,
        upload_position=number,
        assigned_time_ms=0,
    )


def record_of(video: SemanticIdAssigned) -> Record:
    """The record that assigns a video's semantic ID."""
    key = semantic_id_key(video.video_id, video.codebook_version)
    return Record(SEMANTIC_IDS, key.encode(), to_json(video))


def removal_of(video_id: str) -> Record:
    """The tombstone of a video."""
    return Record(SEMANTIC_IDS, semantic_id_key(video_id, 1).encode(), None)


def watch(
    user_id: str, video_id: str, *, event_id: str = "", minute: int = 0, surface: str = "home"
) -> WatchEvent:
    """A watch, `minute` minutes after noon."""
    return WatchEvent.model_validate(
        {
            "event_id": event_id or f"{user_id}-{video_id}-{minute}",
            "event_time_ms": NOON_MS + 60_000 * minute,
            "user_id": user_id,
            "video_id": video_id,
            "surface": surface,
            "watched_s": 60,
            "duration_s": 60,
        }
    )


def watch_record(event: WatchEvent, *, key: str | None = None) -> Record:
    """The record of a watch, appended when it happened."""
    return Record(WATCHES, (key or event.user_id).encode(), to_json(event), event.event_time_ms)


def save_checkpoint(store_root: Path, version: int, lrm: Lrm | None = None) -> CheckpointPromoted:
    """Write a checkpoint (by default of a model of its own) into a local store and return its announcement."""
    path = f"checkpoints/{LRM_MODEL_NAME}/{version:06d}"
    lrm = lrm or tiny_lrm(seed=version)
    sha256 = save_lrm(lrm, store_root / path)
    return CheckpointPromoted(
        model_name=LRM_MODEL_NAME,
        model_version=version,
        codebook_version=lrm.space.codebook_version,
        path=path,
        sha256=sha256,
        metrics={},
        promoted_time_ms=NOON_MS,
    )


def save_surface_adapter(
    store_root: Path,
    base: CheckpointPromoted,
    name: str,
    *,
    seed: int = 0,
    weights: dict[str, Tensor] | None = None,
) -> CheckpointPromoted:
    """Write an adapter that changes what its base says beside that base, and return its announcement."""
    if weights is None:
        weights = adapter_weights(adapted(load_lrm(store_root / base.path), name=name))
        generator = torch.Generator().manual_seed(seed)
        for one in weights.values():
            one.normal_(std=0.2, generator=generator)
    path = f"{base.path}/adapters/{name}"
    belongs_to = Base(base.model_version, base.sha256, base.codebook_version)
    rmtree(store_root / path, ignore_errors=True)
    sha256 = save_adapter(Adapter(weights), store_root / path, belongs_to)
    return CheckpointPromoted(
        model_name=f"{base.model_name}.{name}",
        model_version=base.model_version,
        codebook_version=base.codebook_version,
        path=path,
        sha256=sha256,
        metrics={},
        promoted_time_ms=NOON_MS,
        base_model_version=base.model_version,
        base_sha256=base.sha256,
    )


def some_contents(numbers: Sequence[int]) -> ItemContents:
    """Return the contents of videos `v-<number>`."""
    rows = [content_of(number) for number in numbers]
    return ItemContents(
        [f"v-{number}" for number in numbers],
        torch.tensor(np.array(rows).reshape(len(numbers), CONTENT_DIM), dtype=torch.float32),
        torch.tensor([number % NUM_CLUSTERS for number in numbers], dtype=torch.int64),
    )


def content_of(number: int) -> NDArray[np.float16]:
    """Return the content vector of video `v-<number>`."""
    return np.random.default_rng(number).normal(size=CONTENT_DIM).astype(np.float16)


def with_content(video: SemanticIdAssigned, number: int) -> SemanticIdAssigned:
    """Return an assignment with what the item towers are told of video `v-<number>`."""
    return video.model_copy(
        update={
            "embedding_f16": encode_embedding(content_of(number)),
            "cluster_id": number % NUM_CLUSTERS,
        }
    )


def tiny_retriever(
    model_name: str,
    *,
    seed: int = 0,
    codebook_version: int = 1,
    contents: ItemContents | None = None,
) -> Retriever:
    """An untrained two-tower, by default over five videos."""
    config = TwoTowerConfig(
        item_tower="hash" if model_name == TWO_TOWER_HASH else "cluster",
        size=8,
        hidden_size=8,
        history_max=4,
        hash_rows=4096,
        num_clusters=NUM_CLUSTERS,
    )
    return build_retriever(
        contents or some_contents(range(5)),
        config=config,
        codebook_version=codebook_version,
        seed=seed,
    )


def save_two_tower(
    store_root: Path, model_name: str, version: int, retriever: Retriever | None = None
) -> CheckpointPromoted:
    """Write a two-tower (by default one of its own) and return its announcement."""
    path = f"checkpoints/{model_name}/{version:06d}"
    retriever = retriever or tiny_retriever(model_name, seed=version)
    return CheckpointPromoted(
        model_name=model_name,
        model_version=version,
        codebook_version=retriever.codebook_version,
        path=path,
        sha256=save_retriever(retriever, store_root / path),
        metrics={},
        promoted_time_ms=NOON_MS,
    )


def publish_tiny_codebook(store: ObjectStore, space: SemanticIdSpace = SPACE) -> None:
    """Make a codebook of a space the current one; it has no files, since nobody computes codes."""
    publish_codebook(
        store,
        CodebookManifest(
            codebook_version=space.codebook_version,
            codebook_sizes=space.codebook_sizes,
            disambiguation_size=space.disambiguation_size,
            embedding_dim=4,
            encoders_sha256="",
            quantizer={},
            card={},
            files={},
        ),
        {},
    )
