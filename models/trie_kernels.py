"""Which codes lead to a video that passes the filters, and the best of them for all beams of a request; compiled.

A code is allowed when one entry below it passes: the first that does is enough, and spans in which none can are passed
over by their summaries. Whether any does is asked only of codes whose score is good enough to be kept.
Knows nothing of threads and models.

Legend: W beams; K codes of a level; C children; X semantic IDs that a beam may not repeat; E excluded keys.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from models.trie_segments import SPAN, Segment

Array = NDArray[Any]
_ZERO = np.uint64(0)
_NO_CODE: Final = 1 << 62
_ANY_TIME: Final = -(1 << 63)
_SPAN: Final = 128
assert _SPAN == SPAN, "compiled code is cached by this file alone: change the span here, too"
# `_nrt=False` is without numba's counts of references, two atomic writes for each array that is taken out of a tuple or
# handed on. What is compiled so makes no array, and its caller holds all that it is given.


class Sieve(NamedTuple):
    """Filters in the trie's own numbers.

    Attributes:
        excluded_keys_E, excluded_channels: ascending.
        by_language: whether languages are asked for at all.
        language_passes: whether each language's number passes.
        languages: of those, the set of their numbers, in which all above 62 are one, as a segment's summaries have it.
    """

    uploaded_after_ms: int
    excluded_keys_E: Array
    excluded_channels: Array
    by_language: bool
    language_passes: Array
    languages: Any


@njit(cache=True, nogil=True, inline="always")
def _lower_bound(values: Array, wanted: int, lo: int, hi: int) -> int:
    """Return the first place in [lo, hi) whose value is not below, or hi."""
    while lo < hi:
        middle = (lo + hi) >> 1
        if values[middle] < wanted:
            lo = middle + 1
        else:
            hi = middle
    return lo


@njit(cache=True, nogil=True, inline="always")
def _contains(values: Array, wanted: int) -> bool:
    at = _lower_bound(values, wanted, 0, len(values))
    return at < len(values) and values[at] == wanted


@njit(cache=True, nogil=True, inline="always")
def _first_at_least(segment: Segment, key: int) -> Any:
    bucket = key >> segment.bucket_shift
    lo = np.int64(segment.starts_P[bucket])
    if key == bucket << segment.bucket_shift:
        return lo
    return _lower_bound(segment.keys_N, key, lo, np.int64(segment.starts_P[bucket + 1]))


@njit(cache=True, nogil=True, inline="always")
def _end_of(segment: Segment, last_key: int) -> Any:
    """Return where keys above this one begin; the key after the last may not exist in 63 bits."""
    bucket = last_key >> segment.bucket_shift
    hi = np.int64(segment.starts_P[bucket + 1])
    if last_key == (bucket << segment.bucket_shift) + ((1 << segment.bucket_shift) - 1):
        return hi
    return _lower_bound(segment.keys_N, last_key + 1, np.int64(segment.starts_P[bucket]), hi)


@njit(cache=True, nogil=True, inline="always")
def _between(
    keys_N: Array, starts_P: Array, bucket_shift: int, first_key: int, last_key: int
) -> tuple[Any, Any]:
    """Return where the entries of [first_key, last_key] begin and end; the same as by the two above."""
    bucket = first_key >> bucket_shift
    first = np.int64(starts_P[bucket])
    if first_key != bucket << bucket_shift:
        first = _lower_bound(keys_N, first_key, first, np.int64(starts_P[bucket + 1]))
    bucket = last_key >> bucket_shift
    last = np.int64(starts_P[bucket + 1])
    if last_key != (bucket << bucket_shift) + ((1 << bucket_shift) - 1):
        last = _lower_bound(keys_N, last_key + 1, np.int64(starts_P[bucket]), last)
    return first, last


@njit(cache=True, nogil=True, inline="always")
def _passes(segment: Segment, at: int, sieve: Sieve, repeated_X: Array) -> bool:
    if segment.dead_N[at]:
        return False
    if sieve.by_language and not sieve.language_passes[segment.languages_N[at]]:
        return False
    after_ms = sieve.uploaded_after_ms
    if after_ms > _ANY_TIME and segment.upload_times_ms_N[at] < after_ms:
        return False
    if len(sieve.excluded_channels) and _contains(sieve.excluded_channels, segment.channels_N[at]):
        return False
    key = segment.keys_N[at]
    for each in repeated_X:
        if each == key:
            return False
    return not (len(sieve.excluded_keys_E) and _contains(sieve.excluded_keys_E, key))


@njit(cache=True, nogil=True, _nrt=False)
def _first_passing(segment: Segment, at: int, end: int, sieve: Sieve, repeated_X: Array) -> int:
    """Return the first entry in [at, end) that passes, or end."""
    by_age = sieve.uploaded_after_ms > _ANY_TIME
    by_span = len(segment.newest_ms_S) > 0 and (by_age or sieve.by_language)
    while at < end:
        stop = end
        if by_span:
            span = at // _SPAN
            stop = min(end, (span + 1) * _SPAN)
            if segment.newest_ms_S[span] < sieve.uploaded_after_ms or (
                sieve.by_language and segment.languages_S[span] & sieve.languages == _ZERO
            ):
                at = stop
                continue
        while at < stop:
            if _passes(segment, at, sieve, repeated_X):
                return at
            at += 1
    return end


@njit(cache=True, nogil=True)
def _any_passes(
    base: Segment,
    at: int,
    end: int,
    overlay: Segment,
    new_at: int,
    new_end: int,
    sieve: Sieve,
    repeated_X: Array,
) -> bool:
    return (
        _first_passing(base, at, end, sieve, repeated_X) < end
        or _first_passing(overlay, new_at, new_end, sieve, repeated_X) < new_end
    )


@njit(cache=True, nogil=True, inline="always")
def _code_end(keys_N: Array, at: int, end: int, last_key: int) -> int:
    """Return where the keys above this one begin in [at, end): near by, mostly, so in steps that double."""
    step = 1
    while at + step < end and keys_N[at + step] <= last_key:
        at += step
        step <<= 1
    return _lower_bound(keys_N, last_key + 1, at, min(at + step, end)) if last_key + 1 > 0 else end


@njit(cache=True, nogil=True, inline="always")
def _next_code(
    base: Segment,
    at: int,
    end: int,
    overlay: Segment,
    new_at: int,
    new_end: int,
    shift: int,
    mask: int,
) -> tuple[int, int, int]:
    """Return the smallest code of what is left of both ranges, and where its entries end in each."""
    code = new_code = _NO_CODE
    if at < end:
        code = base.keys_N[at] >> shift & mask
    if new_at < new_end:
        new_code = overlay.keys_N[new_at] >> shift & mask
    code_end, new_code_end = at, new_at
    if code <= new_code:
        last_key = base.keys_N[at] | ((1 << shift) - 1)
        code_end = _code_end(base.keys_N, at, end, last_key)
    if new_code <= code:
        last_key = overlay.keys_N[new_at] | ((1 << shift) - 1)
        new_code_end = _code_end(overlay.keys_N, new_at, new_end, last_key)
    return min(code, new_code), code_end, new_code_end


@njit(cache=True, nogil=True, inline="always")
def _fill_range(
    base: Segment, overlay: Segment, prefix: int, all_bits: int, below: int, range_4: Array
) -> None:
    """Fill in where a prefix's entries, `below` short of a key's bits, begin and end in both segments."""
    if prefix >> (all_bits - below) != 0:
        range_4[:] = 0
    else:
        first_key = prefix << below
        last_key = first_key | ((1 << below) - 1)
        range_4[0] = _first_at_least(base, first_key)
        range_4[1] = _end_of(base, last_key)
        range_4[2] = _first_at_least(overlay, first_key)
        range_4[3] = _end_of(overlay, last_key)


@njit(cache=True, nogil=True)
def ranges(
    base: Segment, overlay: Segment, prefixes_W: Array, all_bits: int, below: int, ranges_W4: Array
) -> None:
    """Fill in where the entries of each prefix begin and end in both segments."""
    for row in range(len(prefixes_W)):
        _fill_range(base, overlay, prefixes_W[row], all_bits, below, ranges_W4[row])


@njit(cache=True, nogil=True)
def children(
    base: Segment,
    overlay: Segment,
    sieve: Sieve,
    ranges_W4: Array,
    prefixes_W: Array,
    bits: int,
    shift: int,
    row_C: Array,
    prefix_C: Array,
) -> int:
    """Fill in every child that an entry below passes for, by (row, code); return how many."""
    count = 0
    nothing_X, mask = np.empty(0, np.int64), (1 << bits) - 1
    for row in range(len(prefixes_W)):
        at, end, new_at, new_end = ranges_W4[row]
        while at < end or new_at < new_end:
            code, code_end, new_code_end = _next_code(
                base, at, end, overlay, new_at, new_end, shift, mask
            )
            if _any_passes(base, at, code_end, overlay, new_at, new_code_end, sieve, nothing_X):
                row_C[count] = row
                prefix_C[count] = prefixes_W[row] << bits | code
                count += 1
            at, new_at = code_end, new_code_end
    return count


@njit(cache=True, nogil=True, inline="always")
def _is_worse(
    score: float, prefix: int, row: int, other_score: float, other: int, other_row: int
) -> bool:
    """Return whether the first ranks behind the second: by score, then the smaller key, then the smaller row."""
    if score != other_score:
        return score < other_score
    if prefix != other:
        return prefix > other
    return row > other_row


@njit(cache=True, nogil=True, _nrt=False)
def _offer(
    scores_C: Array,
    prefix_C: Array,
    row_C: Array,
    count: int,
    score: float,
    prefix: int,
    row: int,
) -> int:
    """Put a child among the best, whose worst is at the root of a heap; return how many there are."""
    size = len(scores_C)
    if count < size:
        at = count
        count += 1
        while at > 0:
            parent = (at - 1) >> 1
            if not _is_worse(
                score, prefix, row, scores_C[parent], prefix_C[parent], row_C[parent]
            ):  # fmt: skip
                break
            scores_C[at], prefix_C[at], row_C[at] = (
                scores_C[parent], prefix_C[parent], row_C[parent],
            )  # fmt: skip
            at = parent
    else:
        at = 0
        while 2 * at + 1 < size:
            child = 2 * at + 1
            if child + 1 < size and _is_worse(
                scores_C[child + 1], prefix_C[child + 1], row_C[child + 1],
                scores_C[child], prefix_C[child], row_C[child],
            ):  # fmt: skip
                child += 1
            if not _is_worse(
                scores_C[child], prefix_C[child], row_C[child], score, prefix, row
            ):  # fmt: skip
                break
            scores_C[at], prefix_C[at], row_C[at] = (
                scores_C[child], prefix_C[child], row_C[child],
            )  # fmt: skip
            at = child
    scores_C[at], prefix_C[at], row_C[at] = score, prefix, row
    return count


@njit(cache=True, nogil=True, _nrt=False)
def _sort_best(row_C: Array, prefix_C: Array, count: int) -> None:
    """Put the first `count` in the order of (prefix, row); a few, which a binary search would not help."""
    for at in range(1, count):
        prefix, row, place = prefix_C[at], row_C[at], at
        while place > 0 and (prefix_C[place - 1], row_C[place - 1]) > (prefix, row):
            prefix_C[place], row_C[place] = prefix_C[place - 1], row_C[place - 1]
            place -= 1
        prefix_C[place], row_C[place] = prefix, row


@njit(cache=True, nogil=True, _nrt=False)
def _least_of_best(values_K: Array, best_C: Array) -> float:
    """Return the least of the greatest, as many as `best_C` has places, which it fills; without that many, the least.

    A value that is no number is none of the greatest.
    """
    count, size = 0, len(best_C)
    for at in range(len(values_K)):
        value = np.float64(values_K[at])
        if count < size and value == value:
            place = count
            count += 1
            while place > 0 and value < best_C[(place - 1) >> 1]:
                best_C[place] = best_C[(place - 1) >> 1]
                place = (place - 1) >> 1
            best_C[place] = value
        elif count == size and value > best_C[0]:
            place = 0
            while 2 * place + 1 < size:
                child = 2 * place + 1
                if child + 1 < size and best_C[child + 1] < best_C[child]:
                    child += 1
                if best_C[child] >= value:
                    break
                best_C[place] = best_C[child]
                place = child
            best_C[place] = value
    return best_C[0] if count else -np.inf


@njit(cache=True, nogil=True, _nrt=False)
def _list_codes(
    keys_N: Array, new_keys_N: Array, range_4: Array, shift: int, mask: int, listed_K3: Array
) -> int:
    """Fill in each code of two ranges, and where its entries end in either; return how many codes there are."""
    at, end, new_at, new_end = range_4
    count = 0
    while at < end or new_at < new_end:
        code = new_code = _NO_CODE
        if at < end:
            code = keys_N[at] >> shift & mask
        if new_at < new_end:
            new_code = new_keys_N[new_at] >> shift & mask
        least = min(code, new_code)
        while at < end and keys_N[at] >> shift & mask == least:
            at += 1
        while new_at < new_end and new_keys_N[new_at] >> shift & mask == least:
            new_at += 1
        listed_K3[count, 0] = least
        listed_K3[count, 1] = at
        listed_K3[count, 2] = new_at
        count += 1
    return count


@njit(cache=True, nogil=True, _nrt=False)
def _best_of_row(
    base: Segment, overlay: Segment, sieve: Sieve, range_4: Array, row: int, prefix: int, begun: float,
    log_probs_K: Array, bits: int, shift: int, repeated_X: Array, listed_K3: Array,
    scores_C: Array, prefix_C: Array, row_C: Array, count: int,
) -> int:  # fmt: skip
    """Put the allowed children of one row among the best; return how many these are then.

    At first, codes are gone through in two sweeps, as many of the likeliest as are wanted before the others: where
    these are enough, no entry has to be looked at for the rest. What is kept is the same in any order.
    """
    keys_N, starts_P, bucket_shift = base.keys_N, base.starts_P, base.bucket_shift
    new_keys_N, size = overlay.keys_N, len(scores_C)
    first = last = range_4[0]
    new_first = new_last = range_4[2]
    num_listed, sweeps, likely = len(log_probs_K), 1, -np.inf
    by_code = 2 * (range_4[1] - first + range_4[3] - new_first) > num_listed
    if not by_code:
        num_listed = _list_codes(keys_N, new_keys_N, range_4, shift, (1 << bits) - 1, listed_K3)
    elif count == 0:
        sweeps, likely = 2, _least_of_best(log_probs_K, scores_C)
    for turn in range(sweeps * num_listed):
        place = turn if turn < num_listed else turn - num_listed
        code = place
        if not by_code:
            first, new_first = last, new_last
            code, last, new_last = listed_K3[place]
        elif sweeps == 2 and (log_probs_K[code] >= likely) != (turn < num_listed):
            continue
        score = begun + log_probs_K[code]
        if score != score:  # not a number
            score = -np.inf
        child = prefix << bits | code
        if count == size and not _is_worse(
            scores_C[0], prefix_C[0], row_C[0], score, child, row
        ):  # fmt: skip
            continue
        if by_code:
            first = last = range_4[1]
            first_key, last_key = child << shift, child << shift | ((1 << shift) - 1)
            if range_4[0] < last:
                first, last = _between(keys_N, starts_P, bucket_shift, first_key, last_key)
            new_first = _lower_bound(new_keys_N, first_key, range_4[2], range_4[3])
            new_last = new_first
            while new_last < range_4[3] and new_keys_N[new_last] <= last_key:
                new_last += 1
        if (
            _first_passing(base, first, last, sieve, repeated_X) < last
            or _first_passing(overlay, new_first, new_last, sieve, repeated_X) < new_last
        ):
            count = _offer(scores_C, prefix_C, row_C, count, score, child, row)
    return count


@njit(cache=True, nogil=True, _nrt=False)
def best_children(
    base: Segment, overlay: Segment, sieve: Sieve, prefixes_W: Array, all_bits: int, below: int,
    bits: int, order_W: Array, log_probs_W: Array, log_probs_WK: Array, most_W: Array,
    repeated_WX: Array, listed_K3: Array, range_4: Array,
    scores_C: Array, prefix_C: Array, row_C: Array, code_C: Array,
) -> int:  # fmt: skip
    """Fill in the best allowed children of all rows, by (prefix, row); return how many there are.

    Rows are gone through in `order_W`, best first, so that few children have to be looked for; one whose greatest sum,
    of `most_W`, is worse than all that are kept is passed over. Where a row has more entries than half the codes, its
    codes are gone through, else its entries. A score that is no number ranks last, and is filled in as it is.
    """
    count = 0
    for row in order_W:
        if count == len(scores_C) and most_W[row] < scores_C[0]:
            continue
        _fill_range(base, overlay, prefixes_W[row], all_bits, below, range_4)
        if range_4[0] == range_4[1] and range_4[2] == range_4[3]:
            continue
        count = _best_of_row(
            base, overlay, sieve, range_4, row, prefixes_W[row], log_probs_W[row],
            log_probs_WK[row], bits, below - bits, repeated_WX[row], listed_K3,
            scores_C, prefix_C, row_C, count,
        )  # fmt: skip
    _sort_best(row_C, prefix_C, count)
    for at in range(count):
        row, code = row_C[at], prefix_C[at] & ((1 << bits) - 1)
        code_C[at], scores_C[at] = code, log_probs_W[row] + log_probs_WK[row, code]
    return count


@njit(cache=True, nogil=True)
def locate(
    base: Segment, overlay: Segment, sieve: Sieve, keys_C: Array, found_C: Array, new_C: Array
) -> None:
    """Fill in where each key's passing entry is in either segment, -1 where it is not."""
    nothing_X = np.empty(0, np.int64)
    for one in range(len(keys_C)):
        key = keys_C[one]
        found_C[one] = new_C[one] = -1
        if not 0 <= key >> base.bucket_shift < len(base.starts_P) - 1:
            continue
        at = _first_at_least(base, key)
        if at < len(base.keys_N) and base.keys_N[at] == key and _passes(base, at, sieve, nothing_X):
            found_C[one] = at
        at = _first_at_least(overlay, key)
        if (
            at < len(overlay.keys_N)
            and overlay.keys_N[at] == key
            and _passes(overlay, at, sieve, nothing_X)
        ):
            new_C[one] = at


@njit(cache=True, nogil=True)
def any_passes(base: Segment, overlay: Segment, sieve: Sieve) -> bool:
    """Return whether any entry passes."""
    nothing_X = np.empty(0, np.int64)
    return _any_passes(base, 0, len(base.keys_N), overlay, 0, len(overlay.keys_N), sieve, nothing_X)


@njit(cache=True, nogil=True)
def passing(segment: Segment, sieve: Sieve, found_C: Array) -> int:
    """Return how many entries pass, and fill in where the first of them are."""
    nothing_X, count, at = np.empty(0, np.int64), 0, 0
    while True:
        at = _first_passing(segment, at, len(segment.keys_N), sieve, nothing_X)
        if at == len(segment.keys_N):
            return count
        if count < len(found_C):
            found_C[count] = at
        count += 1
        at += 1
