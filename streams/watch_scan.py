"""Watch events at line speed: JSON to columns by one compiled pass over all records; knows nothing of Kafka.

`WatchEvent` stays the contract. The scanner understands only what every player sends: one flat object with the
contract's fields, plain strings and decimals. What it accepts, the contract accepts with the same values; whatever it
does not understand, be it an escape, an exponent, a number too large or no JSON at all, is left to the contract:
`streams.watches`. Shape suffixes: R records, T texts, N numbers.

Compiled code is cached under a hash of this file alone, so it takes nothing from others.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from streams.events import SURFACES

Array = npt.NDArray[Any]
TEXTS: Final = (
    "event_id", "user_id", "video_id", "context_video_id", "query", "arm", "request_id", "user",
)  # fmt: skip
"""Fields that are handed out as spans of bytes; `user` as its JSON, whose inside is not looked at."""
NUMBERS: Final = ("event_time_ms", "watched_s", "duration_s", "surface", "liked")
"""Fields that are handed out as float64, which holds the contract's times exactly; `surface` by its number."""
_SURFACES: Final = ("home", "watch_next", "shorts", "search", "music")
assert _SURFACES == SURFACES, "the contract's surfaces have changed: change them here too"
_FIELDS: Final = (*TEXTS, *NUMBERS, "type", "schema_version")
_EVENT_ID, _USER_ID, _CONTEXT, _USER = 0, 1, 3, 7
_EVENT_TIME, _WATCHED, _DURATION, _SURFACE, _LIKED, _TYPE, _VERSION, _OTHER = range(8, 16)
_REQUIRED = sum(1 << at for at in (0, 1, 2, _EVENT_TIME, _WATCHED, _DURATION, _SURFACE))
_MIN_CHARS = np.array([1, 1, 1, 1, 0, 0, 0], np.int64)
_MAX_CHARS = np.array([256, 256, 256, 256, 1024, 64, 64], np.int64)
_MAX_NUMBER = np.array([4_102_444_800_000, 1e6, 1e6])
MAX_SCANNED_BYTES = 4_000
"""A longer record is the contract's: a number of 4,300 digits or 200 nested brackets are beyond it."""
_EXACT_DIGITS = 15  # integers and powers of ten up to 1e15 are exact in float64, so their quotient is the nearest one
_POWERS = 10.0 ** np.arange(_EXACT_DIGITS + 1)
_REMEMBERED = 32  # fields of the record before


def _joined(names: Sequence[str]) -> tuple[Array, Array]:
    """Return the bytes of all names, and where each ends."""
    ends = np.cumsum([0, *map(len, names)])
    return np.frombuffer("".join(names).encode(), np.uint8).copy(), ends


_FIELD_BYTES, _FIELD_ENDS = _joined(_FIELDS)
_FIELD_SIZES = np.diff(_FIELD_ENDS, append=0)
_SURFACE_BYTES, _SURFACE_ENDS = _joined(_SURFACES)
_WATCH_BYTES, _WATCH_ENDS = _joined(["watch"])
_LITERAL_BYTES, _LITERAL_ENDS = _joined(["false", "true", "null"])
_FALSE, _TRUE, _NULL = range(3)
_SPACE, _QUOTE, _COMMA, _DOT = (ord(each) for each in ' ",.')
_ZERO, _NINE, _COLON, _LOW_E, _HIGH_E = (ord(each) for each in "09:eE")
_OPEN, _CLOSE, _BRACKET, _BACKSLASH = (ord(each) for each in "{}[\\")
_ONE = np.uint64(1)
_KEY = np.uint64(secrets.randbits(64))
_PRIME, _MIX, _SHIFT = np.uint64(0x100000001B3), np.uint64(0x9E3779B97F4A7C15), np.uint64(32)
PADDING = b'"' + 8 * b" "
"""Behind the last record: whatever looks for a quote, or for a word, ends there."""


class Scan(NamedTuple):
    """What was read of each record; only where `is_watch_R` holds does the rest mean anything.

    Attributes:
        buffer: all values, one after the other.
        begins_RT, lengths_RT: the span in it of each of `TEXTS`; a length of -1 is null.
        numbers_RN: `NUMBERS`.
        fingerprint_R: of user_id and event_id, the same for no other in 1e13, and only within this process; never 0.
    """

    buffer: bytes
    is_watch_R: Array
    begins_RT: Array
    lengths_RT: Array
    numbers_RN: Array
    fingerprint_R: Array


def scan_watches(keys: Sequence[bytes | None], values: Sequence[bytes | None]) -> Scan:
    """Read the records that are plain watches under their user's key."""
    num = len(values)
    buffer, ends_R = _laid_out(values, PADDING)
    key_buffer, key_ends_R = _laid_out(keys, b"")
    scan = Scan(
        buffer,
        np.zeros(num, np.bool_),
        np.zeros((num, len(TEXTS)), np.int32),
        np.full((num, len(TEXTS)), -1, np.int32),
        np.zeros((num, len(NUMBERS))),
        np.zeros(num, np.uint64),
    )
    _scan(
        np.frombuffer(buffer, np.uint8), ends_R, np.frombuffer(key_buffer, np.uint8), key_ends_R,
        _is_utf8(buffer), _KEY, *scan[1:],
    )  # fmt: skip
    return scan


def _laid_out(pieces: Sequence[bytes | None], padding: bytes) -> tuple[bytes, Array]:
    """Return the pieces one after the other, those that are none or too long as nothing, and where each ends."""
    try:
        sizes_R = np.fromiter(map(len, pieces), np.int64, len(pieces))  # type: ignore[arg-type]
    except TypeError:
        return _laid_out([piece or b"" for piece in pieces], padding)
    if sizes_R.max(initial=0) > MAX_SCANNED_BYTES:
        short = [piece if len(piece or b"") <= MAX_SCANNED_BYTES else b"" for piece in pieces]
        return _laid_out(short, padding)
    return b"".join([*pieces, padding]), np.cumsum(sizes_R)  # type: ignore[list-item]


def _is_utf8(buffer: bytes) -> bool:
    """Return whether all values are UTF-8: so is each that begins and ends with ASCII, as accepted ones do."""
    if buffer.isascii():
        return True
    try:
        buffer.decode()
    except UnicodeDecodeError:
        return False
    return True


@njit(cache=True, nogil=True)
def _scan(
    buf: Array,
    ends_R: Array,
    keys: Array,
    key_ends_R: Array,
    is_utf8: bool,
    key: Any,
    is_watch_R: Array,
    begins_RT: Array,
    lengths_RT: Array,
    numbers_RN: Array,
    fingerprint_R: Array,
) -> None:
    plain = _is_plain(buf)
    order = np.full(_REMEMBERED, _OTHER, np.int64)
    begin = key_begin = 0
    for row in range(len(ends_R)):
        end, key_end = ends_R[row], key_ends_R[row]
        begins_T, lengths_T, numbers_N = begins_RT[row], lengths_RT[row], numbers_RN[row]
        if _scan_record(
            buf, begin, end, plain, is_utf8, order, begins_T, lengths_T, numbers_N
        ):  # fmt: skip
            first, size = begins_T[_USER_ID], lengths_T[_USER_ID]
            if _equal(buf, first, first + size, keys, key_begin, key_end):
                is_watch_R[row] = True
                of_user = _fingerprint(buf, first, first + size, key)
                first, size = begins_T[_EVENT_ID], lengths_T[_EVENT_ID]
                fingerprint_R[row] = _fingerprint(buf, first, first + size, of_user)
        begin, key_begin = end, key_end


@njit(cache=True, nogil=True)
def _fingerprint(buf: Array, begin: int, end: int, key: Any) -> Any:
    """Return FNV-1a of the bytes, begun with a key and mixed so that its low bits tell as much."""
    value = key
    for at in range(begin, end):
        value = (value ^ np.uint64(buf[at])) * _PRIME
    value = (value ^ (value >> _SHIFT)) * _MIX
    value ^= value >> _SHIFT
    return value if value != np.uint64(0) else _ONE


def event_fingerprint(user_id: str, event_id: str) -> int:
    """Return what the scanner has for a watch of this user under this event_id."""
    value = _KEY
    for text in (user_id, event_id):
        data = np.frombuffer(text.encode(), np.uint8)
        value = np.uint64(_fingerprint(data, 0, len(data), value))
    return int(value)


@njit(cache=True, nogil=True)
def _is_plain(buf: Array) -> bool:
    """Return whether strings hold neither escapes nor control characters nor anything but ASCII."""
    found = False
    for byte in buf:
        found |= (byte < _SPACE) | (byte == _BACKSLASH) | (byte > 0x7F)
    return not found


@njit(cache=True, nogil=True)
def _scan_record(
    buf: Array,
    at: int,
    end: int,
    plain: bool,
    is_utf8: bool,
    order: Array,
    begins_T: Array,
    lengths_T: Array,
    numbers_N: Array,
) -> bool:
    """Return whether the record is a watch that the contract accepts; fills its row."""
    seen = position = 0
    at = _blank(buf, at, end)
    expected = _OPEN  # and a comma before every further field
    while at < end and buf[at] == expected:
        expected = _COMMA
        at = _blank(buf, at + 1, end)
        if buf[at] != _QUOTE:
            return False
        first = at + 1
        field = order[position]
        close = first + _FIELD_SIZES[field]
        if field == _OTHER or not _is_named(buf, first, close, field):
            close, chars = _closing_quote(buf, first, plain, is_utf8)
            if close < 0:
                return False
            field = _find(buf, first, close, _FIELD_BYTES, _FIELD_ENDS)
            order[position] = field
        position = (position + 1) % _REMEMBERED
        at = _blank(buf, close + 1, end)
        if buf[at] != _COLON or (field != _OTHER and seen >> field & 1):
            return False
        seen |= 1 << field
        at = _blank(buf, at + 1, end)
        byte = buf[at]
        if byte == _QUOTE:
            first = at + 1
            close, chars = _closing_quote(buf, first, plain, is_utf8)
            at = close + 1
            valid = close >= 0 and _takes_string(
                buf, first, close, chars, field, begins_T, lengths_T, numbers_N
            )  # fmt: skip
        elif _ZERO <= byte <= _NINE:
            at, value, is_whole = _decimal(buf, at)
            valid = at >= 0 and _takes_number(value, is_whole, field, numbers_N)
        elif byte == _OPEN:
            begins_T[_USER] = at
            at = _object_end(buf, at, end, plain, is_utf8)
            lengths_T[_USER] = at - begins_T[_USER]
            valid = at >= 0 and field == _USER
        else:
            at, literal = _literal(buf, at)
            valid = at >= 0 and _takes_literal(literal, field, numbers_N)
        if not valid:
            return False
        at = _blank(buf, at, end)
    is_whole = at < end and buf[at] == _CLOSE and _blank(buf, at + 1, end) >= end
    return is_whole and seen & _REQUIRED == _REQUIRED


@njit(cache=True, nogil=True, inline="always")
def _takes_string(
    buf: Array,
    first: int,
    close: int,
    chars: int,
    field: int,
    begins_T: Array,
    lengths_T: Array,
    numbers_N: Array,
) -> bool:
    """Return whether the field may have this string; notes it."""
    if field < _USER:
        begins_T[field] = first
        lengths_T[field] = close - first
        return _MIN_CHARS[field] <= chars <= _MAX_CHARS[field]
    if field == _SURFACE:
        surface = _find(buf, first, close, _SURFACE_BYTES, _SURFACE_ENDS)
        numbers_N[_SURFACE - _EVENT_TIME] = surface
        return surface < len(_SURFACES)
    if field == _TYPE:
        return _find(buf, first, close, _WATCH_BYTES, _WATCH_ENDS) == 0
    return field == _OTHER


@njit(cache=True, nogil=True, inline="always")
def _takes_number(value: float, is_whole: bool, field: int, numbers_N: Array) -> bool:
    """Return whether the field may have this number; notes it."""
    if _EVENT_TIME <= field <= _DURATION:
        at = field - _EVENT_TIME
        numbers_N[at] = value
        return (
            value <= _MAX_NUMBER[at]
            and (is_whole or field != _EVENT_TIME)
            and (value > 0 or field != _DURATION)
        )
    return field == _OTHER or (field == _VERSION and is_whole and value == 1)


@njit(cache=True, nogil=True, inline="always")
def _takes_literal(literal: int, field: int, numbers_N: Array) -> bool:
    """Return whether the field may be true, false or null; notes it."""
    if literal == _NULL:
        return _CONTEXT <= field <= _USER or field == _OTHER
    if field == _LIKED:
        numbers_N[_LIKED - _EVENT_TIME] = literal
        return True
    return field == _OTHER


@njit(cache=True, nogil=True)
def _blank(buf: Array, at: int, end: int) -> int:
    """Return where white space ends, at the record's end at the latest."""
    while at < end and (buf[at] == _SPACE or 9 <= buf[at] <= 10 or buf[at] == 13):
        at += 1
    return at


@njit(cache=True, nogil=True)
def _closing_quote(buf: Array, first: int, plain: bool, is_utf8: bool) -> Any:
    """Return where a string without escapes has its closing quote, else -1, and how many characters it has.

    It may be another record's; then it is beyond the end of this one, as is all that follows.
    """
    unsigned = np.uint64(first)  # so that nobody asks whether it counts from the end
    while buf[unsigned] != _QUOTE:
        unsigned += _ONE
        if unsigned == np.uint64(len(buf)):
            return -1, 0
    at = np.int64(unsigned)
    if plain:
        return at, at - first
    inner = 0
    for byte in buf[first:at]:
        if byte < _SPACE or byte == _BACKSLASH or (byte >= 0x80 and not is_utf8):
            return -1, 0
        inner += 0x80 <= byte < 0xC0
    return at, at - first - inner


@njit(cache=True, nogil=True)
def _equal(
    buf: Array, begin: int, end: int, other: Array, other_begin: int, other_end: int
) -> bool:
    if end - begin != other_end - other_begin:
        return False
    first, other_first = np.uint64(begin), np.uint64(other_begin)
    for at in range(np.uint64(end - begin)):  # noqa: SIM110 - compiled code has no generators
        if buf[first + at] != other[other_first + at]:
            return False
    return True


@njit(cache=True, nogil=True)
def _is_named(buf: Array, first: int, close: int, field: int) -> bool:
    if close >= len(buf) or buf[close] != _QUOTE:
        return False
    return _equal(buf, first, close, _FIELD_BYTES, _FIELD_ENDS[field], _FIELD_ENDS[field + 1])


@njit(cache=True, nogil=True)
def _find(buf: Array, begin: int, end: int, names: Array, ends: Array) -> int:
    """Return which of the names it is, or how many there are."""
    for number in range(len(ends) - 1):
        if _equal(buf, begin, end, names, ends[number], ends[number + 1]):
            return number
    return len(ends) - 1


@njit(cache=True, nogil=True)
def _decimal(buf: Array, at: int) -> tuple[int, float, bool]:
    """Return where a number without sign and exponent ends, its value, and whether it has no decimals.

    The end is -1 where it is something else, or has too many digits to be read exactly.
    """
    digits = value = places = 0
    leading_zero = buf[at] == _ZERO
    while _ZERO <= buf[at] <= _NINE and digits <= _EXACT_DIGITS:
        value = value * 10 + (buf[at] - _ZERO)
        digits += 1
        at += 1
    if leading_zero and digits > 1:
        return -1, 0.0, False
    if buf[at] == _DOT:
        at += 1
        while _ZERO <= buf[at] <= _NINE and digits <= _EXACT_DIGITS:
            value = value * 10 + (buf[at] - _ZERO)
            digits += 1
            places += 1
            at += 1
        if places == 0:
            return -1, 0.0, False
    if digits > _EXACT_DIGITS or buf[at] == _LOW_E or buf[at] == _HIGH_E:
        return -1, 0.0, False
    return at, value / _POWERS[places], places == 0


@njit(cache=True, nogil=True)
def _object_end(buf: Array, at: int, end: int, plain: bool, is_utf8: bool) -> int:
    """Return the end of a flat object, whatever stands in it; -1 for another or none."""
    at += 1
    while at < end:
        byte = buf[at]
        at += 1
        if byte == _CLOSE:
            return at
        if byte in (_OPEN, _BRACKET) or byte >= 0x80:
            return -1
        if byte == _QUOTE:
            close, _ = _closing_quote(buf, at, plain, is_utf8)
            if close < 0:
                return -1
            at = close + 1
    return -1


@njit(cache=True, nogil=True)
def _literal(buf: Array, at: int) -> tuple[int, int]:
    """Return where true, false or null ends, and which it is; -1 for anything else."""
    for number in range(len(_LITERAL_ENDS) - 1):
        begin, end = _LITERAL_ENDS[number], _LITERAL_ENDS[number + 1]
        if _equal(buf, at, min(at + end - begin, len(buf)), _LITERAL_BYTES, begin, end):
            return at + end - begin, number
    return -1, 0
