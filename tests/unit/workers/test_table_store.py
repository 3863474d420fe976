"""Tables in the store: which of them are gone on from, and which are collected."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.storage import ObjectStore
from models.offline_table import DATA, SIDECAR, table_files
from streams.events import TABLE_MODEL_NAME, CheckpointPromoted
from tests.table_factories import some_table
from workers.table_store import collect_tables, load_announced, table_key


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return ObjectStore(str(tmp_path / "store"))


def put(store: ObjectStore, version: int, *names: str) -> CheckpointPromoted:
    """Write some files of a table, all by default, and return its announcement."""
    files = table_files(some_table({"a": ["b"]}), {})
    hashes = {
        name: store.put_bytes(f"{table_key(version)}/{name}", files[name])
        for name in names or files
    }
    return CheckpointPromoted(
        model_name=TABLE_MODEL_NAME, model_version=version, codebook_version=1,
        path=table_key(version), sha256=hashes.get(DATA, ""), metrics={}, promoted_time_ms=0,
    )  # fmt: skip


def left(store: ObjectStore) -> set[int]:
    return {int(key.split("/")[2]) for key in store.unchanged_for("checkpoints/table", 0)}


def test_last_two_and_the_announced_stay_and_what_a_kill_left_goes(store: ObjectStore) -> None:
    announced = put(store, 1)
    for version in (2, 3, 4):
        put(store, version)
    put(store, 5, DATA)
    put(store, 6, SIDECAR)  # somebody took its rows away
    (Path(store.root) / table_key(7)).mkdir()
    (Path(store.root) / table_key(7) / ".table.json.0.tmp").write_text("{")
    assert collect_tables(store, announced) == [table_key(version) for version in (2, 5, 6, 7)]
    assert left(store) == {1, 3, 4}
    assert collect_tables(store, None) == [table_key(1)]


def test_nothing_is_collected_where_nothing_is(store: ObjectStore) -> None:
    assert collect_tables(store, None) == []


def test_announced_table_is_gone_on_from_when_it_is_whole_and_of_the_codebook(
    store: ObjectStore, tmp_path: Path
) -> None:
    announced = put(store, 1)

    def loaded(pointer: CheckpointPromoted | None, codebook_version: int = 1) -> bool:
        found = load_announced(
            store, pointer, codebook_version=codebook_version, cache=tmp_path / "cache"
        )
        return found is not None

    assert loaded(announced)
    assert not loaded(None)
    assert not loaded(announced, codebook_version=2)
    assert not loaded(announced.model_copy(update={"sha256": "0"}))
    assert not loaded(announced.model_copy(update={"path": table_key(9)}))
