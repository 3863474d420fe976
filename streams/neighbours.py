"""What whoever keeps the catalogue in Qdrant and whoever asks it agree on: where it is, names and ids, one question.

The question is Qdrant's own query call. Where no server is named, the catalogue worker answers it, so that who asks
need not know which of the two it is. Knows nothing of HTTP and Qdrant's client.
"""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any, NamedTuple

from infra.errors import DecodeError
from infra.settings import Settings

ADDRESS_FILE = "catalogue.json"
COLLECTION_PREFIX = "freshet-catalogue-"
K_MAX = 1000
SHOWN = ("video_id", "title", "semantic_id")


class Neighbour(NamedTuple):
    """A video and how near it is: the cosine of the two content embeddings."""

    video_id: str
    title: str
    semantic_id: str
    score: float


def catalogue_url(settings: Settings) -> str:
    """Return where to ask: the server that is named, else the catalogue worker of the same folder; "" for nowhere.

    Nobody may answer there: a worker that was killed leaves its address behind.
    """
    if settings.qdrant.url:
        return settings.qdrant.url.rstrip("/")
    try:
        return str(json.loads(address_path(settings).read_bytes())["url"])
    except FileNotFoundError:
        return ""


def address_path(settings: Settings) -> Path:
    """Return the file that says where the catalogue worker listens."""
    return settings.var_dir / ADDRESS_FILE


def collection_name(codebook_version: int) -> str:
    """Return the collection that holds the videos of one codebook_version."""
    return f"{COLLECTION_PREFIX}{codebook_version}"


def point_id(video_id: str) -> str:
    """Return the id of a video's point: the same wherever it is computed, so that a point is only ever replaced."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"freshet:video:{video_id}"))


def query_path(codebook_version: int) -> str:
    """Return what follows the address in the URL that is posted to."""
    return f"/collections/{collection_name(codebook_version)}/points/query"


def query(video_id: str, k: int) -> dict[str, Any]:
    """Return the body that asks for the k (at most `K_MAX`) videos nearest to a live one, without itself."""
    return {"query": point_id(video_id), "limit": min(k, K_MAX), "with_payload": list(SHOWN)}


def neighbours_in(answer: bytes) -> list[Neighbour]:
    """Return the videos that an answer to `query` holds, nearest first.

    Raises:
        DecodeError: it is no such answer.
    """
    try:
        return [
            Neighbour(
                **{name: point["payload"][name] for name in SHOWN}, score=float(point["score"])
            )
            for point in json.loads(answer)["result"]["points"]
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise DecodeError(
            f"got {answer[:80]!r}, expected Qdrant's answer to a query", "invalid_answer"
        ) from error
