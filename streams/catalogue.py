"""The catalogue: a view of `video.semantic_ids` that settles to one state however often or in what order it is read.

Knows nothing of tries, prompts or Kafka clients: it is fed the key and value of each record.
"""

from __future__ import annotations

from dataclasses import dataclass

from infra.errors import DecodeError
from streams.codec import decode
from streams.events import SemanticIdAssigned


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


@dataclass(frozen=True)
class CatalogueChange:
    """What one record changed: `current` is None for a removal, `previous` is None for a new video."""

    video_id: str
    previous: SemanticIdAssigned | None
    current: SemanticIdAssigned | None


class Catalogue:
    """The live videos of one codebook_version.

    An assignment made from an older upload than the one already held is ignored, so that edits overtaking each other on
    the way settle to the newest upload.
    """

    def __init__(self, codebook_version: int) -> None:
        self.codebook_version = codebook_version
        self.videos: dict[str, SemanticIdAssigned] = {}

    def __len__(self) -> int:
        return len(self.videos)

    def get(self, video_id: str) -> SemanticIdAssigned | None:
        """Return what is known of a live video."""
        return self.videos.get(video_id)

    def apply(self, key: bytes | None, value: bytes | None) -> CatalogueChange | None:
        """Take in one record; return what it changed, or None when it changed nothing.

        Raises:
            DecodeError: the record is not a semantic ID assignment.
        """
        video_id, codebook_version = parse_semantic_id_key(key)
        if codebook_version != self.codebook_version:
            return None
        previous = self.videos.get(video_id)
        if value is None:
            if previous is None:
                return None
            del self.videos[video_id]
            return CatalogueChange(video_id, previous, None)
        current = decode(SemanticIdAssigned, value)
        if previous is not None and current.upload_position < previous.upload_position:
            return None
        self.videos[video_id] = current
        return CatalogueChange(video_id, previous, current)
