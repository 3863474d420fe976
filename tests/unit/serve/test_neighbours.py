"""Asking for neighbours where the catalogue answers, fails, hangs, or is not there at all."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra import metrics
from infra.settings import QdrantSettings, Settings
from serve.neighbours import Neighbours
from streams.events import to_json
from tests.catalogue_records import record
from tests.qdrant_server import QdrantServer, qdrant_running
from workers.catalogue_index import CatalogueIndex

LONG_S = 1000.0


@pytest.fixture
def server() -> Iterator[QdrantServer]:
    """A server with ten videos in a row."""
    with qdrant_running() as running:
        index = CatalogueIndex(QdrantSettings(url=running.url))
        sent = [record(number) for number in range(10)]
        index.apply((key.encode(), to_json(video)) for _, key, video in sent if video is not None)
        index.close()
        running.asked.clear()
        yield running


def neighbours(url: str, *, retry_s: float = LONG_S, timeout_s: float = 30.0) -> Neighbours:
    """Patient where it is answered: this machine may be slow."""
    settings = Settings(qdrant=QdrantSettings(url=url))
    return Neighbours(settings, retry_s=retry_s, timeout_s=timeout_s)


def counted(outcome: str) -> float:
    return metrics.NEIGHBOURS.labels(outcome)._value.get()


def test_neighbours_are_the_nearest_first_without_the_video_itself(server: QdrantServer) -> None:
    found = neighbours(server.url).of("v0", 3, codebook_version=1)
    assert [each.video_id for each in found] == ["v1", "v2", "v3"]
    assert (found[0].title, found[0].semantic_id) == ("Film 1", "A1 B1 C1")
    assert 1 > found[0].score > found[1].score


def test_video_or_codebook_that_is_not_there_has_none_and_is_no_failure(
    server: QdrantServer,
) -> None:
    asking = neighbours(server.url)
    failed = counted("failed")
    assert asking.of("gone", 3, codebook_version=1) == []
    assert asking.of("v0", 3, codebook_version=2) == []
    assert asking.of("v0", 0, codebook_version=1) == []
    assert counted("failed") == failed
    assert len(asking.of("v0", 3, codebook_version=1)) == 3


def test_after_a_failure_nothing_is_asked_until_the_time_is_over(server: QdrantServer) -> None:
    asking = neighbours(server.url)
    server.failing = True
    before = {outcome: counted(outcome) for outcome in ("failed", "not_asked")}
    for _ in range(5):
        assert asking.of("v0", 3, codebook_version=1) == []
    assert len(server.asked) == 1
    assert counted("failed") - before["failed"] == 1
    assert counted("not_asked") - before["not_asked"] == 4


def test_server_that_answers_again_is_asked_again(server: QdrantServer) -> None:
    asking = neighbours(server.url, retry_s=0.0)
    server.failing = True
    assert asking.of("v0", 3, codebook_version=1) == []
    server.failing = False
    for _ in range(2):
        assert len(asking.of("v0", 3, codebook_version=1)) == 3


def test_server_that_does_not_answer_in_time_costs_one_wait() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        asking = neighbours(f"http://127.0.0.1:{port}", timeout_s=0.05)
        not_asked = counted("not_asked")
        for _ in range(3):
            assert asking.of("v0", 3, codebook_version=1) == []
    assert counted("not_asked") - not_asked == 2


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "http://[bad", "nonsense"])
def test_address_where_nobody_answers_never_raises(url: str) -> None:
    assert neighbours(url).of("v0", 3, codebook_version=1) == []


def test_without_server_and_worker_there_are_none(tmp_path: Path) -> None:
    failed = counted("failed")
    asking = Neighbours(Settings(var_dir=tmp_path))
    assert asking.of("v0", 3, codebook_version=1) == []
    assert counted("failed") - failed == 1
