"""Files of videos and of watches, CSV, JSONL or Parquet, as events; knows nothing of Kafka.

A file is read twice: once to check every row before anything is sent, and once to send. Neither holds it in memory,
unless its rows are not in the order of their event times: then one line of JSON per row is kept, to sort them.
"""

from __future__ import annotations

import csv
import heapq
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow
import pyarrow.parquet

from infra.errors import ConfigError
from streams.columns import BadCellError, Columns, Row, Source, bind, parse_mapping
from streams.events import VideoUploaded, WatchEvent, to_json
from streams.timeline import TimelineEvent, on_timeline

MAX_CELL_CHARS = 1_000_000
SHOWN_BAD_ROWS = 10
_PARQUET_BATCH_ROWS = 1000

Model = type[VideoUploaded] | type[WatchEvent]
Rows = Iterator[tuple[int, Row | BadCellError]]


class BadRow(NamedTuple):
    """A row that is no event."""

    number: int
    error: BadCellError
    row: Row


class GoodRow(NamedTuple):
    """A row that is one."""

    number: int
    event: VideoUploaded | WatchEvent


@dataclass(frozen=True)
class Checked:
    """What reading a whole table said.

    Attributes:
        num_rows: rows that are events.
        num_bad: rows that are none.
        bad: the first of those.
        in_order: whether no event is earlier than the one before it.
    """

    num_rows: int
    num_bad: int
    bad: tuple[BadRow, ...]
    in_order: bool


@dataclass(frozen=True)
class Table:
    """A file of videos or of watches; open it with `open_table`."""

    path: Path
    columns: Columns
    read: Callable[[Path], Rows] = field(repr=False)
    place: str
    """What a row's number counts: `line` of a text, `row` of a Parquet file."""

    def rows(self) -> Iterator[GoodRow | BadRow]:
        """Yield every row with its number, in the file's order."""
        for number, row in self.read(self.path):
            if isinstance(row, BadCellError):
                yield BadRow(number, row, {})
                continue
            try:
                yield GoodRow(number, self.columns.event(row))
            except BadCellError as error:
                yield BadRow(number, error, row)

    def check(
        self,
        *,
        on_bad: Callable[[BadRow], None] | None = None,
        on_row: Callable[[int], None] | None = None,
    ) -> Checked:
        """Read every row and return what they are; `on_row` is told how many were read."""
        bad: list[BadRow] = []
        num_rows = num_bad = newest_ms = 0
        in_order = True
        for each in self.rows():
            if isinstance(each, BadRow):
                num_bad += 1
                if len(bad) < SHOWN_BAD_ROWS:
                    bad.append(each)
                if on_bad is not None:
                    on_bad(each)
            else:
                num_rows += 1
                in_order = in_order and newest_ms <= each.event.event_time_ms
                newest_ms = max(newest_ms, each.event.event_time_ms)
            if on_row is not None:
                on_row(num_rows + num_bad)
        return Checked(num_rows, num_bad, tuple(bad), in_order)

    def describe(self, bad: BadRow) -> str:
        """Return what is wrong with a row, and where it is."""
        return f"{self.path} {self.place} {bad.number}: {bad.error}"

    def events(self, checked: Checked) -> Iterator[TimelineEvent]:
        """Yield the good rows by event time; equal times keep the file's order."""
        good = (each.event for each in self.rows() if isinstance(each, GoodRow))
        if checked.in_order:
            yield from map(on_timeline, good)
            return
        # As JSON a row takes a few hundred bytes, as a model a few thousand.
        lines = sorted(
            ((event.event_time_ms, to_json(event)) for event in good), key=lambda at: at[0]
        )
        for _, line in lines:
            yield on_timeline(self.columns.model.model_validate_json(line))


def merge(tables: Iterable[tuple[Table, Checked]]) -> Iterator[TimelineEvent]:
    """Yield the events of all tables by event time; at equal times those of the first table come first."""
    streams = [table.events(checked) for table, checked in tables]
    return heapq.merge(*streams, key=lambda each: each.event_time_ms)


def refuse_bad_rows(table: Table, checked: Checked) -> None:
    """Return where every row of a table is good.

    Raises:
        ConfigError: some are not; the message names the first ones.
    """
    if not checked.num_bad:
        return
    lines = [f"  {table.describe(each)}" for each in checked.bad]
    if checked.num_bad > len(lines):
        lines.append(f"  … and {checked.num_bad - len(lines)} more")
    raise ConfigError(
        f"{table.path}: {checked.num_bad} of {checked.num_bad + checked.num_rows} rows cannot be used, nothing was "
        "sent; mend them, or pass --skip-bad-rows:\n" + "\n".join(lines)
    )


def rejected_line(table: Table, bad: BadRow) -> str:
    """Return a bad row with its reason, as a line of JSON."""
    document = {
        table.place: bad.number,
        "field": bad.error.field,
        "column": bad.error.column,
        "value": bad.error.value,
        "reason": bad.error.reason,
        "row": bad.row,
    }
    return json.dumps(document, default=str)


def open_table(path: Path, model: Model, mapping: str = "") -> Table:
    """Return a file as a table of events of `model`, its columns checked and no row read yet.

    Raises:
        ConfigError: the file is missing or of another kind, or the mapping does not fit it.
    """
    sources: dict[str, Source | None] = parse_mapping(mapping, model)
    if path.suffix not in _KINDS:
        raise ConfigError(
            f"{path} is none of {', '.join(_KINDS)}; its name must end in one of them"
        )
    if not path.is_file():
        raise ConfigError(f"{path} is not a file")
    kind = _KINDS[path.suffix]
    columns = bind(model, sources, kind.columns(path), what=str(path))
    return Table(path, columns, kind.read, kind.place)


def _csv_rows(path: Path) -> Rows:
    csv.field_size_limit(MAX_CELL_CHARS)
    # What is not UTF-8 becomes lone surrogates, which no field accepts: the row is named, not the file.
    with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        reader = csv.reader(file, strict=True)
        try:
            header = next(reader, [])
            for cells in reader:
                if not cells:
                    continue
                if len(cells) == len(header):
                    yield reader.line_num, dict(zip(header, cells, strict=True))
                else:
                    reason = f"the row has {len(cells)} cells, the header {len(header)}"
                    yield reader.line_num, BadCellError("", "", cells, reason)
        except csv.Error as error:
            raise ConfigError(f"{path} line {reader.line_num}: {error}") from error


def _csv_columns(path: Path) -> list[str]:
    with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        header = next(csv.reader(file), [])
    if twice := sorted({name for name in header if header.count(name) > 1}):
        raise ConfigError(f"{path} has more than one column {', '.join(map(repr, twice))}")
    return header


def _jsonl_rows(path: Path) -> Rows:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                reason = "" if isinstance(row, dict) else "expected a JSON object"
            except (ValueError, RecursionError) as error:
                reason = f"not JSON: {error}"
            yield number, BadCellError("", "", line, reason) if reason else row


def _jsonl_columns(path: Path) -> list[str]:
    return list(
        {
            name: None
            for _, row in _jsonl_rows(path)
            if not isinstance(row, BadCellError)
            for name in row
        }
    )


def _parquet_rows(path: Path) -> Rows:
    number = 0
    try:
        for batch in _parquet(path).iter_batches(batch_size=_PARQUET_BATCH_ROWS):
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except (pyarrow.ArrowException, ValueError, OverflowError) as error:
        raise ConfigError(f"{path} cannot be read beyond row {number}: {error}") from error


def _parquet_columns(path: Path) -> list[str]:
    return [str(name) for name in _parquet(path).schema_arrow.names]


def _parquet(path: Path) -> Any:
    try:
        return pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise ConfigError(f"{path} is not a Parquet file: {error}") from error


class _Kind(NamedTuple):
    read: Callable[[Path], Rows]
    columns: Callable[[Path], list[str]]
    place: str


_KINDS = {
    ".csv": _Kind(_csv_rows, _csv_columns, "line"),
    ".jsonl": _Kind(_jsonl_rows, _jsonl_columns, "line"),
    ".parquet": _Kind(_parquet_rows, _parquet_columns, "row"),
}
