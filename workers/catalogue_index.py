"""The catalogue in Qdrant: what is near a video, for people, for explanations and for cold users.

A view of `video.semantic_ids`, with one collection per codebook_version, as embeddings of two codebooks do not compare.
It can be thrown away and rebuilt, and no search for recommendations waits for it. The catalogue worker keeps it
(`workers.catalogue`): on a server where `FRESHET_QDRANT__URL` names one, else in its own memory, which is plain Python
and slow above 20,000 videos. Knows nothing of tries and beams.
"""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, NamedTuple, TypeVar

import numpy as np
from confluent_kafka import Message
from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import ApiException, UnexpectedResponse

from infra import metrics
from infra.errors import ConfigError, DecodeError, TransientError
from infra.log import get_logger
from infra.settings import QdrantSettings, Settings
from models.semantic_id import format_semantic_id
from streams.catalogue import Catalogue, parse_semantic_id_key
from streams.client import TopicReader
from streams.codes import decode_embedding
from streams.events import SemanticIdAssigned
from streams.neighbours import (
    COLLECTION_PREFIX,
    SHOWN,
    Neighbour,
    catalogue_url,
    collection_name,
    point_id,
)
from streams.topics import SEMANTIC_IDS, Topic

UPSERT_BATCH = 256
IDS_PAGE = 10_000
READ_TIMEOUT_S = 3600.0
NOT_FOUND = 404
Record = tuple[bytes | None, bytes | None]
Touched = Mapping[int, set[str]]
T = TypeVar("T")


class Rebuilt(NamedTuple):
    """How many videos are in, and from which offsets on the index knows of nothing."""

    videos: int
    next_offsets: dict[tuple[str, int], int]


class CatalogueIndex:
    """Live videos by content embedding, on a server or, where no URL is set, in this process's memory.

    Several threads may use it, and several writers keep it in step: each puts in what the topic says, and the last
    record of a video is the last that any of them puts in.
    """

    def __init__(self, settings: QdrantSettings) -> None:
        self._url = settings.url
        # The check would ask the server in a thread of its own, and only ever warn.
        self._client = (
            QdrantClient(url=settings.url, check_compatibility=False)
            if settings.url
            else QdrantClient(":memory:")
        )
        self._lock = threading.RLock()  # the one in memory bears one thread at a time

    def apply(self, records: Iterable[Record]) -> Touched:
        """Take in records of `video.semantic_ids` by key and value, in order; return the videos that they were of.

        What is no record of the topic's is skipped.

        Delivery: on return the points are durable on the server. Records that are applied again are shown again, until
        the last of each key, which says what the video is, was applied again, too.

        Raises:
            TransientError: the server does not answer.
        """
        catalogues, touched = _fold(records)
        for version, catalogue in catalogues.items():
            for batch in _batches(catalogue.videos.values()):
                self._upsert(version, batch)
            gone = touched[version] - catalogue.videos.keys()
            self._delete(collection_name(version), [point_id(video_id) for video_id in gone])
        return touched

    def neighbours(self, video_id: str, k: int, *, codebook_version: int) -> list[Neighbour]:
        """Return the `k` videos nearest to a live one, nearest first; none if it is not live.

        Raises:
            TransientError: the server does not answer.
        """
        found = self.nearest(collection_name(codebook_version), point_id(video_id), k)
        return [
            Neighbour(**{name: each.payload[name] for name in SHOWN}, score=each.score)
            for each in found or ()
        ]

    def nearest(self, collection: str, point: str, k: int) -> list[models.ScoredPoint] | None:
        """Return the `k` points nearest to one, without itself; None where the collection or the point is not there.

        Raises:
            TransientError: the server does not answer.
        """
        with self._answering():
            if self._url:
                try:
                    return self._client.query_points(collection, query=point, limit=k).points
                except UnexpectedResponse as error:
                    if error.status_code == NOT_FOUND:
                        return None
                    raise
            if not self._client.collection_exists(collection):
                return None
            # By its id, the one in memory would look at each payload, and take ten times as long.
            held = self._client.retrieve(collection, [point], with_vectors=True)
            if not held:
                return None
            query: Any = held[0].vector
            near = self._client.query_points(collection, query=query, limit=k + 1).points
        return [each for each in near if each.id != point][:k]

    def rebuild(
        self, settings: Settings, *, on_progress: Callable[[int, int], None] | None = None
    ) -> Rebuilt:
        """Make the index hold what the topic holds; it answers meanwhile, and whoever follows the topic may go on.

        What comes into the topic meanwhile is taken in between batches and at the end, so what another writer has
        put in since is not undone for longer than a batch takes.

        Args:
            settings: name the cluster.
            on_progress: told how many videos are in of how many, after each batch.

        Delivery: killed at any point, the index holds some videos as they were before; another rebuild mends it.
        Blocks: until the topic was read to its end and everything is in.

        Raises:
            TransientError: the server does not answer, or the topic's end is not reached.
        """
        before = self._indexed()  # 1. before the topic is read: what comes later is not stale
        with TopicReader(settings.kafka, [SEMANTIC_IDS]) as reader:
            catalogues, _ = _fold(_records(reader.read_to_end(timeout_s=READ_TIMEOUT_S)))
            total = sum(map(len, catalogues.values()))
            newer = self._fill(catalogues, reader, total, on_progress or (lambda done, total: None))
            for name, points in before.items():
                version = int(name.removeprefix(COLLECTION_PREFIX))
                live = set(catalogues[version].videos) if version in catalogues else set()
                known = {point_id(video_id) for video_id in live | newer[version]}
                self._delete(name, sorted(points - known))
            # 2. Whatever another writer knew when the last batch went in, is before this end.
            self.apply(_records(reader.read_to_end(timeout_s=READ_TIMEOUT_S)))
            return Rebuilt(total, dict(reader.next_offsets))

    def _fill(
        self,
        catalogues: Mapping[int, Catalogue],
        reader: TopicReader,
        total: int,
        on_progress: Callable[[int, int], None],
    ) -> defaultdict[int, set[str]]:
        """Put everything in; return the videos of which something newer came meanwhile, and went in instead."""
        newer: defaultdict[int, set[str]] = defaultdict(set)
        done = 0
        for version, catalogue in catalogues.items():
            for batch in _batches(catalogue.videos.values()):
                self._upsert(
                    version, [each for each in batch if each.video_id not in newer[version]]
                )
                for other, videos in self.apply(_records(reader.poll(timeout_s=0))).items():
                    newer[other] |= videos
                done += len(batch)
                on_progress(done, total)
        return newer

    def close(self) -> None:
        """Leave the server, or forget everything."""
        self._client.close()

    def _indexed(self) -> dict[str, set[str]]:
        """Return the ids of all points, by collection."""
        with self._answering():
            collections = self._client.get_collections().collections
        names = [each.name for each in collections if each.name.startswith(COLLECTION_PREFIX)]
        return {name: set(self._point_ids(name)) for name in names}

    def _point_ids(self, name: str) -> Iterator[str]:
        after: Any = None
        while True:
            with self._answering():
                page, after = self._client.scroll(
                    name, limit=IDS_PAGE, offset=after, with_payload=False, with_vectors=False
                )
            yield from (str(point.id) for point in page)
            if after is None:
                return

    def _upsert(self, version: int, videos: Sequence[SemanticIdAssigned]) -> None:
        """Insert or replace videos; skip those whose embedding is none of the codebook's."""
        name, vectors = collection_name(version), [_vector(video) for video in videos]
        if not any(vectors):
            return
        with self._answering():
            dimension = self._dimension(name, vectors)
            points = [
                _point(video, vector)
                for video, vector in zip(videos, vectors, strict=True)
                if len(vector) == dimension
            ]
            if points:
                self._client.upsert(name, points)
        if len(points) < len(videos):
            _skip("invalid_embedding", f"{len(videos) - len(points)} without {dimension} numbers")

    def _dimension(self, name: str, vectors: Sequence[list[float]]) -> int:
        """Return how many numbers an embedding has in a collection, which is there afterwards."""
        if not self._client.collection_exists(name):
            ((dimension, _),) = Counter(map(len, filter(None, vectors))).most_common(1)
            self._create(name, dimension)
            return dimension
        vectors_config: Any = self._client.get_collection(name).config.params.vectors
        return int(vectors_config.size)

    def _delete(self, name: str, points: Sequence[str]) -> None:
        for batch in _batches(points):
            with self._answering():
                if self._client.collection_exists(name):
                    self._client.delete(name, batch)

    def _create(self, name: str, dimension: int) -> None:
        """Create the collection with its payload indexes, which Qdrant wants before the points."""
        vectors = models.VectorParams(size=dimension, distance=models.Distance.COSINE)
        self._client.create_collection(name, vectors_config=vectors)
        if self._url:  # the one in memory has none
            for field, schema in _INDEXED.items():
                self._client.create_payload_index(name, field, field_schema=schema)

    @contextmanager
    def _answering(self) -> Iterator[None]:
        with self._lock:
            try:
                yield
            except ApiException as error:
                raise TransientError(
                    f"Qdrant does not answer at {self._url!r} as it should: {error}; "
                    "is it up, and FRESHET_QDRANT__URL its address?"
                ) from error


def url_to_ask(settings: Settings) -> str:
    """Return where the catalogue is to be asked; a worker that was killed may have left its address behind.

    Raises:
        ConfigError: no server is named, and no worker runs.
    """
    if url := catalogue_url(settings):
        return url
    raise ConfigError(
        f"no catalogue worker runs in {settings.var_dir}: start `freshet up` or `freshet worker catalogue`, "
        "which builds the catalogue anew, or name a Qdrant server in FRESHET_QDRANT__URL"
    )


@contextmanager
def asked_index(settings: Settings) -> Iterator[CatalogueIndex]:
    """Yield the catalogue as whoever keeps it answers for it: the server that is named, or this folder's worker.

    Raises:
        ConfigError: neither is there.
    """
    index = CatalogueIndex(QdrantSettings(url=url_to_ask(settings)))
    try:
        yield index
    finally:
        index.close()


_INDEXED = {
    "sid_prefixes": models.PayloadSchemaType.KEYWORD,
    "upload_time_ms": models.PayloadSchemaType.INTEGER,
}


def _records(found: Iterable[tuple[Topic, Message]]) -> Iterator[Record]:
    return ((message.key(), message.value()) for _, message in found)


def _batches(items: Iterable[T]) -> Iterator[list[T]]:
    remaining = iter(items)
    while batch := list(islice(remaining, UPSERT_BATCH)):
        yield batch


def _vector(video: SemanticIdAssigned) -> list[float]:
    """Return a video's embedding; none where it holds anything else."""
    try:
        embedding = decode_embedding(video.embedding_f16).astype(np.float32)
    except ValueError:
        return []
    return embedding.tolist() if np.isfinite(embedding).all() else []


def _point(video: SemanticIdAssigned, vector: list[float]) -> models.PointStruct:
    text = format_semantic_id(video.semantic_id)
    codes = text.split()
    payload: dict[str, Any] = {
        "video_id": video.video_id,
        "title": video.title,
        "semantic_id": text,
        "sid_prefixes": [" ".join(codes[:length]) for length in range(1, len(codes))],
        "codebook_version": video.codebook_version,
        "upload_time_ms": video.upload_time_ms,
    }
    return models.PointStruct(id=point_id(video.video_id), vector=vector, payload=payload)


def _fold(records: Iterable[Record]) -> tuple[dict[int, Catalogue], dict[int, set[str]]]:
    """Return what the records come to, and all videos that they are of, by codebook_version."""
    catalogues: dict[int, Catalogue] = {}
    touched: dict[int, set[str]] = defaultdict(set)
    for key, value in records:
        try:
            video_id, version = parse_semantic_id_key(key)
            catalogues.setdefault(version, Catalogue(version)).apply(key, value)
        except DecodeError as error:
            _skip(error.reason, str(error))
            continue
        touched[version].add(video_id)
    return catalogues, touched


def _skip(reason: str, error: str) -> None:
    metrics.RECORDS.labels(SEMANTIC_IDS.name, "refused").inc()
    get_logger().warning("semantic_id_skipped", reason=reason, error=error)
