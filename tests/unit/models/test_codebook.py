from __future__ import annotations

from pathlib import Path

import pytest

from infra.errors import ConfigError, VersionMismatchError
from infra.storage import ObjectStore
from models.codebook import (
    CURRENT_KEY,
    CodebookManifest,
    codebook_key,
    current_codebook,
    current_manifest,
    next_version,
    publish_codebook,
)

FILES = {"quantizer.onnx": b"graph", "quantizer.safetensors": b"weights"}


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return ObjectStore(str(tmp_path / "store"))


def manifest(codebook_version: int) -> CodebookManifest:
    return CodebookManifest(
        codebook_version=codebook_version,
        codebook_sizes=(4, 2),
        disambiguation_size=8,
        embedding_dim=3,
        encoders_sha256="e" * 64,
        quantizer={"whitening": 0.5},
        card={"uniqueness": 0.97},
        files={},
    )


def test_published_codebook_is_the_current_one_with_its_files(
    store: ObjectStore, tmp_path: Path
) -> None:
    published = publish_codebook(store, manifest(1), FILES)
    found, directory = current_codebook(store, tmp_path)
    assert found == published
    assert found.space.level_sizes == (4, 2, 8)
    assert {name: (directory / name).read_bytes() for name in FILES} == FILES


def test_codebook_whose_file_changed_is_refused(store: ObjectStore, tmp_path: Path) -> None:
    publish_codebook(store, manifest(1), FILES)
    store.put_bytes(f"{codebook_key(1)}/quantizer.onnx", b"another graph")
    with pytest.raises(VersionMismatchError, match=r"quantizer\.onnx has sha256"):
        current_codebook(store, tmp_path)


def test_codebook_whose_manifest_changed_is_refused(store: ObjectStore) -> None:
    publish_codebook(store, manifest(1), FILES)
    store.put_bytes(f"{codebook_key(1)}/codebook.json", manifest(1).to_json())
    with pytest.raises(VersionMismatchError, match=r"codebook\.json has sha256"):
        current_manifest(store)


def test_store_without_a_codebook_names_the_command_that_makes_one(store: ObjectStore) -> None:
    with pytest.raises(ConfigError, match="freshet bootstrap"):
        current_manifest(store)


def test_codebook_left_incomplete_by_a_crash_is_neither_current_nor_overwritten(
    store: ObjectStore,
) -> None:
    publish_codebook(store, manifest(1), FILES)
    store.put_bytes(f"{codebook_key(2)}/quantizer.onnx", b"half of it")
    assert current_manifest(store).codebook_version == 1
    assert next_version(store) == 3


def test_first_codebook_has_version_one(store: ObjectStore) -> None:
    assert next_version(store) == 1


def test_pointer_is_written_after_everything_it_points_to(store: ObjectStore) -> None:
    written: list[str] = []

    class RecordingStore(ObjectStore):
        def put_bytes(self, key: str, data: bytes) -> str:
            written.append(key)
            return super().put_bytes(key, data)

    publish_codebook(RecordingStore(store._root), manifest(7), FILES)
    assert written[-2:] == ["codebooks/7/codebook.json", CURRENT_KEY]
