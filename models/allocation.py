"""Hands out disambiguation codes, so that no two videos share a semantic ID; knows nothing of where its state is kept.

Under each code tuple the videos stand in a row, first come first served; a video's place is its disambiguation code. A
place is never given away again, so a semantic ID means one video for as long as its codebook lives.
"""

from __future__ import annotations

from infra.errors import DecodeError

CodeTuple = tuple[int, ...]


class Allocator:
    """Who holds which disambiguation code under which code tuple.

    `state` may be rebuilt at any time: `restore` the tuples' rows, each as it was last stored.
    """

    def __init__(self) -> None:
        self._rows: dict[tuple[int, CodeTuple], tuple[str, ...]] = {}

    def restore(self, codebook_version: int, codes: CodeTuple, video_ids: tuple[str, ...]) -> None:
        """Take a stored row; a later one for the same codes replaces it."""
        self._rows[codebook_version, codes] = video_ids

    def row(self, codebook_version: int, codes: CodeTuple) -> tuple[str, ...]:
        """Return the videos under these codes, in the order of their disambiguation codes."""
        return self._rows.get((codebook_version, codes), ())

    def allocate(
        self, codebook_version: int, codes: CodeTuple, video_id: str, *, capacity: int
    ) -> tuple[int, bool]:
        """Return the video's disambiguation code, and whether the row grew; the same video always gets the same.

        Raises:
            DecodeError: with reason `codes_full`, when `capacity` other videos hold all codes there are.
        """
        row = self.row(codebook_version, codes)
        if video_id in row:
            return row.index(video_id), False
        if len(row) >= capacity:
            raise DecodeError(
                f"all {capacity} disambiguation codes under {codes} are taken; raise disambiguation_size "
                "at the next bootstrap, or remove the near-copies this video belongs to",
                "codes_full",
            )
        self._rows[codebook_version, codes] = (*row, video_id)
        return len(row), True
