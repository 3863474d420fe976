"""The manifest guards the encoders' files; none of them is opened here."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import pytest

from infra.errors import ConfigError, VersionMismatchError
from models.encoders import (
    MANIFEST_FILE,
    MODALITIES,
    EncoderManifest,
    EncoderSpec,
    Modality,
    load_manifest,
)


def write_encoders(
    directory: Path, modalities: tuple[Modality, ...] = MODALITIES
) -> EncoderManifest:
    """Write a manifest whose files hold their own names."""
    specs = []
    for modality in modalities:
        for name in (f"{modality}.onnx", f"{modality}.json"):
            (directory / name).write_text(name)
        specs.append(
            EncoderSpec(
                name=modality,
                modality=modality,
                file=f"{modality}.onnx",
                sha256=sha256(f"{modality}.onnx".encode()).hexdigest(),
                dimension=8,
                inputs={"x": "float32 [B, 8]"},
                preprocessing={"tokens_max": 128},
                assets={f"{modality}.json": sha256(f"{modality}.json".encode()).hexdigest()},
                source={"package": "1.0"},
            )
        )
    manifest = EncoderManifest(tuple(specs))
    (directory / MANIFEST_FILE).write_text(manifest.to_json())
    return manifest


def test_manifest_with_good_files_loads_as_written(tmp_path: Path) -> None:
    manifest = write_encoders(tmp_path)
    assert load_manifest(tmp_path) == manifest
    assert load_manifest(tmp_path).digest == manifest.digest


def test_manifest_that_is_missing_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="freshet bootstrap"):
        load_manifest(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"encoders": [{"name": "x"}]}'])
def test_manifest_that_is_not_one_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / MANIFEST_FILE).write_text(content)
    with pytest.raises(ConfigError, match="no encoder manifest"):
        load_manifest(tmp_path)


def test_manifest_without_a_modality_is_refused(tmp_path: Path) -> None:
    write_encoders(tmp_path, ("text", "frames"))
    with pytest.raises(ConfigError, match="audio"):
        load_manifest(tmp_path)


@pytest.mark.parametrize("name", ["text.onnx", "audio.json"])
def test_file_with_another_hash_is_refused(name: str, tmp_path: Path) -> None:
    write_encoders(tmp_path)
    (tmp_path / name).write_text("tampered")
    with pytest.raises(VersionMismatchError, match=f"{name} has sha256"):
        load_manifest(tmp_path)


def test_file_that_is_missing_is_refused(tmp_path: Path) -> None:
    write_encoders(tmp_path)
    (tmp_path / "frames.onnx").unlink()
    with pytest.raises(VersionMismatchError, match=r"frames\.onnx is missing"):
        load_manifest(tmp_path)
