from __future__ import annotations

from pathlib import Path

import pytest

from infra.settings import KafkaSettings
from infra.storage import ObjectStore
from streams.events import to_json
from streams.topics import SHARDS
from tests.kept_topics import keep
from tests.sealed_shards import sealed_shard
from workers.orphans import collect_orphans

ANNOUNCED = sealed_shard("a", path="shards/announced", sha256="s")


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    store = ObjectStore(str(tmp_path))
    for key in ("shards/announced", "shards/orphan"):
        store.put_bytes(key, b"rows")
    return store


def collected(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch, values: list[bytes | None]
) -> list[str]:
    keep(monkeypatch, "workers.orphans", (SHARDS, values))
    return collect_orphans(KafkaSettings(), store, grace_s=0)


def test_what_nobody_announced_is_removed_also_beside_a_tombstone(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert collected(store, monkeypatch, [None, to_json(ANNOUNCED)]) == ["shards/orphan"]
    assert store.list("shards") == ["shards/announced"]


def test_nothing_is_removed_while_an_announcement_cannot_be_read(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert collected(store, monkeypatch, [b'{"schema_version": 2}', to_json(ANNOUNCED)]) == []
    assert store.list("shards") == ["shards/announced", "shards/orphan"]
