"""Impressions at line speed: a msgspec mirror of `ImpressionsShown`; knows nothing of what becomes of one.

`ImpressionsShown` stays the contract: whatever the mirror refuses is put to it, and it accepts it after all or says why
not. Of what the freshness worker does not count, the mirror only checks that it is there.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from streams.codec import MAX_RECORD_BYTES, decode
from streams.events import ImpressionsShown, Surface

EventTimeMs = Annotated[int, Meta(ge=0, le=4_102_444_800_000)]


class ShownItem(Struct, frozen=True, gc=False):
    """The mirror of the contract's `ImpressionItem`."""

    video_id: str
    position: int
    source: str
    age_s: float
    new: bool


class Shown(Struct, frozen=True, gc=False, kw_only=True):
    """The mirror of the contract's `ImpressionsShown`."""

    schema_version: Literal[1] = 1
    event_id: Annotated[str, Meta(min_length=1, max_length=256)] = ""
    event_time_ms: EventTimeMs
    request_id: str
    user_id: str | None = None
    surface: Surface
    arm: str
    model_version: int
    codebook_version: int
    items: tuple[ShownItem, ...]


_decode_simple = msgspec.json.Decoder(Shown).decode


def decode_shown(value: bytes | None) -> Shown:
    """Return what an answer showed.

    Raises:
        DecodeError: as `codec.decode` raises it.
    """
    if value and len(value) <= MAX_RECORD_BYTES and value.isascii():
        try:
            return _decode_simple(value)
        except msgspec.DecodeError:
            pass  # the contract knows the reason, or accepts
    return msgspec.convert(decode(ImpressionsShown, value), Shown, from_attributes=True)
