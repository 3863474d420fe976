"""The sealer's view of `video.semantic_ids`: what to write beside a video's id; knows nothing of shards.

A convenience for readers of shards, not a promise: a video without a SID when its watch is sealed stays without one in
the row, and training looks it up again.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec
from confluent_kafka import Message
from msgspec import Struct

from infra.log import get_logger
from infra.settings import KafkaSettings
from streams.client import TopicReader
from streams.topics import SEMANTIC_IDS

log = get_logger()


class VideoLabel(NamedTuple):
    """What a row says about a video beside its id."""

    semantic_id: tuple[int, ...] | None
    channel: str | None


class _Assigned(Struct):
    """The part of `SemanticIdAssigned` that is needed here."""

    video_id: str
    codes: tuple[int, ...]
    disambiguation_code: int
    codebook_version: int
    channel: str = ""


_decode = msgspec.json.Decoder(_Assigned).decode


class VideoLabels:
    """Labels under the newest codebook_version seen, kept up to date by `poll`.

    Attributes:
        by_video: video_id to label.
        codebook_version: of all semantic IDs in it; 0 while there are none.
    """

    def __init__(self, settings: KafkaSettings) -> None:
        self.by_video: dict[str, VideoLabel] = {}
        self.codebook_version = 0
        self._video_of_key: dict[bytes, str] = {}
        self._reader = TopicReader(settings, [SEMANTIC_IDS])
        for _, message in self._reader.read_to_end():
            self._apply(message)

    def poll(self) -> None:
        """Take in what was assigned or removed since the last call, without waiting for more."""
        while found := self._reader.poll(timeout_s=0):
            for _, message in found:
                self._apply(message)

    def _apply(self, message: Message) -> None:
        key, value = message.key() or b"", message.value()
        if value is None:
            removed = self._video_of_key.pop(key, None)
            if removed is not None:
                self.by_video.pop(removed, None)
            return
        try:
            found = _decode(value)
        except msgspec.DecodeError as error:
            log.warning("semantic_id_skipped", offset=message.offset(), error=str(error))
            return
        if found.codebook_version < self.codebook_version:
            return
        if found.codebook_version > self.codebook_version:
            self.by_video.clear()
            self._video_of_key.clear()
            self.codebook_version = found.codebook_version
        self._video_of_key[key] = found.video_id
        self.by_video[found.video_id] = VideoLabel(
            (*found.codes, found.disambiguation_code), found.channel or None
        )

    def close(self) -> None:
        """Leave the brokers."""
        self._reader.close()
