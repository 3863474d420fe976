from __future__ import annotations

import json
from pathlib import Path

import pytest

from infra.errors import DecodeError
from infra.settings import QdrantSettings, Settings
from streams.neighbours import (
    K_MAX,
    Neighbour,
    address_path,
    catalogue_url,
    neighbours_in,
    point_id,
    query,
)


def test_server_that_is_named_is_asked_before_a_worker_of_the_folder(tmp_path: Path) -> None:
    embedded = Settings(var_dir=tmp_path)
    assert catalogue_url(embedded) == ""
    address_path(embedded).write_text(json.dumps({"url": "http://127.0.0.1:1/secret"}))
    assert catalogue_url(embedded) == "http://127.0.0.1:1/secret"
    named = Settings(var_dir=tmp_path, qdrant=QdrantSettings(url="http://qdrant:6333/"))
    assert catalogue_url(named) == "http://qdrant:6333"


def test_query_is_for_the_point_of_the_video() -> None:
    body = query("v1", 3)
    assert (body["query"], body["limit"]) == (point_id("v1"), 3)
    assert point_id("v1") != point_id("v2")
    assert query("v1", K_MAX + 1)["limit"] == K_MAX


def test_answer_is_read_in_its_order() -> None:
    payload = {"video_id": "v2", "title": "Cats", "semantic_id": "A1 B2", "more": 1}
    points = [
        {"id": "x", "score": 0.5, "payload": payload},
        {"id": "y", "score": 0.25, "payload": payload | {"video_id": "v3"}},
    ]
    found = neighbours_in(json.dumps({"result": {"points": points}}).encode())
    assert found == [
        Neighbour("v2", "Cats", "A1 B2", 0.5),
        Neighbour("v3", "Cats", "A1 B2", 0.25),
    ]


@pytest.mark.parametrize(
    "answer", [b"", b"[]", b"null", b'{"result": {}}', b'{"result": {"points": [{"score": 1}]}}']
)
def test_anything_else_is_refused(answer: bytes) -> None:
    with pytest.raises(DecodeError, match="expected Qdrant's answer"):
        neighbours_in(answer)
