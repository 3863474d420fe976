"""A small catalogue and a tiny LRM, as the tests of serving need them."""

from __future__ import annotations

from pathlib import Path

from infra.storage import ObjectStore
from models.codebook import CodebookManifest, publish_codebook
from models.lrm import TINY, Lrm, build_lrm, save_lrm
from models.semantic_id import SemanticIdSpace
from serve.follower import Record
from streams.catalogue import semantic_id_key
from streams.events import (
    LRM_MODEL_NAME,
    CheckpointPromoted,
    SemanticIdAssigned,
    WatchEvent,
    to_json,
)
from streams.topics import SEMANTIC_IDS, WATCHES

SPACE = SemanticIdSpace(codebook_version=1, codebook_sizes=(8, 4), disambiguation_size=4)
NOON_MS = 1_700_000_000_000
HOUR_MS = 3_600_000


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
