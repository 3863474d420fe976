from __future__ import annotations

import hashlib
import os
import time
import uuid
from pathlib import Path

import pytest

from infra.errors import TransientError, VersionMismatchError
from infra.storage import COPY_KEPT_S, ObjectStore, sha256_of, write_atomically

WRONG = "0" * 64


@pytest.fixture(params=["local", "remote"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    """A store on disk, and one that is not."""
    if request.param == "local":
        return ObjectStore(str(tmp_path / "store"))
    return ObjectStore(f"memory://{uuid.uuid4().hex}")


def test_bytes_come_back_under_their_key(store: ObjectStore) -> None:
    digest = store.put_bytes("shards/a.parquet", b"rows")
    assert digest == hashlib.sha256(b"rows").hexdigest()
    assert store.get_bytes("shards/a.parquet", sha256=digest) == b"rows"
    assert store.exists("shards/a.parquet")


def test_second_put_replaces_the_first(store: ObjectStore) -> None:
    store.put_bytes("pointer", b"old and longer")
    store.put_bytes("pointer", b"new")
    assert store.get_bytes("pointer") == b"new"


def test_changed_bytes_are_refused(store: ObjectStore) -> None:
    store.put_bytes("model", b"weights")
    with pytest.raises(VersionMismatchError, match=f"announced was {WRONG}"):
        store.get_bytes("model", sha256=WRONG)


def test_missing_key_may_come_later(store: ObjectStore) -> None:
    with pytest.raises(TransientError, match="nothing/here"):
        store.get_bytes("nothing/here")


@pytest.mark.parametrize("key", ["/etc/passwd", "../outside", "shards/../../outside", ".."])
def test_key_that_leaves_the_store_is_refused(store: ObjectStore, key: str) -> None:
    for use in (store.get_bytes, store.exists, store.list, store.remove):
        with pytest.raises(ValueError, match="leaves the store"):
            use(key)
    with pytest.raises(ValueError, match="leaves the store"):
        store.put_bytes(key, b"")


@pytest.mark.parametrize("key", ["", ".", "./"])
def test_whole_store_cannot_be_removed(store: ObjectStore, key: str) -> None:
    store.put_bytes("a", b"1")
    with pytest.raises(ValueError, match="whole store"):
        store.remove(key)
    assert store.exists("a")


def test_list_is_sorted_and_stays_in_its_folder(store: ObjectStore) -> None:
    for key in ("shards/b", "shards/deep/c", "shards/a", "other/d"):
        store.put_bytes(key, b"1")
    assert store.list("shards") == ["shards/a", "shards/b", "shards/deep/c"]
    assert store.list("none") == []


def test_removed_file_and_folder_are_gone_and_removing_again_is_no_error(
    store: ObjectStore,
) -> None:
    for key in ("keep", "folder/a", "folder/b"):
        store.put_bytes(key, b"1")
    store.remove("folder/a")
    assert store.list("folder") == ["folder/b"]
    for _ in range(2):
        store.remove("folder")
        assert not store.exists("folder/b")
    assert store.exists("keep")


def test_directory_goes_out_and_comes_back_whole(store: ObjectStore, tmp_path: Path) -> None:
    source = tmp_path / "model"
    write_atomically(source / "config.json", b"{}")
    write_atomically(source / "nested" / "weights", b"\x00\x01")
    store.put_directory("models/1", source)
    local = store.local_directory("models/1", tmp_path / "cache")
    found = {
        path.relative_to(local): path.read_bytes() for path in local.rglob("*") if path.is_file()
    }
    assert found == {Path("config.json"): b"{}", Path("nested/weights"): b"\x00\x01"}


def test_local_folder_holds_what_is_stored_now_not_what_was(
    store: ObjectStore, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    store.put_bytes("models/1/weights", b"first")
    store.put_bytes("models/1/notes", b"gone later")
    store.local_directory("models/1", cache)
    store.put_bytes("models/1/weights", b"second")
    store.remove("models/1/notes")
    local = store.local_directory("models/1", cache)
    assert {path.name: path.read_bytes() for path in local.iterdir()} == {"weights": b"second"}


def test_copy_out_of_a_remote_store_outlives_a_second_one_until_it_is_old(tmp_path: Path) -> None:
    store, cache = ObjectStore(f"memory://{uuid.uuid4().hex}"), tmp_path / "cache"
    store.put_bytes("models/1/weights", b"first")
    first = store.local_directory("models/1", cache)
    second = store.local_directory("models/1", cache)
    assert (first / "weights").read_bytes() == b"first"
    long_ago = time.time() - COPY_KEPT_S - 1
    os.utime(first.parents[1], (long_ago, long_ago))
    store.local_directory("models/1", cache)
    assert not first.exists()
    assert (second / "weights").exists()


def test_write_that_fails_leaves_the_old_content_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def disk_full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("infra.storage.os.fsync", disk_full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_crash_left_half_written_is_not_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ObjectStore(str(tmp_path))
    store.put_bytes("shards/a", b"1")

    def crash(*_: object, **__: object) -> None:
        raise SystemExit

    with monkeypatch.context() as patched:  # neither the rename nor the tidying happens
        patched.setattr(Path, "replace", crash)
        patched.setattr(Path, "unlink", crash)
        with pytest.raises(SystemExit):
            store.put_bytes("shards/b", b"2")
    assert len(list((tmp_path / "shards").iterdir())) == 2
    assert store.list("shards") == ["shards/a"]


def test_sha256_of_a_file_is_that_of_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_of(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()


def test_root_names_the_same_store_from_another_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for given in ("store", "memory://bucket/prefix"):
        store = ObjectStore(given)
        store.put_bytes("a/b", b"here")
        (tmp_path / "elsewhere").mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / "elsewhere")
        assert ObjectStore(store.root).get_bytes("a/b") == b"here"
        monkeypatch.chdir(tmp_path)
