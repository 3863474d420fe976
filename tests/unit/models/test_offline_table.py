"""The offline table's file: what is written is read, and nothing that is not whole."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import load, save

from infra.errors import VersionMismatchError
from models.offline_table import DATA, SIDECAR, TableRow, build_table, load_table
from tests.table_factories import save_table, some_row, some_table

IDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6)
ENTRIES = st.lists(st.tuples(IDS, st.floats(-50, 0, width=32)), max_size=5)
ROWS = st.dictionaries(
    IDS, st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 10**6), ENTRIES), max_size=6
)
Arrays = dict[str, NDArray[np.generic]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    table = some_table({"a": ["b", "c"], "b": ["a"], "c": []})
    return save_table(table, tmp_path / "000001")


@settings(deadline=None)
@given(ROWS)
def test_table_that_is_saved_is_loaded_as_it_was(
    tmp_path_factory: pytest.TempPathFactory,
    found: dict[str, tuple[int, int, list[tuple[str, float]]]],
) -> None:
    rows = [TableRow(video_id, *rest) for video_id, rest in found.items()]
    table = build_table(rows, codebook_version=3)
    loaded = load_table(
        save_table(table, tmp_path_factory.mktemp("table") / "t"), codebook_version=3
    )
    assert len(loaded) == len(rows)
    assert [row._replace(related=list(row.related)) for row in loaded.rows()] == rows
    for row in rows:
        assert row.video_id in loaded
        assert loaded.lookup(row.video_id) == tuple(row.related)
        assert loaded.num_related(row.video_id) == len(row.related)


def test_video_without_a_row_is_not_found_though_others_name_it(folder: Path) -> None:
    table = some_table({"a": ["b"]})
    assert (table.lookup("b"), table.row("b"), table.num_related("b")) == (None, None, 0)
    assert "b" not in table
    assert load_table(folder).lookup("c") == ()


def test_two_rows_of_one_video_are_refused() -> None:
    with pytest.raises(ValueError, match="2 rows are of 1 videos"):
        build_table([some_row("a", ["b"]), some_row("a", ["c"])], codebook_version=1)


def test_announced_hash_and_codebook_must_be_those_of_the_files(folder: Path) -> None:
    announced = hashlib.sha256((folder / DATA).read_bytes()).hexdigest()
    assert len(load_table(folder, sha256=announced, codebook_version=1)) == 3
    with pytest.raises(VersionMismatchError, match="announced was 0000"):
        load_table(folder, sha256="0000")
    with pytest.raises(VersionMismatchError, match="is of codebook 1, live is 2"):
        load_table(folder, codebook_version=2)


@pytest.mark.parametrize("name", [DATA, SIDECAR])
def test_missing_file_is_refused(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(VersionMismatchError, match="is incomplete"):
        load_table(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"sha256": "0"}'])
def test_sidecar_that_is_none_is_refused(folder: Path, text: str) -> None:
    (folder / SIDECAR).write_text(text)
    with pytest.raises(VersionMismatchError, match="is incomplete"):
        load_table(folder)


@pytest.mark.parametrize("harm", [lambda data: data[:-1], lambda data: data[:-1] + b"x"])
def test_truncated_or_altered_rows_are_refused(
    folder: Path, harm: Callable[[bytes], bytes]
) -> None:
    (folder / DATA).write_bytes(harm((folder / DATA).read_bytes()))
    with pytest.raises(VersionMismatchError, match=f"{SIDECAR} names"):
        load_table(folder)


def rewrite(folder: Path, change: Callable[[Arrays], None] | None) -> None:
    """Change the arrays, or put none in their place, and name the new hash, as a faulty writer would."""
    data = b"not a table"
    if change is not None:
        arrays: Arrays = {
            name: array.copy() for name, array in load((folder / DATA).read_bytes()).items()
        }
        change(arrays)
        data = save(arrays)
    (folder / DATA).write_bytes(data)
    sidecar = json.loads((folder / SIDECAR).read_text())
    sidecar["sha256"] = hashlib.sha256(data).hexdigest()
    (folder / SIDECAR).write_text(json.dumps(sidecar))


def put(name: str, place: int, value: float) -> Callable[[Arrays], None]:
    def change(arrays: Arrays) -> None:
        arrays[name][place] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        None,
        put("log_probs_E", 0, float("nan")),
        put("log_probs_E", 1, float("-inf")),
        put("related_E", 0, 3),
        put("related_E", 0, -1),
        put("row_ends_N", 0, 4),
        put("row_ends_N", 2, 2),
        put("id_ends_V", 0, 9),
        put("id_bytes", 1, ord("a")),
        put("id_bytes", 1, 0xFF),
        lambda arrays: arrays.pop("fingerprints_N"),
        lambda arrays: arrays.update(lrm_versions_N=arrays["lrm_versions_N"][:2]),
        lambda arrays: arrays.update(log_probs_E=arrays["log_probs_E"][:2]),
    ],
)
def test_rows_that_do_not_hold_together_are_refused(
    folder: Path, change: Callable[[Arrays], None] | None
) -> None:
    rewrite(folder, lambda arrays: None)
    assert len(load_table(folder)) == 3
    rewrite(folder, change)
    with pytest.raises(VersionMismatchError, match="cannot be read"):
        load_table(folder)
