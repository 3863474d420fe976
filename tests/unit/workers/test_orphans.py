from __future__ import annotations

from pathlib import Path

import pytest

from infra.settings import KafkaSettings
from infra.storage import ObjectStore
from streams.events import ShardSealed, to_json
from streams.topics import SHARDS
from tests.kept_topics import keep
from workers.orphans import collect_orphans

ANNOUNCED = ShardSealed(
    shard_id="a", path="shards/announced", sha256="s", ranges=(), rows=0, watches=0, duplicates=0,
    dead_letters=0, first_event_time_ms=0, last_event_time_ms=0, first_append_time_ms=0,
    last_append_time_ms=0, sealed_time_ms=0,
)  # fmt: skip


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
