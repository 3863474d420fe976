"""The trie's entries as columns sorted by packed key, and how two such segments become one; compiled.

    base       10 M entries or so, with a hash table from video id to entry; never changed but for `dead_N`
    overlay    what came since, small; copied for every write

Per entry: key 8 bytes, upload time 8, channel 4, language 2, dead 1, offset 4, hash slots 5, top table 1, and the id.
Knows nothing of threads, filters and beams.

Legend: N entries, sorted by key; S spans of `SPAN` entries; P buckets of keys; X bytes; H hash slots; E ids looked up.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

Array = NDArray[Any]
SPAN: Final = 128
"""Entries that one summary is of: what fails a filter is passed over by so many at a time."""
_EMPTY: Final = 0xFFFFFFFF
_KEY = np.uint64(secrets.randbits(64))  # nobody can choose ids that share a slot
_PRIME, _MIX, _SHIFT = np.uint64(0x100000001B3), np.uint64(0x9E3779B97F4A7C15), np.uint64(32)
_LAST_BIT, _ONE = np.uint64(63), np.uint64(1)


class Segment(NamedTuple):
    """Entries, as searches read them.

    Attributes:
        dead_N: 1 for a removed entry; the only column that is written in place, from 0 to 1.
        newest_ms_S, languages_S: of each span the newest upload time, and a set of its languages' numbers, in which
            all above 62 are one; not kept up when entries die, and empty in an overlay.
        starts_P: where the keys of each bucket begin, a bucket being all keys of some first bits; one more at the end.
        bucket_shift: the number of bits below them.
    """

    keys_N: Array
    upload_times_ms_N: Array
    channels_N: Array
    languages_N: Array
    dead_N: Array
    newest_ms_S: Array
    languages_S: Array
    starts_P: Array
    bucket_shift: int


class Texts(NamedTuple):
    """Video ids in the order of their entries, as UTF-8, and a hash table that finds them."""

    buffer_X: Array
    offsets_N: Array
    slots_H: Array


class Base(NamedTuple):
    """A segment with the ids of its videos."""

    segment: Segment
    texts: Texts


def overlay_segment(
    keys_N: Array, upload_times_ms_N: Array, channels_N: Array, languages_N: Array
) -> Segment:
    """Return sorted columns as a segment without summaries."""
    return Segment(
        keys_N,
        upload_times_ms_N,
        channels_N,
        languages_N,
        np.zeros(len(keys_N), np.uint8),
        np.empty(0, np.int64),
        np.empty(0, np.uint64),
        np.array([0, len(keys_N)], np.uint32),
        63,
    )


def empty_segment() -> Segment:
    """Return a segment of no entries."""
    return overlay_segment(
        np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.int32), np.empty(0, np.uint16)
    )


def laid_out(video_ids: Sequence[str]) -> tuple[Array, Array]:
    """Return the ids' bytes one after the other, and the offsets where each begins and the last ends."""
    joined = "".join(video_ids)
    if joined.isascii():
        data, sizes = joined.encode(), map(len, video_ids)
    else:
        pieces = [each.encode(errors="surrogatepass") for each in video_ids]
        data, sizes = b"".join(pieces), map(len, pieces)
    if len(data) > _EMPTY:
        raise ValueError(f"the video ids take {len(data)} bytes, expected at most {_EMPTY}")
    offsets_N = np.zeros(len(video_ids) + 1, np.uint32)
    np.cumsum(np.fromiter(sizes, np.uint32, len(video_ids)), out=offsets_N[1:])
    return np.frombuffer(bytearray(data), np.uint8), offsets_N


def merged(old: Base, new: Segment, new_ids: Sequence[str], *, bits: int) -> Base:
    """Return the entries of both that are not dead, in `bits` bits of key; live keys and ids are unique.

    An entry that dies meanwhile may be in it or not. Only numbers are read from `old`, without the interpreter's lock.
    """
    buffer_X, offsets_N = laid_out(new_ids)
    num_live, num_bytes = _live_sizes(
        old.segment.dead_N, old.texts.offsets_N, new.dead_N, offsets_N
    )
    if num_bytes > _EMPTY:
        raise ValueError(f"the video ids take {num_bytes} bytes, expected at most {_EMPTY}")
    keys_N, times_ms_N = np.empty(num_live, np.int64), np.empty(num_live, np.int64)
    channels_N, languages_N = np.empty(num_live, np.int32), np.empty(num_live, np.uint16)
    merged_offsets_N, merged_X = np.zeros(num_live + 1, np.uint32), np.empty(num_bytes, np.uint8)
    count = _merge(
        old.segment, old.texts.buffer_X, old.texts.offsets_N, new, buffer_X, offsets_N,
        keys_N, times_ms_N, channels_N, languages_N, merged_X, merged_offsets_N,
    )  # fmt: skip
    columns = keys_N[:count], times_ms_N[:count], channels_N[:count], languages_N[:count]
    return indexed(*columns, merged_X, merged_offsets_N[: count + 1], bits=bits)


def indexed(
    keys_N: Array,
    upload_times_ms_N: Array,
    channels_N: Array,
    languages_N: Array,
    buffer_X: Array,
    offsets_N: Array,
    *,
    bits: int,
) -> Base:
    """Return sorted columns with their summaries, top table and hash table."""
    count = len(keys_N)
    # As many buckets as a byte per entry allows; without entries, one.
    bucket_bits = min(bits, max(0, (count // 4).bit_length() - 1))
    shift = bits - bucket_bits
    num_spans = -(-count // SPAN)
    newest_ms_S, languages_S = np.empty(num_spans, np.int64), np.zeros(num_spans, np.uint64)
    starts_P = np.empty((1 << bucket_bits) + 1, np.uint32)
    _summarize(upload_times_ms_N, languages_N, newest_ms_S, languages_S)
    _fill_starts(keys_N, shift, starts_P)
    # One stays empty: a search ends there.
    slots_H = np.full(count + count // 4 + 2, _EMPTY, np.uint32)
    _fill_slots(buffer_X, offsets_N, slots_H, _KEY)
    segment = Segment(
        keys_N,
        upload_times_ms_N,
        channels_N,
        languages_N,
        np.zeros(count, np.uint8),
        newest_ms_S,
        languages_S,
        starts_P,
        shift,
    )
    return Base(segment, Texts(buffer_X, offsets_N, slots_H))


def empty_base(*, bits: int) -> Base:
    """Return a base of no entries."""
    columns = empty_segment()[:4]
    return indexed(*columns, np.empty(0, np.uint8), np.zeros(1, np.uint32), bits=bits)


def find(base: Base, video_ids: Sequence[str]) -> Array:
    """Return where each video is in the base, or -1 where it is not, or is dead."""
    buffer_X, offsets_E = laid_out(video_ids)
    found_E = np.empty(len(video_ids), np.int64)
    _find(base.texts, base.segment.dead_N, buffer_X, offsets_E, _KEY, found_E)
    return found_E


def text_of(texts: Texts, position: int) -> str:
    """Return the id of one entry."""
    first, last = int(texts.offsets_N[position]), int(texts.offsets_N[position + 1])
    return texts.buffer_X[first:last].tobytes().decode(errors="surrogatepass")


@njit(cache=True, nogil=True)
def _live_sizes(
    dead_N: Array, offsets_N: Array, new_dead_N: Array, new_offsets_N: Array
) -> tuple[int, Any]:
    """Return how many entries live, and how many bytes their ids take."""
    count, num_bytes = 0, np.int64(0)
    for at in range(len(dead_N)):
        if not dead_N[at]:
            count += 1
            num_bytes += np.int64(offsets_N[at + 1]) - np.int64(offsets_N[at])
    for at in range(len(new_dead_N)):
        if not new_dead_N[at]:
            count += 1
            num_bytes += np.int64(new_offsets_N[at + 1]) - np.int64(new_offsets_N[at])
    return count, num_bytes


@njit(cache=True, nogil=True)
def _merge(
    old: Segment,
    old_X: Array,
    old_offsets_N: Array,
    new: Segment,
    new_X: Array,
    new_offsets_N: Array,
    keys_N: Array,
    times_ms_N: Array,
    channels_N: Array,
    languages_N: Array,
    merged_X: Array,
    offsets_N: Array,
) -> int:
    """Fill the columns in the order of keys; return how many entries were alive still."""
    count = num_bytes = at = new_at = 0
    num_old, num_new = len(old.keys_N), len(new.keys_N)
    while at < num_old or new_at < num_new:
        if at < num_old and old.dead_N[at]:
            at += 1
            continue
        if new_at < num_new and new.dead_N[new_at]:
            new_at += 1
            continue
        if new_at == num_new or (at < num_old and old.keys_N[at] < new.keys_N[new_at]):
            num_bytes = _append(
                old, old_X, old_offsets_N, at, count, num_bytes,
                keys_N, times_ms_N, channels_N, languages_N, merged_X,
            )  # fmt: skip
            at += 1
        else:
            num_bytes = _append(
                new, new_X, new_offsets_N, new_at, count, num_bytes,
                keys_N, times_ms_N, channels_N, languages_N, merged_X,
            )  # fmt: skip
            new_at += 1
        count += 1
        offsets_N[count] = num_bytes
    return count


@njit(cache=True, nogil=True, inline="always")
def _append(
    segment: Segment,
    buffer_X: Array,
    from_N: Array,
    at: int,
    count: int,
    num_bytes: int,
    keys_N: Array,
    times_ms_N: Array,
    channels_N: Array,
    languages_N: Array,
    merged_X: Array,
) -> int:
    keys_N[count] = segment.keys_N[at]
    times_ms_N[count] = segment.upload_times_ms_N[at]
    channels_N[count] = segment.channels_N[at]
    languages_N[count] = segment.languages_N[at]
    for place in range(np.int64(from_N[at]), np.int64(from_N[at + 1])):
        merged_X[num_bytes] = buffer_X[place]
        num_bytes += 1
    return num_bytes


@njit(cache=True, nogil=True)
def _summarize(
    times_ms_N: Array, languages_N: Array, newest_ms_S: Array, languages_S: Array
) -> None:
    for at in range(len(times_ms_N)):
        span = at // SPAN
        if at % SPAN == 0 or times_ms_N[at] > newest_ms_S[span]:
            newest_ms_S[span] = times_ms_N[at]
        languages_S[span] |= _ONE << min(np.uint64(languages_N[at]), _LAST_BIT)


@njit(cache=True, nogil=True)
def _fill_starts(keys_N: Array, shift: int, starts_P: Array) -> None:
    at, count = 0, len(keys_N)
    for bucket in range(len(starts_P)):
        while at < count and keys_N[at] >> shift < bucket:
            at += 1
        starts_P[bucket] = at


@njit(cache=True, nogil=True, inline="always")
def _first_slot(buffer_X: Array, first: int, last: int, num_slots: int, key: Any) -> Any:
    """Return FNV-1a of the bytes, begun with a key, mixed, and scaled to the slots."""
    value = key
    for at in range(first, last):
        value = (value ^ np.uint64(buffer_X[at])) * _PRIME
    value = (value ^ (value >> _SHIFT)) * _MIX
    return np.int64(((value >> _SHIFT) * np.uint64(num_slots)) >> _SHIFT)


@njit(cache=True, nogil=True)
def _fill_slots(buffer_X: Array, offsets_N: Array, slots_H: Array, key: Any) -> None:
    num_slots = len(slots_H)
    for at in range(len(offsets_N) - 1):
        first, last = np.int64(offsets_N[at]), np.int64(offsets_N[at + 1])
        slot = _first_slot(buffer_X, first, last, num_slots, key)
        while slots_H[slot] != _EMPTY:
            slot = slot + 1 if slot + 1 < num_slots else 0
        slots_H[slot] = at


@njit(cache=True, nogil=True)
def _find(
    texts: Texts, dead_N: Array, buffer_X: Array, offsets_E: Array, key: Any, found_E: Array
) -> None:
    num_slots = len(texts.slots_H)
    for one in range(len(found_E)):
        first, last = np.int64(offsets_E[one]), np.int64(offsets_E[one + 1])
        slot = _first_slot(buffer_X, first, last, num_slots, key)
        found_E[one] = -1
        while texts.slots_H[slot] != _EMPTY:
            at = np.int64(texts.slots_H[slot])
            begin, end = np.int64(texts.offsets_N[at]), np.int64(texts.offsets_N[at + 1])
            same = end - begin == last - first
            for place in range(last - first):
                same = same and texts.buffer_X[begin + place] == buffer_X[first + place]
                if not same:
                    break
            if same:
                if not dead_N[at]:
                    found_E[one] = at
                break
            slot = slot + 1 if slot + 1 < num_slots else 0
