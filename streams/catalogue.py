"""The catalogue: a view of `video.semantic_ids` that settles to one state however often or in what order it is read.

Knows nothing of tries, prompts or Kafka clients: it is fed the key and value of each record.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from infra.errors import DecodeError
from streams.codec import decode
from streams.events import SemanticIdAssigned

POSITION_HEADER = "upload_position"
Headers = Sequence[tuple[str, bytes | None]]


def semantic_id_key(video_id: str, codebook_version: int) -> str:
    """Return the key of a video's record in `video.semantic_ids`."""
    return f"{codebook_version}:{video_id}"


def parse_semantic_id_key(key: bytes | None) -> tuple[str, int]:
    """Return the video id and codebook_version behind a key.

    Raises:
        DecodeError: the key is not one that `semantic_id_key` makes.
    """
    version, separator, video_id = (key or b"").decode(errors="replace").partition(":")
    if not separator or not version.isdigit() or not video_id:
        raise DecodeError(f"key {key!r} is not 'codebook_version:video_id'", "invalid_key")
    return video_id, int(version)


def removed_position(headers: Headers | None) -> int | None:
    """Return which upload a tombstone answers, as its header says; None where there is no such header."""
    for name, value in headers or ():
        if name == POSITION_HEADER and value is not None and value.isdigit():
            return int(value)
    return None


@dataclass(frozen=True)
class CatalogueChange:
    """What one record changed: `current` is None for a removal, `previous` is None for a new video."""

    video_id: str
    previous: SemanticIdAssigned | None
    current: SemanticIdAssigned | None


class Catalogue:
    """The live videos of one codebook_version.

    What answers an older upload than the newest one seen of its video, assignment or removal, is ignored, so that
    edits and removals overtaking each other on the way settle to the newest. Positions are offsets in the partition of
    the video's own uploads, so those of one video compare.

    What compaction can still do: a view built after a tombstone was compacted away never learns of that removal. If an
    assignment that the tombstone overtook is still behind it in the log, such a view holds the removed video until
    it is removed again.
    """

    def __init__(self, codebook_version: int) -> None:
        self.codebook_version = codebook_version
        self.videos: dict[str, SemanticIdAssigned] = {}
        self._newest_positions: dict[str, int] = {}  # of removed videos, too

    def __len__(self) -> int:
        return len(self.videos)

    def get(self, video_id: str) -> SemanticIdAssigned | None:
        """Return what is known of a live video."""
        return self.videos.get(video_id)

    def apply(
        self, key: bytes | None, value: bytes | None, removed_position: int | None = None
    ) -> CatalogueChange | None:
        """Take in one record; return what it changed, or None when it changed nothing.

        Args:
            key: whose video.
            value: its assignment; None removes it.
            removed_position: which upload a removal answers; one that does not say takes effect whenever it is read.

        Raises:
            DecodeError: the record is not a semantic ID assignment.
        """
        video_id, codebook_version = parse_semantic_id_key(key)
        if codebook_version != self.codebook_version:
            return None
        current = None if value is None else decode(SemanticIdAssigned, value)
        position = removed_position if current is None else current.upload_position
        if position is not None:
            if position < self._newest_positions.get(video_id, position):
                return None
            self._newest_positions[video_id] = position
        previous = self.videos.get(video_id)
        if current is not None:
            self.videos[video_id] = current
        elif previous is not None:
            del self.videos[video_id]
        else:
            return None
        return CatalogueChange(video_id, previous, current)
