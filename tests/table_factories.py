"""Small offline tables, and folders with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from models.offline_table import OfflineTable, TableRow, build_table, table_files


def some_row(video_id: str, related: Sequence[str], *, fingerprint: int = 1) -> TableRow:
    """A row whose log_probs fall by a half from each video to the next."""
    return TableRow(video_id, fingerprint, 1, [(one, -0.5 * n) for n, one in enumerate(related, 1)])


def some_table(rows: Mapping[str, Sequence[str]], *, codebook_version: int = 1) -> OfflineTable:
    """The table with these related videos."""
    found = [some_row(video_id, related) for video_id, related in rows.items()]
    return build_table(found, codebook_version=codebook_version)


def save_table(table: OfflineTable, directory: Path) -> Path:
    """Write a table's files into a new folder."""
    directory.mkdir(parents=True)
    for name, data in table_files(table, {}).items():
        (directory / name).write_bytes(data)
    return directory
