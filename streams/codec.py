"""Bytes to events, with the reason when they are not; knows nothing of Kafka clients."""

from __future__ import annotations

import base64
from typing import Annotated, Any, TypeVar

import msgspec
import pydantic
from pydantic import BaseModel, Discriminator, Field, Tag, TypeAdapter

from infra.clock import now_ms
from infra.errors import DecodeError
from streams.events import (
    SCHEMA_VERSION,
    DeadLetter,
    UserErased,
    VideoRemoved,
    VideoUploaded,
    WatchEvent,
)

M = TypeVar("M", bound=BaseModel)
Upload = VideoUploaded | VideoRemoved

# Told apart by `type` alone: by shape, an upload without a title would pass for a removal.
_UPLOAD: TypeAdapter[Upload] = TypeAdapter(Annotated[Upload, Field(discriminator="type")])


def _watch_or_erasure(document: Any) -> str:
    return "erased" if isinstance(document, dict) and document.get("type") == "erased" else "watch"


_WATCH: TypeAdapter[WatchEvent | UserErased] = TypeAdapter(
    Annotated[
        Annotated[WatchEvent, Tag("watch")] | Annotated[UserErased, Tag("erased")],
        Discriminator(_watch_or_erasure),
    ]
)
MAX_RECORD_BYTES = 8_000_000


def decode(model: type[M], value: bytes | None) -> M:
    """Return the event in `value`.

    Raises:
        DecodeError: with reason `empty`, `too_large`, `invalid_json`, `unknown_schema_version` or `invalid_event`.
    """
    raw = _checked(value)
    try:
        return model.model_validate_json(raw)
    except pydantic.ValidationError as error:
        raise _refusal(raw, error) from None


def decode_dead_letter(value: bytes | None) -> DeadLetter:
    """Return the dead letter in `value`, which may hold a record of any size; raises like `decode`."""
    try:
        return DeadLetter.model_validate_json(value or b"")
    except pydantic.ValidationError as error:
        raise _refusal(value or b"", error) from None


def decode_upload(value: bytes | None) -> Upload:
    """Return the upload, update or removal in `value`; raises like `decode`."""
    raw = _checked(value)
    try:
        return _UPLOAD.validate_json(raw)
    except pydantic.ValidationError as error:
        raise _refusal(raw, error) from None


def decode_watch_event(value: bytes | None) -> WatchEvent | UserErased:
    """Return the watch or the erasure in `value`; raises like `decode`."""
    raw = _checked(value)
    try:
        return _WATCH.validate_json(raw)
    except pydantic.ValidationError as error:
        raise _refusal(raw, error) from None


def _checked(value: bytes | None) -> bytes:
    if not value:
        raise DecodeError("the record has no value; expected a JSON event", "empty")
    if len(value) > MAX_RECORD_BYTES:
        raise DecodeError(
            f"the record has {len(value)} bytes; at most {MAX_RECORD_BYTES} are accepted",
            "too_large",
        )
    return value


def _refusal(raw: bytes, error: pydantic.ValidationError) -> DecodeError:
    try:
        document = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as cause:
        return DecodeError(f"not JSON: {cause}", "invalid_json")
    version = document.get("schema_version", SCHEMA_VERSION) if isinstance(document, dict) else None
    if isinstance(version, int) and version != SCHEMA_VERSION:
        detail = f"schema_version is {version}; this consumer reads {SCHEMA_VERSION}"
        return DecodeError(detail, "unknown_schema_version")
    first = error.errors(include_url=False, include_input=False)[0]
    field = ".".join(str(part) for part in first["loc"])
    return DecodeError(f"{field or 'event'}: {first['msg']}", "invalid_event")


def dead_letter(
    topic: str,
    partition: int,
    offset: int,
    key: bytes | None,
    value: bytes | None,
    error: DecodeError,
) -> DeadLetter:
    """Return the dead letter for a refused record, with its raw bytes, whole."""
    return DeadLetter(
        topic=topic,
        partition=partition,
        offset=offset,
        reason=error.reason,
        detail=str(error)[:2000],
        key_base64=_base64(key),
        value_base64=_base64(value),
        refused_time_ms=now_ms(),
    )


def _base64(data: bytes | None) -> str | None:
    return None if data is None else base64.b64encode(data).decode()
