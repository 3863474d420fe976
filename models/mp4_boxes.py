"""The boxes at the top level of an MP4, for saying what is wrong with one; knows nothing of what most of them hold."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

_HEADER_BYTES = 8
_LARGE_HEADER_BYTES = 16  # a length of 1 says that the real one follows in 64 bits
_BOXES_MAX = 10_000
_INDEX_BYTES_MAX = 1 << 24


class Box(NamedTuple):
    """A box as its header describes it: it may claim to end after the file does."""

    name: bytes
    start: int
    end: int


def is_mp4(file: BinaryIO) -> bool:
    """Return whether a file begins as an MP4 does."""
    return next(_boxes(file, _size(file)), Box(b"", 0, 0)).name == b"ftyp"


def is_cut(file: BinaryIO) -> bool:
    """Return whether a file begins as an MP4, and ends before its last box does or has no index."""
    size = _size(file)
    boxes = list(_boxes(file, size)) if is_mp4(file) else []
    return bool(boxes) and (boxes[-1].end > size or b"moov" not in {box.name for box in boxes})


def num_tracks(file: BinaryIO) -> int:
    """Return about how many streams an MP4 announces, 0 for anything else."""
    if not is_mp4(file):
        return 0
    for box in _boxes(file, _size(file)):
        if box.name == b"moov":
            file.seek(box.start)
            return file.read(min(box.end - box.start, _INDEX_BYTES_MAX)).count(b"tkhd")
    return 0


def _size(file: BinaryIO) -> int:
    return file.seek(0, 2)


def _boxes(file: BinaryIO, size: int) -> Iterator[Box]:
    start = 0
    for _ in range(_BOXES_MAX):
        if start >= size:
            return
        file.seek(start)
        header = file.read(_LARGE_HEADER_BYTES)
        length = int.from_bytes(header[:4], "big")
        if length == 1:
            length = int.from_bytes(header[8:16], "big")
        if length < _HEADER_BYTES:  # 0 says: until the end
            length = size - start
        yield Box(header[4:8], start, start + length)
        start += length
