"""Freed memory back to the system; knows nothing of who freed it."""

from __future__ import annotations

import ctypes

import pyarrow as pa


def release_freed_memory() -> None:
    """Give back what malloc (glibc's; others are left alone) and Arrow's pool keep of what was freed.

    Blocks: for tens of milliseconds per gigabyte.
    """
    pa.default_memory_pool().release_unused()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
