"""Videos as records of `video.semantic_ids`, each near those with the numbers beside its own."""

from __future__ import annotations

from typing import Any

import numpy as np

from streams.catalogue import semantic_id_key
from streams.codes import encode_embedding
from streams.events import SemanticIdAssigned
from streams.topics import SEMANTIC_IDS, Topic

Sent = tuple[Topic, str, SemanticIdAssigned | None]


def assigned(number: float, *, name: str = "", **fields: Any) -> SemanticIdAssigned:
    """Return video `v<number>`, or `name`, in the direction that the number stands for."""
    angle = number / 400  # up to a quarter turn, 600 of them keep their order in 16 bits
    embedding = np.array([np.cos(angle), np.sin(angle)], dtype=np.float16)
    return SemanticIdAssigned.model_validate(
        {
            "video_id": name or f"v{number:g}", "title": f"Film {name or number}",
            "codes": (int(number) % 7, 1), "disambiguation_code": int(number),
            "codebook_version": 1, "embedding_f16": encode_embedding(embedding),
            "upload_time_ms": 1, "upload_append_time_ms": 1, "upload_position": 1,
            "assigned_time_ms": 2, **fields,
        }
    )  # fmt: skip


def record(number: float, **fields: Any) -> Sent:
    """Return what is sent when a video is assigned."""
    video = assigned(number, **fields)
    return SEMANTIC_IDS, semantic_id_key(video.video_id, video.codebook_version), video


def removal(video_id: str) -> Sent:
    """Return what is sent when a video is removed."""
    return SEMANTIC_IDS, semantic_id_key(video_id, 1), None
