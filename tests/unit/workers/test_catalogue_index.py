"""The catalogue view on a real Qdrant, the embedded one, and over the calls of a server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from infra.errors import TransientError
from infra.settings import QdrantSettings
from streams.catalogue import semantic_id_key
from streams.codes import encode_embedding
from streams.events import SemanticIdAssigned, to_json
from streams.neighbours import collection_name, point_id
from tests.qdrant_server import qdrant_running
from workers.catalogue_index import UPSERT_BATCH, CatalogueIndex, Record

# Directions stand for topics: two films on dogs, one on cats, one on space.
DIRECTIONS = {
    "Dogs at play": (1.0, 0.1, 0.0),
    "A dog's life": (0.9, 0.2, 0.0),
    "Cats indoors": (0.5, 0.9, 0.0),
    "Space telescope": (0.0, 0.1, 1.0),
}


@pytest.fixture(params=["in memory", "on a server"])
def index(request: pytest.FixtureRequest) -> Iterator[CatalogueIndex]:
    if request.param == "in memory":
        index = CatalogueIndex(QdrantSettings())
        yield index
        index.close()
        return
    with qdrant_running() as server:
        index = CatalogueIndex(QdrantSettings(url=server.url))
        yield index
        index.close()


def points(index: CatalogueIndex) -> set[str]:
    """Ids of all points under codebook 1."""
    return index._indexed()[collection_name(1)]


def record(title: str, direction: tuple[float, ...] = (), **fields: Any) -> Record:
    embedding = np.array(direction or DIRECTIONS[title], dtype=np.float16)
    video = SemanticIdAssigned.model_validate(
        {
            "video_id": title, "title": title, "codes": (228, 204), "disambiguation_code": 1,
            "codebook_version": 1, "embedding_f16": encode_embedding(embedding),
            "upload_time_ms": 5, "upload_append_time_ms": 6, "upload_position": 7,
            "assigned_time_ms": 8, **fields,
        }
    )  # fmt: skip
    return key(video.video_id, video.codebook_version), to_json(video)


def key(video_id: str, version: int = 1) -> bytes:
    return semantic_id_key(video_id, version).encode()


def neighbours(index: CatalogueIndex, video_id: str, k: int = 3) -> list[str]:
    return [each.video_id for each in index.neighbours(video_id, k, codebook_version=1)]


def test_neighbours_are_the_nearest_first_and_never_the_video_itself(index: CatalogueIndex) -> None:
    index.apply(record(title) for title in DIRECTIONS)
    found = index.neighbours("Dogs at play", 2, codebook_version=1)
    assert [each.title for each in found] == ["A dog's life", "Cats indoors"]
    assert found[0].semantic_id == "A228 B204 C1"
    assert 1 > found[0].score > found[1].score


def test_removed_video_is_found_no_more(index: CatalogueIndex) -> None:
    index.apply(record(title) for title in DIRECTIONS)
    index.apply([(key("A dog's life"), None)])
    assert neighbours(index, "Dogs at play") == ["Cats indoors", "Space telescope"]
    assert neighbours(index, "A dog's life") == []


def test_removal_of_what_was_never_there_is_nothing(index: CatalogueIndex) -> None:
    index.apply([(key("unknown"), None)])
    assert neighbours(index, "unknown") == []


def test_record_that_is_applied_again_changes_nothing(index: CatalogueIndex) -> None:
    for _ in range(2):
        index.apply(record(title) for title in DIRECTIONS)
    assert len(points(index)) == len(DIRECTIONS)
    assert neighbours(index, "Dogs at play", 10)[0] == "A dog's life"


@pytest.mark.parametrize("apart", [False, True])
def test_last_record_of_a_video_is_what_is_found_also_when_all_are_read_again(
    index: CatalogueIndex, apart: bool
) -> None:
    records = [
        record("Dogs at play", (1.0, 0.0, 0.0)),
        (key("Dogs at play"), None),
        record("Dogs at play", (0.0, 0.0, 1.0)),
    ]
    index.apply([record("Space telescope"), record("Cats indoors")])
    for batch in 2 * [[each] for each in records] if apart else 2 * [records]:
        index.apply(batch)
    assert neighbours(index, "Dogs at play", 1) == ["Space telescope"]


def test_videos_of_two_codebooks_are_kept_apart(index: CatalogueIndex) -> None:
    index.apply([record("Dogs at play"), record("Dogs at play", (1.0, 0.0), codebook_version=2)])
    index.apply([record("Cats indoors", (1.0, 0.0), codebook_version=2)])
    assert neighbours(index, "Dogs at play") == []
    (found,) = index.neighbours("Dogs at play", 3, codebook_version=2)
    assert found.video_id == "Cats indoors"


def test_bad_record_is_skipped_and_the_rest_goes_in(index: CatalogueIndex) -> None:
    index.apply([(b"no key", b"{}"), (key("v"), b"{"), record("Cats indoors")])
    assert points(index) == {point_id("Cats indoors")}


@pytest.mark.parametrize(
    "embedding",
    ["", "%", "AAA=", encode_embedding(np.ones(2, np.float16)),
     encode_embedding(np.array([np.nan, 1, 1], np.float16))],
)  # fmt: skip
@pytest.mark.parametrize("first", [False, True])
def test_embedding_that_is_none_of_the_codebooks_is_skipped_and_the_rest_goes_in(
    index: CatalogueIndex, embedding: str, first: bool
) -> None:
    bad = record("Space telescope", embedding_f16=embedding)
    good = [record("Cats indoors"), record("Dogs at play")]
    index.apply([bad, *good] if first else good)
    index.apply([bad])
    assert points(index) == {point_id("Cats indoors"), point_id("Dogs at play")}


def test_more_videos_than_one_batch_all_go_in(index: CatalogueIndex) -> None:
    count = UPSERT_BATCH + 3
    index.apply(record("v", (1.0, n / count), video_id=str(n)) for n in range(count))
    assert len(points(index)) == count


def test_payload_holds_the_prefixes_of_the_semantic_id() -> None:
    index = CatalogueIndex(QdrantSettings())
    index.apply([record("Cats indoors")])
    (point,), _ = index._client.scroll(collection_name(1))
    assert point.payload is not None
    assert point.payload["sid_prefixes"] == ["A228", "A228 B204"]
    assert point.payload["upload_time_ms"] == 5


def test_server_that_does_not_answer_is_named() -> None:
    index = CatalogueIndex(QdrantSettings(url="http://127.0.0.1:9"))
    with pytest.raises(TransientError, match=r"'http://127\.0\.0\.1:9'"):
        index.apply([record("Cats indoors")])


def test_server_that_fails_is_named_with_what_it_said() -> None:
    with qdrant_running() as server:
        index = CatalogueIndex(QdrantSettings(url=server.url))
        server.failing = True
        with pytest.raises(TransientError, match="out of order"):
            index.neighbours("Cats indoors", 1, codebook_version=1)
