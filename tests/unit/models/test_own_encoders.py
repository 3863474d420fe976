"""A user's folder on its way to where encoders are published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import freshet
from infra.errors import ConfigError, VersionMismatchError
from infra.storage import ObjectStore
from models.encoder_export import build_encoders
from models.encoder_manifest import MANIFEST_FILE
from models.encoders import Content, Encoders
from models.own_encoders import load_own, write_hashes
from tests.encoder_factories import text_graph, write_own
from workers.catalogue_encoding import publish_encoders

WEIGHTS = "words.weights"


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Three tiny encoders, their hashes filled in."""
    folder = write_own(tmp_path / "own")
    write_hashes(folder)
    return folder


def document(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / MANIFEST_FILE).read_text())
    return found


def with_weights_outside(folder: Path, graph: onnx.ModelProto | None = None) -> None:
    (folder / WEIGHTS).unlink(missing_ok=True)
    onnx.save(
        graph or text_graph(),
        folder / "text.onnx",
        save_as_external_data=True,
        location=WEIGHTS,
        size_threshold=0,
    )


def rewrite(file: Path) -> None:
    """Change a graph's bytes and nothing that it computes."""
    graph = onnx.load(file)
    graph.doc_string = "another"
    onnx.save(graph, file)


def files_of(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_hashes_are_filled_in_once(tmp_path: Path) -> None:
    folder = write_own(tmp_path, modalities=("text", "audio"))
    with pytest.raises(ConfigError, match=r"check .* --write"):
        load_own(folder)
    assert set(write_hashes(folder)) == {"text.onnx", "words.json", "audio.onnx"}
    assert [spec.name for spec in load_own(folder)] == ["words", "bands"]
    before = (folder / MANIFEST_FILE).read_text()
    assert list(write_hashes(folder)) == []
    assert (folder / MANIFEST_FILE).read_text() == before


def test_hash_that_is_wrong_is_never_written_over(own: Path) -> None:
    rewrite(own / "frames.onnx")
    assert list(write_hashes(own)) == []
    with pytest.raises(VersionMismatchError, match=r"frames\.onnx has sha256"):
        load_own(own)


def test_folder_without_a_manifest_is_refused(tmp_path: Path) -> None:
    for step in (load_own, write_hashes):
        with pytest.raises(ConfigError, match=f"has no {MANIFEST_FILE}"):
            step(tmp_path)


def test_folder_that_declares_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / MANIFEST_FILE).write_text('{"format": 2, "encoders": []}')
    with pytest.raises(ConfigError, match="declares no encoder"):
        load_own(tmp_path)


def test_file_that_is_no_graph_is_refused(own: Path) -> None:
    content = document(own)
    content["encoders"][1]["sha256"] = ""
    (own / MANIFEST_FILE).write_text(json.dumps(content))
    (own / "frames.onnx").write_bytes(b"PK\3\4 an archive, say")
    with pytest.raises(ConfigError, match=r"frames\.onnx is no ONNX graph"):
        write_hashes(own)


def test_weights_outside_the_graph_must_be_listed(own: Path, tmp_path: Path) -> None:
    content = document(own)
    with_weights_outside(own)
    content["encoders"][0]["sha256"] = ""
    (own / MANIFEST_FILE).write_text(json.dumps(content))
    assert set(write_hashes(own)) == {"text.onnx", WEIGHTS}
    built = build_encoders(tmp_path / "built", own=own)
    (vector,) = Encoders(tmp_path / "built").encode([Content("red")]).text_BD
    np.testing.assert_allclose(vector, np.array([2, 0, 1]) / np.sqrt(5), atol=1e-6)
    assert any(name.endswith(WEIGHTS) for name in built.text.assets)

    content = document(own)
    del content["encoders"][0]["assets"][WEIGHTS]
    (own / MANIFEST_FILE).write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=f"keeps weights in {WEIGHTS}"):
        load_own(own)


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd"])
def test_weights_outside_the_folder_are_refused(location: str, tmp_path: Path) -> None:
    folder = write_own(tmp_path / "own", modalities=("text",))
    graph = text_graph()
    (words, *_) = graph.graph.initializer
    onnx.external_data_helper.set_external_data(words, location)
    words.ClearField("raw_data")
    (folder / "text.onnx").write_bytes(graph.SerializeToString())
    with pytest.raises(ConfigError, match="below its folder"):
        write_hashes(folder)


def test_weights_in_a_branch_are_found_too(tmp_path: Path) -> None:
    folder = write_own(tmp_path, modalities=("text",))
    (folder / "branch.weights").write_bytes(b"\0" * 4)
    tensor = numpy_helper.from_array(np.zeros(1, np.float32), "zero")
    onnx.external_data_helper.set_external_data(tensor, "branch.weights")
    branch = helper.make_graph(
        [helper.make_node("Constant", [], ["zero"], value=tensor)], "branch", [], []
    )
    graph = text_graph()
    graph.graph.node.append(
        helper.make_node("If", ["condition"], [], then_branch=branch, else_branch=branch)
    )
    (folder / "text.onnx").write_bytes(graph.SerializeToString())
    assert "branch.weights" in write_hashes(folder)


def test_built_folder_holds_what_was_brought_and_is_built_once(own: Path, tmp_path: Path) -> None:
    manifest = build_encoders(tmp_path / "built", own=own)
    assert [spec.name for spec in manifest.encoders] == ["words", "colours", "bands"]
    encoders = Encoders(tmp_path / "built")
    assert encoders.manifest.digest == manifest.digest
    assert encoders.dimensions == {"text": 3, "frames": 3, "audio": 64}
    assert encoders.frame_size == 8

    before = files_of(tmp_path / "built")
    assert build_encoders(tmp_path / "built", own=own) == manifest
    assert files_of(tmp_path / "built") == before


def test_changed_encoder_takes_a_place_of_its_own(own: Path, tmp_path: Path) -> None:
    before = build_encoders(tmp_path / "built", own=own)
    content = document(own)
    rewrite(own / "text.onnx")
    content["encoders"][0]["sha256"] = ""
    (own / MANIFEST_FILE).write_text(json.dumps(content))
    write_hashes(own)
    after = build_encoders(tmp_path / "built", own=own)
    assert after.digest != before.digest
    assert (tmp_path / "built" / before.text.file).is_file()  # who reads the old manifest finds it


def test_graph_that_is_not_as_declared_leaves_the_published_ones(own: Path, tmp_path: Path) -> None:
    before = build_encoders(tmp_path / "built", own=own)
    content = document(own)
    content["encoders"][2]["dimension"] = 128
    (own / MANIFEST_FILE).write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="declares dimension 128"):
        build_encoders(tmp_path / "built", own=own)
    assert Encoders(tmp_path / "built").manifest == before


def test_remote_store_gets_every_file_that_the_manifest_names(own: Path, tmp_path: Path) -> None:
    store = ObjectStore("memory://own-encoders")
    publish_encoders(store, tmp_path / "cache", own=own)
    found = Encoders(store.local_directory("encoders", tmp_path / "elsewhere"))
    assert [spec.name for spec in found.manifest.encoders] == ["words", "colours", "bands"]


def test_check_command_writes_hashes_and_says_what_it_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_own(tmp_path, modalities=("frames",))
    with pytest.raises(SystemExit) as ended:
        freshet.main(["encoders", "check", str(folder)])
    assert ended.value.code == 2
    assert "--write" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        freshet.main(["encoders", "check", str(folder), "--write"])
    assert ended.value.code == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "sha256 of frames.onnx written"
    assert out[1].startswith("ok  frames: colours, 3 dimensions, sha256 ")
