"""From the columns of somebody's own table to typed events; knows nothing of files.

A mapping is a comma-separated list of what differs from "a column has the field's name":

    title=name                    the field `title` is in the column `name`
    event_time_ms=rated_at:s      a time in seconds (`:s`), milliseconds (`:ms`) or ISO 8601 (`:iso`)
    watched_s=play_time:ms        a duration in milliseconds instead of seconds
    tags=labels:;                 a list in one text, here separated by semicolons; `|` unless said otherwise
    surface:=home                 the same text for every row
    type=                         leave the field alone, although a column has its name
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError

from infra.errors import ConfigError
from streams.events import UserFeatures, VideoUploaded, WatchEvent

Row = Mapping[str, Any]
TIME_UNITS = ("s", "ms", "iso")
DURATION_UNITS = ("s", "ms")
LIST_SEPARATOR = "|"
_NOT_MAPPED = {"schema_version", "user"}
_LISTS = {"tags", "topics"}
_NUMBERS = {"liked", "user.age"}  # beside those with a unit
_SHOWN_CHARS = 80


class BadCellError(ValueError):
    """A row that is no event: which field (none where the row is no row), which column, which value, and why not."""

    def __init__(self, field: str, column: str, value: object, reason: str) -> None:
        super().__init__(field, column, value, reason)
        self.field, self.column, self.value, self.reason = field, column, value, reason

    def __str__(self) -> str:
        shown = repr(self.value)
        shown = shown if len(shown) <= _SHOWN_CHARS else f"{shown[:_SHOWN_CHARS]}…"
        if not self.field:
            return f"{shown}: {self.reason}"
        where = f"column {self.column!r}" if self.column else "no column"
        return f"{where} for {self.field}: {shown}: {self.reason}"


class Source(NamedTuple):
    """Where a field comes from: a column and how to read it, or one text for every row."""

    column: str
    unit: str = ""
    constant: str | None = None


def fields_of(model: type[BaseModel]) -> list[str]:
    """Return what a column may be mapped to; a viewer's features are `user.region` and so on."""
    names = [name for name in model.model_fields if name not in _NOT_MAPPED]
    if "user" in model.model_fields:
        names += [f"user.{name}" for name in UserFeatures.model_fields]
    return names


def parse_mapping(text: str, model: type[BaseModel]) -> dict[str, Source | None]:
    """Return the mapping in `text`; None for a field that is to be left alone.

    Raises:
        ConfigError: a field is unknown or named twice, a unit is unknown, or a time has none.
    """
    mapping: dict[str, Source | None] = {}
    for part in (part.strip() for part in text.split(",")):
        if not part:
            continue
        field, separator, source = part.partition("=")
        constant = field.endswith(":")
        field = field.removesuffix(":").strip()
        if not separator:
            raise ConfigError(f"{part!r} is no mapping; expected field=column, such as title=name")
        if field not in fields_of(model):
            raise ConfigError(
                f"{field!r} is no field of {model.__name__}; it has {', '.join(fields_of(model))}"
            )
        if field in mapping:
            raise ConfigError(f"{field} is mapped twice in {text!r}")
        if constant:
            mapping[field] = Source("", _default_unit(field), constant=source)
        else:
            mapping[field] = _source(field, source.strip()) if source.strip() else None
    return mapping


def _source(field: str, text: str) -> Source:
    column, separator, unit = text.rpartition(":")
    if not separator:
        if field.endswith("_time_ms") and text != field:
            raise ConfigError(
                f"{field}={text} does not say what {text!r} counts; append :s, :ms or :iso"
            )
        return Source(text, _default_unit(field))
    units = _units(field)
    if field in _LISTS:
        if not unit:
            raise ConfigError(f"{field}={text} names no separator; append one, such as :;")
    elif unit not in units:
        known = f"{', '.join(units)}" if units else "no unit"
        raise ConfigError(f"{field}={text} has the unit {unit!r}; {field} takes {known}")
    return Source(column, unit)


def _units(field: str) -> tuple[str, ...]:
    if field.endswith("_time_ms"):
        return TIME_UNITS
    return DURATION_UNITS if field.endswith("_s") else ()


def _default_unit(field: str) -> str:
    if field in _LISTS:
        return LIST_SEPARATOR
    units = _units(field)
    return "" if not units else "ms" if field.endswith("_ms") else "s"


@dataclass(frozen=True)
class Columns:
    """How the rows of one table become events of one model; see `bind`."""

    model: type[VideoUploaded] | type[WatchEvent]
    sources: Mapping[str, Source]

    def event(self, row: Row) -> VideoUploaded | WatchEvent:
        """Return the row's event.

        Without an event_id it gets one that is a function of its content, so that a second replay is dropped as a
        redelivery; so is a second row that says exactly the same.

        Raises:
            BadCellError: the row is no event.
        """
        values: dict[str, Any] = {}
        for field, source in self.sources.items():
            value = row.get(source.column) if source.constant is None else source.constant
            if _is_missing(value):
                continue
            group, _, name = field.rpartition(".")
            target = values.setdefault(group, {}) if group else values
            target[name] = self._read(field, source, value)
        try:
            event = self.model.model_validate(values)
        except ValidationError as error:
            raise self._bad_cell(row, error) from None
        if "event_id" in values:
            return event
        return event.model_copy(update={"event_id": _content_id(event)})

    def _read(self, field: str, source: Source, value: Any) -> Any:
        try:
            if field in _LISTS:
                return _as_list(value, source.unit)
            if field.endswith("_time_ms"):
                return _as_ms(value, source.unit)
            if source.unit == "ms":
                return float(value) / 1000
        except (ValueError, TypeError, OverflowError) as error:
            reason = f"{error} (read as {source.unit})" if source.unit else str(error)
            raise BadCellError(field, source.column, value, reason) from None
        # Identifiers are numbers in many tables; pydantic takes no number for a text.
        if isinstance(value, int) and field not in _NUMBERS and not _units(field):
            return str(value)
        return value

    def _bad_cell(self, row: Row, error: ValidationError) -> BadCellError:
        first = error.errors(include_url=False)[0]
        names = [str(part) for part in first["loc"] if isinstance(part, str)]
        field = ".".join(names) or "event"
        source = self.sources.get(field)
        if source is None:
            return BadCellError(field, "", None, first["msg"])
        value = row.get(source.column) if source.constant is None else source.constant
        reason = "empty, and required" if first["type"] == "missing" else first["msg"]
        return BadCellError(field, source.column, value, reason)


def bind(
    model: type[VideoUploaded] | type[WatchEvent],
    mapping: Mapping[str, Source | None],
    columns: Collection[str],
    *,
    what: str,
) -> Columns:
    """Return how a table with these columns is read: mapped fields as mapped, others by equal names.

    Raises:
        ConfigError: a mapped column is not in the table, or a required field has no column.
    """
    sources: dict[str, Source] = {}
    for field in fields_of(model):
        source = mapping.get(field)
        if source is not None:
            if source.constant is None and source.column not in columns:
                raise ConfigError(
                    f"{what} has no column {source.column!r} for {field}; it has {', '.join(columns)}"
                )
            sources[field] = source
        elif field not in mapping and field in columns:
            sources[field] = Source(field, _default_unit(field))
    required = [name for name, field in model.model_fields.items() if field.is_required()]
    if missing := [name for name in required if name not in sources]:
        unit = ":s" if missing[0].endswith("_time_ms") else ""
        raise ConfigError(
            f"{what} has no column for {', '.join(missing)}; it has {', '.join(columns) or 'none'}: map one "
            f"({missing[0]}=column{unit}) or give one value for all rows ({missing[0]}:=value)"
        )
    return Columns(model, sources)


def _is_missing(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _as_list(value: Any, separator: str) -> list[str]:
    if isinstance(value, str):
        return [part.strip() for part in value.split(separator) if part.strip()]
    if not isinstance(value, list | tuple):
        raise ValueError(f"expected a text with {separator!r} between its parts, or a list")
    return [str(part) for part in value]


def _as_ms(value: Any, unit: str) -> int:
    """Return a time as epoch milliseconds; one without a zone is taken as UTC."""
    if isinstance(value, datetime):
        return _epoch_ms(value)
    if unit == "iso":
        return _epoch_ms(datetime.fromisoformat(str(value)))
    number = float(value)
    if not math.isfinite(number):
        raise ValueError("expected a number")
    return round(number * 1000) if unit == "s" else round(number)


def _epoch_ms(time: datetime) -> int:
    zoned = time if time.tzinfo else time.replace(tzinfo=UTC)
    return round(zoned.timestamp() * 1000)


def _content_id(event: VideoUploaded | WatchEvent) -> str:
    content = json.dumps(event.model_dump(exclude={"event_id"}), sort_keys=True)
    return blake2b(
        content.encode(), digest_size=16, person=type(event).__name__.encode()
    ).hexdigest()
