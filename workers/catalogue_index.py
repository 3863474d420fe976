"""The catalogue in Qdrant: neighbours of a video or of an embedding, for people and for cold users.

A view of `video.semantic_ids`, with one collection per codebook_version, as embeddings of two codebooks do not compare.
It can be thrown away and rebuilt, and no recommendation waits for it. Where `FRESHET_QDRANT__URL` is set, the freshness
worker rebuilds it when it starts and keeps it up to date from then on; the embedded one is for a process that rebuilds
its own: plain Python, in memory, slow above 20,000 videos. Knows nothing of tries and beams.
"""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import ResponseHandlingException

from infra.clock import now_ms
from infra.errors import DecodeError, TransientError
from infra.log import get_logger
from infra.settings import QdrantSettings, Settings
from models.semantic_id import format_semantic_id
from streams.catalogue import Catalogue, parse_semantic_id_key
from streams.client import TopicReader
from streams.codes import decode_embedding
from streams.events import SemanticIdAssigned
from streams.topics import SEMANTIC_IDS

UPSERT_BATCH = 256
Record = tuple[bytes | None, bytes | None]


class Neighbour(NamedTuple):
    """A video and how near it is: the cosine of the two content embeddings."""

    video_id: str
    title: str
    semantic_id: str
    score: float


class CatalogueIndex:
    """Live videos by content embedding, on a server or, where no URL is set, in this process's memory."""

    def __init__(self, settings: QdrantSettings) -> None:
        self._url = settings.url
        # The check would ask the server in a thread of its own, and only ever warn.
        self._client = (
            QdrantClient(url=settings.url, check_compatibility=False)
            if settings.url
            else QdrantClient(":memory:")
        )

    def apply(self, records: Iterable[Record]) -> None:
        """Take in records of `video.semantic_ids` by key and value, in their order; skip what is none of its.

        Delivery: on return the points are durable on the server. Records that are applied again are shown again, until
        the last of each key, which says what the video is, was applied again, too.

        Raises:
            TransientError: the server does not answer.
        """
        catalogues, touched = _fold(records)
        with self._answering():
            for version, catalogue in catalogues.items():
                for batch in _batches(catalogue):
                    self._upsert(version, batch)
                gone = touched[version] - catalogue.videos.keys()
                self._delete(version, [_point_id(video_id) for video_id in gone])

    def neighbours(self, video_id: str, k: int, *, codebook_version: int) -> list[Neighbour]:
        """Return the `k` videos nearest to a live one, nearest first; none if it is not live.

        Raises:
            TransientError: the server does not answer.
        """
        with self._answering():
            name = self._existing(codebook_version)
            found = name and self._client.retrieve(name, [_point_id(video_id)], with_vectors=True)
        if not found:
            return []
        near = self.nearest(np.asarray(found[0].vector), k + 1, codebook_version=codebook_version)
        return [each for each in near if each.video_id != video_id][:k]

    def nearest(
        self, embedding: NDArray[np.floating], k: int, *, codebook_version: int
    ) -> list[Neighbour]:
        """Return the `k` live videos nearest to a content embedding, nearest first.

        Raises:
            TransientError: the server does not answer.
        """
        query = embedding.astype(np.float32).tolist()
        with self._answering():
            name = self._existing(codebook_version)
            found = self._client.query_points(name, query=query, limit=k).points if name else []
        return [Neighbour(score=each.score, **_shown(each.payload)) for each in found]

    def rebuild(
        self, settings: Settings, *, on_progress: Callable[[int, int], None] | None = None
    ) -> int:
        """Make the index hold what the topic holds, and return how many videos those are; it answers meanwhile.

        Args:
            settings: name the cluster.
            on_progress: told how many videos are in of how many, after each batch.

        Blocks: until the topic was read to its end and everything is in.

        Raises:
            TransientError: the server does not answer, or the topic's end is not reached.
        """
        started_ms = now_ms()
        with TopicReader(settings.kafka, [SEMANTIC_IDS]) as reader:
            messages = (message for _, message in reader.read_to_end())
            catalogues, _ = _fold((message.key(), message.value()) for message in messages)
        total, done = sum(map(len, catalogues.values())), 0
        for version, catalogue in catalogues.items():
            for batch in _batches(catalogue):
                with self._answering():
                    self._upsert(version, batch)
                done += len(batch)
                if on_progress is not None:
                    on_progress(done, total)
            with self._answering():
                self._delete(version, _indexed_before(started_ms))
        return total

    def close(self) -> None:
        """Leave the server, or forget everything."""
        self._client.close()

    def _upsert(self, version: int, videos: Sequence[SemanticIdAssigned]) -> None:
        """Insert or replace videos."""
        name = collection_name(version)
        if self._existing(version) is None:
            self._create(name, len(decode_embedding(videos[0].embedding_f16)))
        self._client.upsert(name, [_point(video) for video in videos])

    def _delete(self, version: int, points: Any) -> None:
        if points and (name := self._existing(version)):
            self._client.delete(name, points)

    def _existing(self, version: int) -> str | None:
        name = collection_name(version)
        return name if self._client.collection_exists(name) else None

    def _create(self, name: str, dimension: int) -> None:
        """Create the collection with its payload indexes, which Qdrant wants before the points."""
        vectors = models.VectorParams(size=dimension, distance=models.Distance.COSINE)
        self._client.create_collection(name, vectors_config=vectors)
        if self._url:  # the embedded one has none
            for field, schema in _INDEXED.items():
                self._client.create_payload_index(name, field, field_schema=schema)

    @contextmanager
    def _answering(self) -> Iterator[None]:
        try:
            yield
        except ResponseHandlingException as error:
            raise TransientError(
                f"Qdrant does not answer at {self._url!r}: {error}; "
                "is it up, and FRESHET_QDRANT__URL its address?"
            ) from error


_INDEXED = {
    "sid_prefixes": models.PayloadSchemaType.KEYWORD,
    "upload_time_ms": models.PayloadSchemaType.INTEGER,
    "indexed_time_ms": models.PayloadSchemaType.INTEGER,
}


def collection_name(codebook_version: int) -> str:
    """Return the collection that holds the videos of one codebook_version."""
    return f"freshet-catalogue-{codebook_version}"


def _point_id(video_id: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"freshet:video:{video_id}"))


def _indexed_before(time_ms: int) -> models.FilterSelector:
    """Return what picks the points that a rebuild begun at that time, and whoever followed meanwhile, left alone."""
    older = models.FieldCondition(key="indexed_time_ms", range=models.Range(lt=time_ms))
    return models.FilterSelector(filter=models.Filter(must=[older]))


def _batches(catalogue: Catalogue) -> Iterator[list[SemanticIdAssigned]]:
    videos = iter(catalogue.videos.values())
    while batch := list(islice(videos, UPSERT_BATCH)):
        yield batch


def _point(video: SemanticIdAssigned) -> models.PointStruct:
    text = format_semantic_id(video.semantic_id)
    codes = text.split()
    payload: dict[str, Any] = {
        "video_id": video.video_id,
        "title": video.title,
        "semantic_id": text,
        "sid_prefixes": [" ".join(codes[:length]) for length in range(1, len(codes))],
        "codebook_version": video.codebook_version,
        "upload_time_ms": video.upload_time_ms,
        "indexed_time_ms": now_ms(),
    }
    vector = decode_embedding(video.embedding_f16).astype(np.float32).tolist()
    return models.PointStruct(id=_point_id(video.video_id), vector=vector, payload=payload)


def _shown(payload: dict[str, Any]) -> dict[str, str]:
    return {name: payload[name] for name in ("video_id", "title", "semantic_id")}


def _fold(records: Iterable[Record]) -> tuple[dict[int, Catalogue], dict[int, set[str]]]:
    """Return what the records come to, and all videos that they are of, by codebook_version."""
    catalogues: dict[int, Catalogue] = {}
    touched: dict[int, set[str]] = defaultdict(set)
    for key, value in records:
        try:
            video_id, version = parse_semantic_id_key(key)
            catalogues.setdefault(version, Catalogue(version)).apply(key, value)
        except DecodeError as error:
            get_logger().warning("semantic_id_skipped", reason=error.reason, error=str(error))
            continue
        touched[version].add(video_id)
    return catalogues, touched
