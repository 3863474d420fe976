from __future__ import annotations

import base64
import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.errors import DecodeError
from streams.codec import MAX_RECORD_BYTES, dead_letter, decode, decode_upload
from streams.events import VideoRemoved, VideoUploaded, WatchEvent, to_json
from streams.topics import MAX_DEAD_LETTER_BYTES, MAX_MESSAGE_BYTES

WATCH: dict[str, Any] = {
    "event_id": "w-1",
    "event_time_ms": 1_000,
    "user_id": "ana",
    "video_id": "v-1",
    "surface": "home",
    "watched_s": 30.0,
    "duration_s": 60.0,
}


def wire(**changes: object) -> bytes:
    return json.dumps({**WATCH, **changes}).encode()


def refusal(value: bytes | None) -> DecodeError:
    with pytest.raises(DecodeError) as caught:
        decode(WatchEvent, value)
    return caught.value


def test_unknown_fields_are_ignored() -> None:
    assert decode(WatchEvent, wire(mood="curious")) == WatchEvent(**WATCH)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "empty"),
        (b"", "empty"),
        (b"\xff\xfe", "invalid_json"),
        (b'{"user_id": "ana"', "invalid_json"),
        (b"[" * 100_000, "invalid_json"),
        (b"null", "invalid_event"),
        (b"[]", "invalid_event"),
        (wire(schema_version=2), "unknown_schema_version"),
        (wire(schema_version="1.0"), "invalid_event"),
        (wire(user_id=None), "invalid_event"),
        (b" " * (MAX_RECORD_BYTES + 1), "too_large"),
    ],
    ids=str,
)
def test_bad_record_is_refused_with_the_reason(value: bytes | None, reason: str) -> None:
    assert refusal(value).reason == reason


def test_record_without_a_required_field_is_refused_by_name() -> None:
    without = {name: value for name, value in WATCH.items() if name != "video_id"}
    error = refusal(json.dumps(without).encode())
    assert (error.reason, str(error)) == ("invalid_event", "video_id: Field required")


def test_newer_schema_is_refused_with_both_versions() -> None:
    assert str(refusal(wire(schema_version=7))) == "schema_version is 7; this consumer reads 1"


@given(st.binary(max_size=200) | st.text().map(str.encode))
def test_any_bytes_are_an_event_or_refused(value: bytes) -> None:
    for read in (lambda raw: decode(WatchEvent, raw), decode_upload):
        with contextlib.suppress(DecodeError):
            read(value)


def test_uploads_updates_and_removals_are_told_apart() -> None:
    uploaded = VideoUploaded(event_time_ms=0, video_id="v", title="t")
    updated = VideoUploaded(event_time_ms=0, video_id="v", title="t", type="updated")
    removed = VideoRemoved(event_time_ms=0, video_id="v")
    for event in (uploaded, updated, removed):
        assert decode_upload(to_json(event)) == event


@pytest.mark.parametrize(
    "body",
    [
        {"video_id": "v", "event_time_ms": 0},
        {"video_id": "v", "event_time_ms": 0, "title": 5},
        {"video_id": "v", "event_time_ms": 0, "type": "uploaded"},
        {"video_id": "v", "event_time_ms": 0, "type": "renamed", "title": "t"},
    ],
    ids=["no type", "no type, bad title", "no title", "unknown type"],
)
def test_malformed_upload_never_passes_for_a_removal(body: dict[str, object]) -> None:
    with pytest.raises(DecodeError) as caught:
        decode_upload(json.dumps(body).encode())
    assert caught.value.reason == "invalid_event"


def test_dead_letter_holds_the_raw_record_and_where_it_came_from() -> None:
    letter = dead_letter("watch.events", 3, 17, b"ana", b"\xff{", refusal(b"\xff{"))
    assert (letter.topic, letter.partition, letter.offset) == ("watch.events", 3, 17)
    assert letter.reason == "invalid_json"
    assert base64.b64decode(letter.key_base64 or "") == b"ana"
    assert base64.b64decode(letter.value_base64 or "") == b"\xff{"


def test_dead_letter_of_a_tombstone_has_no_value() -> None:
    letter = dead_letter("watch.events", 0, 0, None, None, refusal(None))
    assert (letter.key_base64, letter.value_base64) == (None, None)


@pytest.mark.parametrize("key_bytes", [8, MAX_MESSAGE_BYTES - 8])
def test_dead_letter_of_the_greatest_record_fits_whole_in_its_topic(key_bytes: int) -> None:
    key, value = b"k" * key_bytes, b"x" * (MAX_MESSAGE_BYTES - key_bytes)
    letter = dead_letter("watch.events", 0, 0, key, value, DecodeError("too large", "too_large"))
    assert len(to_json(letter)) + len(key) < MAX_DEAD_LETTER_BYTES
    assert base64.b64decode(letter.value_base64 or "") == value
