"""The manifest says what is declared and guards its files; no graph is opened here."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from infra.errors import ConfigError, VersionMismatchError
from models.encoder_manifest import (
    MANIFEST_FILE,
    MODALITIES,
    EncoderManifest,
    check_files,
    complete,
    inside,
    load_manifest,
    read_specs,
)
from tests.encoder_factories import entries, write_manifest


def write_encoders(directory: Path) -> EncoderManifest:
    """Write a manifest whose files hold their own names."""
    found = entries()
    for entry in found.values():
        for name in (entry["file"], "words.json"):
            (directory / name).write_text(name)
        entry["sha256"] = sha256(entry["file"].encode()).hexdigest()
    found["text"]["assets"] = {"words.json": sha256(b"words.json").hexdigest()}
    write_manifest(directory, list(found.values()))
    manifest = complete(read_specs(directory))
    (directory / MANIFEST_FILE).write_text(manifest.to_json())
    return manifest


def refusal(directory: Path, change: dict[str, Any], modality: str = "frames") -> str:
    write_manifest(directory, [entries()[modality] | change])
    with pytest.raises(ConfigError) as refused:
        read_specs(directory)
    return str(refused.value)


def test_manifest_with_good_files_loads_as_written(tmp_path: Path) -> None:
    manifest = write_encoders(tmp_path)
    assert load_manifest(tmp_path) == manifest
    assert load_manifest(tmp_path).digest == manifest.digest
    assert [manifest.spec(modality).modality for modality in MODALITIES] == list(MODALITIES)


def test_manifest_with_other_preprocessing_has_another_digest(tmp_path: Path) -> None:
    before = write_encoders(tmp_path)
    document = json.loads(before.to_json())
    document["encoders"][2]["preprocessing"]["log_offset"] = 0.02
    (tmp_path / MANIFEST_FILE).write_text(json.dumps(document))
    assert load_manifest(tmp_path).digest != before.digest


def test_manifest_in_another_order_has_the_same_digest(tmp_path: Path) -> None:
    before = write_encoders(tmp_path)
    document = json.loads(before.to_json())
    document["encoders"].reverse()
    (tmp_path / MANIFEST_FILE).write_text(json.dumps(document))
    assert load_manifest(tmp_path).digest == before.digest


def test_manifest_that_is_missing_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="freshet bootstrap"):
        load_manifest(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"encoders": [{"name": "x"}]}', b"\xff", b'{"format": 1}']
)
def test_manifest_that_is_not_one_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / MANIFEST_FILE).write_bytes(content)
    with pytest.raises(ConfigError, match="no encoder manifest"):
        load_manifest(tmp_path)


def test_manifest_without_a_modality_is_refused(tmp_path: Path) -> None:
    document = json.loads(write_encoders(tmp_path).to_json())
    document["encoders"].pop()
    (tmp_path / MANIFEST_FILE).write_text(json.dumps(document))
    with pytest.raises(ConfigError, match="audio"):
        load_manifest(tmp_path)


def test_manifest_with_two_encoders_of_a_modality_is_refused(tmp_path: Path) -> None:
    write_manifest(tmp_path, [entries()["text"], entries()["text"]])
    with pytest.raises(ConfigError, match="several encoders for text"):
        read_specs(tmp_path)


def test_unknown_key_is_refused_with_those_that_are_known(tmp_path: Path) -> None:
    misspelt = entries()["frames"]["preprocessing"] | {"sise": 1}
    del misspelt["size"]
    message = refusal(tmp_path, {"preprocessing": misspelt})
    assert str(tmp_path / MANIFEST_FILE) in message
    assert "encoder colours: preprocessing.sise: unknown, expected one of size, layout, " in message


def test_unknown_key_of_an_encoder_is_refused_with_those_that_are_known(tmp_path: Path) -> None:
    assert "encoder colours: sha: unknown, expected one of name, file, " in refusal(
        tmp_path, {"sha": "1"}
    )


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("size", "240", "preprocessing.size: Input should be a valid integer, got '240'"),
        ("size", 4, "greater than or equal to 8, got 4"),
        ("layout", "CHW", "preprocessing.layout: Input should be 'NHWC' or 'NCHW', got 'CHW'"),
        ("mean", [1, 2], "preprocessing.mean.2: Field required"),
        ("std", [1, 0, 1], "divides by zero"),
        ("dtype", "uint8", "scale, mean and std are for dtype float32"),
    ],
)
def test_value_that_is_not_valid_is_refused_by_name(
    key: str, value: object, expected: str, tmp_path: Path
) -> None:
    changed = entries()["frames"]["preprocessing"] | {key: value}
    assert expected in refusal(tmp_path, {"preprocessing": changed})


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("fft_size", 256, "fft_size 256 is below window_samples 400"),
        ("mel_hz", [125, 9000], "not a range within 0 to 8000"),
        ("patch_shape", [96, 32], "patch_windows x mel_bands"),
        ("sample_rate", 44_100, "Input should be 16000"),
    ],
)
def test_log_mel_that_does_not_fit_itself_is_refused(
    key: str, value: object, expected: str, tmp_path: Path
) -> None:
    assert expected in refusal(tmp_path, {"preprocessing": {key: value}}, "audio")


@pytest.mark.parametrize("change", [{"modality": "video"}, {"modality": 3}])
def test_modality_that_does_not_exist_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    assert "encoder colours: modality: " in refusal(tmp_path, change)


@pytest.mark.parametrize("name", ["text.onnx", "words.json"])
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


def test_file_without_a_hash_is_refused_with_the_way_out(tmp_path: Path) -> None:
    write_encoders(tmp_path)
    write_manifest(tmp_path, list(entries().values()))
    with pytest.raises(ConfigError, match=r"announces no sha256 for words\.json: do this"):
        check_files(tmp_path, read_specs(tmp_path)[0], way_out="do this")


@pytest.mark.parametrize("name", ["", ".", "/etc/hosts", "../x", "a/../../x", "a\\b", "nul\0"])
def test_name_that_leaves_the_folder_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="below its folder"):
        inside(tmp_path, name)


def test_link_that_leaves_the_folder_is_refused(tmp_path: Path) -> None:
    outside = tmp_path / "outside.onnx"
    outside.touch()
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "graph.onnx").symlink_to(outside)
    with pytest.raises(ConfigError, match="is a link"):
        inside(folder, "graph.onnx")


def test_folder_that_is_a_link_itself_is_fine(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    assert inside(tmp_path / "link", "a/graph.onnx") == tmp_path / "link" / "a" / "graph.onnx"
