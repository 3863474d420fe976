"""Watch events at line speed: a msgspec mirror of `WatchEvent`; knows nothing of what becomes of a watch.

`WatchEvent` stays the contract. The mirror is strict, so whatever it accepts the contract accepts with the same values;
whatever it refuses is put to the contract, which accepts it after all (`"12"` for 12) or says why not.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from infra.errors import DecodeError
from streams.codec import decode_watch_event
from streams.events import Surface, UserErased, WatchEvent

Identifier = Annotated[str, Meta(min_length=1, max_length=256)]
EventTimeMs = Annotated[int, Meta(ge=0, le=4_102_444_800_000)]

# The mirror skips unknown fields without looking inside. The contract's parser looks, and refuses 200 nested brackets
# or an integer of 4,300 digits; a record that could hold either takes the slow way.
_MAX_SIMPLE_BYTES = 4_000
_MAX_SIMPLE_BRACKETS = 100
_TOO_SHORT_TO_NEST_BYTES = (
    500  # 200 brackets, opened and closed, and the 100 bytes of required fields
)


class UserFeatures(Struct, frozen=True, gc=False):
    """The mirror of the contract's `UserFeatures`."""

    region: Annotated[str, Meta(max_length=16)] | None = None
    age: Annotated[int, Meta(ge=0, le=130)] | None = None
    gender: Annotated[str, Meta(max_length=32)] | None = None
    device: Annotated[str, Meta(max_length=32)] | None = None
    language: Annotated[str, Meta(max_length=16)] | None = None


class Watch(Struct, frozen=True, gc=False, kw_only=True):
    """The mirror of the contract's `WatchEvent`, with the same field names, types and bounds."""

    schema_version: Literal[1] = 1
    event_id: Identifier
    event_time_ms: EventTimeMs
    type: Literal["watch"] = "watch"
    user_id: Identifier
    video_id: Identifier
    surface: Surface
    watched_s: Annotated[float, Meta(ge=0, le=1e6)]
    duration_s: Annotated[float, Meta(gt=0, le=1e6)]
    liked: bool = False
    request_id: Annotated[str, Meta(max_length=64)] | None = None
    context_video_id: Identifier | None = None
    query: Annotated[str, Meta(max_length=1024)] | None = None
    arm: Annotated[str, Meta(max_length=64)] | None = None
    user: UserFeatures | None = None


decode_features = msgspec.json.Decoder(UserFeatures).decode
_decode_simple = msgspec.json.Decoder(Watch).decode


def decode_watch(value: bytes | None) -> Watch | UserErased:
    """Return the watch, or the erasure of its user, in `value`.

    A record without an event_id gets a new one from the contract, so it is never taken for a duplicate.

    Raises:
        DecodeError: exactly when `codec.decode_watch_event` raises it, with the same reason.
    """
    if value and (value.isascii() or _is_utf8(value)) and _is_simple(value):
        try:
            return _decode_simple(value)
        except msgspec.DecodeError:
            pass  # the contract knows the reason, or accepts
    event = decode_watch_event(value)
    return event if isinstance(event, UserErased) else _mirrored(event)


def accepted_watch(
    key: bytes | None, value: bytes | None, append_time_ms: int, *, future_slack_ms: int
) -> Watch | UserErased:
    """Return the event of a record of `watch.events`; "now" is its append time, so that it is always the same.

    Raises:
        DecodeError: it is none, or breaks a rule that the contract of one event cannot see.
    """
    event = decode_watch(value)
    if event.event_time_ms > append_time_ms + future_slack_ms:
        raise DecodeError(
            f"event_time_ms {event.event_time_ms} is more than {future_slack_ms} ms after "
            f"the record was appended, {append_time_ms}; is the player's clock right?",
            "event_time_in_future",
        )
    if key != event.user_id.encode():
        raise DecodeError(
            f"the record's key is {(key or b'')[:80]!r}, expected the user_id: a user's watches "
            "and history must share a partition",
            "key_is_not_user_id",
        )
    return event


def _mirrored(event: WatchEvent) -> Watch:
    return msgspec.convert(event, Watch, from_attributes=True)


def _is_simple(value: bytes) -> bool:
    if len(value) <= _TOO_SHORT_TO_NEST_BYTES:
        return True
    return (
        len(value) <= _MAX_SIMPLE_BYTES
        and value.count(b"[") + value.count(b"{") <= _MAX_SIMPLE_BRACKETS
    )


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True
