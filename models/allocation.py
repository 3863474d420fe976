"""Hands out disambiguation codes, so that no two videos share a semantic ID; knows nothing of where its state is kept.

Under each code tuple the videos stand in a row, first come first served; a video's place is its disambiguation code. A
place is never given away again, so a semantic ID means one video for as long as its codebook lives.

A row is bytes: 12 of each video's hash, zeros where nobody stands, so a video under codes of its own takes about 140.
Two videos in one row with the same hash would share a semantic ID; with 96 bits that is one chance in 10^23 for a row
of 1,000. Rows are found by such a hash, too; were two tuples ever to share a row, their videos would still differ.
"""

from __future__ import annotations

import hashlib

from infra.errors import DecodeError

CodeTuple = tuple[int, ...]
_HASH_BYTES = 12
_NOBODY = bytes(_HASH_BYTES)


class Allocator:
    """Who holds which disambiguation code under which code tuple; each place may be stored and restored by itself."""

    def __init__(self) -> None:
        self._rows: dict[bytes, bytes] = {}

    def restore(
        self, codebook_version: int, codes: CodeTuple, disambiguation_code: int, video_id: str
    ) -> None:
        """Take a stored place; again makes no difference.

        Raises:
            DecodeError: with reason `place_taken`, when another video holds it.
        """
        at, video = _row_hash(codebook_version, codes), _hash(video_id)
        row = self._rows.get(at, b"")
        if _held(row, disambiguation_code) not in (_NOBODY, video):
            raise DecodeError(
                f"disambiguation code {disambiguation_code} under {codes} of codebook {codebook_version} is stored "
                f"for {video_id!r} and for another video; two semantic IDs are the same",
                "place_taken",
            )
        self._rows[at] = _with(row, disambiguation_code, video)

    def allocate(
        self, codebook_version: int, codes: CodeTuple, video_id: str, *, capacity: int
    ) -> tuple[int, bool]:
        """Return the video's disambiguation code, and whether it is new; the same video always gets the same.

        A new one is the lowest that nobody holds.

        Raises:
            DecodeError: with reason `codes_full`, when `capacity` other videos hold all codes there are.
        """
        at, video = _row_hash(codebook_version, codes), _hash(video_id)
        row = self._rows.get(at, b"")
        place = _find(row, video)
        if place is not None:
            return place, False
        free = _find(row, _NOBODY)
        place = len(row) // _HASH_BYTES if free is None else free
        if place >= capacity:
            raise DecodeError(
                f"all {capacity} disambiguation codes under {codes} are taken; raise disambiguation_size "
                "at the next bootstrap, or remove the near-copies this video belongs to",
                "codes_full",
            )
        self._rows[at] = _with(row, place, video)
        return place, True


def _row_hash(codebook_version: int, codes: CodeTuple) -> bytes:
    return _hash(f"{codebook_version}:{codes}")


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=_HASH_BYTES).digest()


def _held(row: bytes, place: int) -> bytes:
    return row[place * _HASH_BYTES : (place + 1) * _HASH_BYTES] or _NOBODY


def _find(row: bytes, video: bytes) -> int | None:
    for place in range(len(row) // _HASH_BYTES):
        if _held(row, place) == video:
            return place
    return None


def _with(row: bytes, place: int, video: bytes) -> bytes:
    start = place * _HASH_BYTES
    return row[:start].ljust(start, b"\0") + video + row[start + _HASH_BYTES :]
