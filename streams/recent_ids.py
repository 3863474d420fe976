"""Whether an event was delivered before, within a bounded window of a partition's offsets; knows nothing of Kafka."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

ROOM = 4
"""Places for each fingerprint, so that a search ends after one step or two."""


class RecentIds:
    """The events of the last `window` to twice `window` offsets, in two generations of fingerprints.

    What it answers is a function of the records from `begin_of(offset)` on, so a sealer that starts at an offset reads
    those once more and answers as one that never stopped. Fingerprints have 64 bits: an event is taken for another one
    once in some 1e13.
    """

    __slots__ = ("_begin", "_new", "_old", "window")

    def __init__(self, window: int) -> None:
        self.window = window
        self._begin = 0
        self._old = self._empty()
        self._new = self._empty()

    def _empty(self) -> npt.NDArray[np.uint64]:
        return np.zeros(1 << (ROOM * self.window - 1).bit_length(), np.uint64)

    def begin_of(self, offset: int) -> int:
        """Return the first offset that decides what is a duplicate at `offset`."""
        return max(0, offset // self.window - 1) * self.window

    def take(
        self, offsets: npt.NDArray[np.int64], fingerprints: npt.NDArray[np.uint64]
    ) -> npt.NDArray[np.bool_]:
        """Remember events; return which are duplicates of one in the window. Offsets only grow."""
        is_duplicate = np.zeros(len(offsets), np.bool_)
        at = 0
        while at < len(offsets):
            self._turn(int(offsets[at]))
            end = int(np.searchsorted(offsets, self._begin + self.window))
            _take(self._old, self._new, fingerprints[at:end], is_duplicate[at:end])
            at = end
        return is_duplicate

    def _turn(self, offset: int) -> None:
        """Begin the generation of this offset, if it is a new one."""
        begin = offset - offset % self.window
        if begin == self._begin:
            return
        is_next = begin == self._begin + self.window
        self._old = self._new if is_next else self._empty()
        self._new = self._empty()
        self._begin = begin


@njit(cache=True, nogil=True)
def _take(old: Any, new: Any, fingerprints: Any, is_duplicate: Any) -> None:
    mask = np.uint64(len(new) - 1)
    for at in range(len(fingerprints)):
        wanted = fingerprints[at]
        place = _place(new, wanted, mask)
        if new[place] == wanted:
            is_duplicate[at] = True
        else:
            new[place] = wanted
            is_duplicate[at] = old[_place(old, wanted, mask)] == wanted


@njit(cache=True, nogil=True)
def _place(table: Any, wanted: Any, mask: Any) -> Any:
    """Return where the fingerprint is, or would be."""
    place = wanted & mask
    while table[place] != wanted and table[place] != 0:
        place = (place + np.uint64(1)) & mask
    return place
