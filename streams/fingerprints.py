"""A 64-bit fingerprint of a string's bytes, for compiled code: FNV-1a, then mixed so that its low bits tell as much.

Not keyed: whoever may write to a topic could make two ids that share one, and so have an event of their own dropped.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
from numba import njit

NO_FINGERPRINT: Final = 0
_BASIS, _PRIME = np.uint64(0xCBF29CE484222325), np.uint64(0x100000001B3)
_MIX, _SHIFT = np.uint64(0x9E3779B97F4A7C15), np.uint64(32)


@njit(cache=True, nogil=True)
def fingerprint(buf: npt.NDArray[np.uint8], begin: int, end: int) -> Any:
    """Return the fingerprint of the bytes from `begin` up to `end`; never `NO_FINGERPRINT`."""
    value = _BASIS
    for at in range(begin, end):
        value = (value ^ np.uint64(buf[at])) * _PRIME
    value = (value ^ (value >> _SHIFT)) * _MIX
    value ^= value >> _SHIFT
    return value if value != np.uint64(NO_FINGERPRINT) else np.uint64(1)


def text_fingerprint(text: str) -> int:
    """Return the fingerprint of a string's UTF-8."""
    data = np.frombuffer(text.encode(), np.uint8)
    return int(fingerprint(data, 0, len(data)))
