"""The offline table: what to watch after each head video, computed ahead; knows nothing of how it is built or served.

A saved table is a folder of two files: table.safetensors holds the rows, table.json what they are of. table.json names
the hash of the other file and is written last, so that a folder without it is no table.

Legend: N rows, one for each head video; E entries, the related videos of all rows one after the other; V video ids.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from infra.errors import VersionMismatchError

DATA = "table.safetensors"
SIDECAR = "table.json"


class TableRow(NamedTuple):
    """What to watch after one video.

    Attributes:
        fingerprint: of the prompt and the search that `related` came from; the same fingerprint, the same question.
        lrm_version: model_version of the LRM that answered.
        related: (video_id, log_prob), best first.
    """

    video_id: str
    fingerprint: int
    lrm_version: int
    related: Sequence[tuple[str, float]]


@dataclass(frozen=True, eq=False)
class _Columns:
    """The rows as arrays; `video_ids` begins with those of the rows, in their order."""

    video_ids: tuple[str, ...]
    row_ends_N: NDArray[np.int64]
    related_E: NDArray[np.int32]
    log_probs_E: NDArray[np.float32]
    fingerprints_N: NDArray[np.uint64]
    lrm_versions_N: NDArray[np.int64]


class OfflineTable:
    """Related videos by video, immutable: 8 bytes for each of a row's entries, and each id once."""

    def __init__(self, columns: _Columns, *, codebook_version: int) -> None:
        self.codebook_version = codebook_version
        self._columns = columns
        # Plain integers come out of a memoryview several times as fast as out of an array.
        self._ends = columns.row_ends_N.data
        self._related_numbers = columns.related_E.data
        self._log_probs = columns.log_probs_E.data
        self._row_of = {
            video_id: row
            for row, video_id in enumerate(columns.video_ids[: len(columns.row_ends_N)])
        }

    def __len__(self) -> int:
        return len(self._row_of)

    def __contains__(self, video_id: object) -> bool:
        return video_id in self._row_of

    def lookup(self, video_id: str) -> tuple[tuple[str, float], ...] | None:
        """Return (video_id, log_prob) of what to watch after a video, best first; None for one that has no row."""
        row = self._row_of.get(video_id)
        return None if row is None else tuple(self._entries(row))

    def entries(self, video_id: str) -> Iterator[tuple[str, float]]:
        """Yield what `lookup` returns, for whoever needs only the first of it; nothing for one that has no row."""
        row = self._row_of.get(video_id)
        return iter(()) if row is None else self._entries(row)

    def num_related(self, video_id: str) -> int:
        """Return how many videos `lookup` finds; 0 for a video that has no row."""
        row = self._row_of.get(video_id)
        if row is None:
            return 0
        return self._ends[row] - self._start(row)

    def row(self, video_id: str) -> TableRow | None:
        """Return all that is kept of a video's row."""
        row = self._row_of.get(video_id)
        if row is None:
            return None
        columns = self._columns
        return TableRow(
            video_id,
            int(columns.fingerprints_N[row]),
            int(columns.lrm_versions_N[row]),
            tuple(self._entries(row)),
        )

    def rows(self) -> Iterator[TableRow]:
        """Yield every row."""
        for video_id in self._row_of:
            found = self.row(video_id)
            assert found is not None
            yield found

    def _start(self, row: int) -> int:
        return self._ends[row - 1] if row else 0

    def _entries(self, row: int) -> Iterator[tuple[str, float]]:
        start, end, ids = self._start(row), self._ends[row], self._columns.video_ids
        found = map(ids.__getitem__, self._related_numbers[start:end].tolist())
        return zip(found, self._log_probs[start:end].tolist(), strict=True)


def build_table(rows: Sequence[TableRow], *, codebook_version: int) -> OfflineTable:
    """Return the table of some rows.

    Raises:
        ValueError: two rows are of one video.
    """
    number_of = {row.video_id: number for number, row in enumerate(rows)}
    if len(number_of) != len(rows):
        raise ValueError(f"{len(rows)} rows are of {len(number_of)} videos; each has one row")
    entries = [entry for row in rows for entry in row.related]
    for video_id, _ in entries:
        number_of.setdefault(video_id, len(number_of))
    return OfflineTable(
        _Columns(
            tuple(number_of),
            np.cumsum([len(row.related) for row in rows], dtype=np.int64),
            np.array([number_of[video_id] for video_id, _ in entries], dtype=np.int32),
            np.array([log_prob for _, log_prob in entries], dtype=np.float32),
            np.array([row.fingerprint for row in rows], dtype=np.uint64),
            np.array([row.lrm_version for row in rows], dtype=np.int64),
        ),
        codebook_version=codebook_version,
    )


def table_files(table: OfflineTable, notes: dict[str, Any]) -> dict[str, bytes]:
    """Return the files of a saved table by name, in the order in which they are to be written.

    `notes` are for people and programs that look into the folder; loading passes them over.
    """
    columns = table._columns  # noqa: SLF001 - of this module
    encoded = [video_id.encode() for video_id in columns.video_ids]
    data = save(
        {
            "id_bytes": np.frombuffer(b"".join(encoded), dtype=np.uint8),
            "id_ends_V": np.cumsum([len(one) for one in encoded], dtype=np.int64),
            "row_ends_N": columns.row_ends_N,
            "related_E": columns.related_E,
            "log_probs_E": columns.log_probs_E,
            "fingerprints_N": columns.fingerprints_N,
            "lrm_versions_N": columns.lrm_versions_N,
        }
    )
    sidecar = {
        "sha256": hashlib.sha256(data).hexdigest(),
        "codebook_version": table.codebook_version,
        "rows": len(table),
        "notes": notes,
    }
    return {DATA: data, SIDECAR: json.dumps(sidecar, indent=1, sort_keys=True).encode()}


def load_table(
    directory: Path, *, sha256: str | None = None, codebook_version: int | None = None
) -> OfflineTable:
    """Load what `table_files` gave, its hash checked before anything is read.

    Args:
        directory: of a table.
        sha256: as it was announced.
        codebook_version: that its videos must be of.

    Raises:
        VersionMismatchError: the folder is incomplete, a hash differs, the rows do not hold together or are not finite,
            or they are of another codebook.
    """
    name = directory.name
    try:
        data = (directory / DATA).read_bytes()
        sidecar = json.loads((directory / SIDECAR).read_bytes())
        named, of_codebook = sidecar["sha256"], sidecar["codebook_version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise VersionMismatchError(f"table {name} is incomplete: {error}") from error
    found = hashlib.sha256(data).hexdigest()
    for who, expected in (("announced was", sha256), (f"{SIDECAR} names", named)):
        if expected is not None and found != expected:
            raise VersionMismatchError(f"table {name} has sha256 {found}, {who} {expected}")
    if codebook_version is not None and of_codebook != codebook_version:
        raise VersionMismatchError(
            f"table {name} is of codebook {of_codebook}, live is {codebook_version}"
        )
    try:
        columns = _columns(load(data))
    except (SafetensorError, KeyError, ValueError) as error:
        raise VersionMismatchError(f"table {name} cannot be read: {error}") from error
    return OfflineTable(columns, codebook_version=of_codebook)


def _columns(found: dict[str, NDArray[Any]]) -> _Columns:
    """Return the arrays of a file, checked.

    Raises:
        KeyError: one is missing.
        ValueError: they do not hold together.
    """
    id_ends_V, row_ends_N = found["id_ends_V"], found["row_ends_N"]
    related_E, log_probs_E = found["related_E"], found["log_probs_E"]
    text = found["id_bytes"].tobytes()
    _check_ends("ids", id_ends_V, len(text))
    _check_ends("rows", row_ends_N, len(related_E))
    ends = id_ends_V.tolist()
    ids = tuple(text[start:end].decode() for start, end in zip([0, *ends][:-1], ends, strict=True))
    per_row = {len(row_ends_N), len(found["fingerprints_N"]), len(found["lrm_versions_N"])}
    if len(per_row) > 1 or len(related_E) != len(log_probs_E):
        raise ValueError("its arrays differ in length")
    if len(set(ids)) != len(ids) or len(ids) < len(row_ends_N):
        raise ValueError(
            f"{len(ids)} ids for {len(row_ends_N)} rows: one is missing, or twice there"
        )
    if len(related_E) and not 0 <= related_E.min() <= related_E.max() < len(ids):
        raise ValueError("a related video has no id")
    if not np.isfinite(log_probs_E).all():
        raise ValueError("a log_prob is not finite")
    return _Columns(
        ids,
        row_ends_N,
        related_E,
        log_probs_E,
        found["fingerprints_N"],
        found["lrm_versions_N"],
    )


def _check_ends(what: str, ends: NDArray[np.int64], total: int) -> None:
    last = int(ends[-1]) if len(ends) else 0
    if (np.diff(ends, prepend=0) < 0).any() or last != total:
        raise ValueError(f"its {what} end at {last}, and there is {total} to divide")
