"""The catalogue: a view of `video.semantic_ids`, whose order per video is the order of what happened to it.

An edit or removal that was overtaken on its way is put right before it gets into that topic (`workers.settling`), so
that a view takes each record as it comes. Knows nothing of tries, prompts or Kafka clients: it is fed the key and value
of each record.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from infra.errors import DecodeError
from streams.codec import decode
from streams.events import SemanticIdAssigned

POSITION_HEADER = "upload_position"
Headers = Iterable[tuple[str, bytes | None]]


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


def upload_position(headers: Headers | None) -> int | None:
    """Return which upload a record answers or repeats, as its header says; None where there is no such header.

    Raises:
        DecodeError: with reason `invalid_position`, when the header is no offset.
    """
    for name, value in headers or ():
        if name != POSITION_HEADER:
            continue
        if value is None or not value.isdigit() or len(value) > len(str(2**63)):
            raise DecodeError(
                f"header {POSITION_HEADER} is {value!r}; expected an offset in digits",
                "invalid_position",
            )
        return int(value)
    return None


def position_header(position: int) -> dict[str, bytes]:
    """Return the header that `upload_position` reads; none for a position below 0, which is of no upload in Kafka."""
    return {POSITION_HEADER: str(position).encode()} if position >= 0 else {}


@dataclass(frozen=True)
class CatalogueChange:
    """What one record changed: `current` is None for a removal, `previous` is None for a new video."""

    video_id: str
    previous: SemanticIdAssigned | None
    current: SemanticIdAssigned | None


class Catalogue:
    """The live videos of one codebook_version: the last record of each says whether it is, and as what."""

    def __init__(self, codebook_version: int) -> None:
        self.codebook_version = codebook_version
        self.videos: dict[str, SemanticIdAssigned] = {}

    def __len__(self) -> int:
        return len(self.videos)

    def get(self, video_id: str) -> SemanticIdAssigned | None:
        """Return what is known of a live video."""
        return self.videos.get(video_id)

    def apply(self, key: bytes | None, value: bytes | None) -> CatalogueChange | None:
        """Take in a video's assignment, or its removal for a value of None; return what it changed, None for nothing.

        Raises:
            DecodeError: the record is not a semantic ID assignment.
        """
        video_id, codebook_version = parse_semantic_id_key(key)
        if codebook_version != self.codebook_version:
            return None
        if value is None:
            removed = self.videos.pop(video_id, None)
            return None if removed is None else CatalogueChange(video_id, removed, None)
        current = decode(SemanticIdAssigned, value)
        previous = self.videos.get(video_id)
        self.videos[video_id] = current
        return CatalogueChange(video_id, previous, current)
