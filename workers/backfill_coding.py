"""Uploads of a backfill in, codes in `video.codes` out; knows nothing of which uploads those are."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from infra.errors import DecodeError
from infra.settings import Settings
from models.encoders import Content
from streams.client import flush, producer, send
from streams.codes import codes_key
from streams.events import VideoUploaded
from streams.topics import CODES
from workers.decoders import MediaDecoders
from workers.featurize import Featurizer, codes_computed, content_from

# Decoded media held at once; at 8 frames and 60 s of sound one item holds 5 MB.
MEDIA_TOGETHER = 8


class ToCode(NamedTuple):
    """An upload with what it keeps of where it was read."""

    upload: VideoUploaded
    append_time_ms: int
    position: int
    place: str
    """For people, where it is to be named when it fails; else empty."""


class Refused(NamedTuple):
    """An upload that has no codes, and why."""

    wanted: ToCode
    error: DecodeError


class Coder:
    """Featurizes batches as the uploads worker does, media in processes of their own, and publishes their codes."""

    def __init__(self, settings: Settings, featurizer: Featurizer) -> None:
        self._settings = settings
        self._featurizer = featurizer
        self._decoders = MediaDecoders(settings.uploads, frame_size=featurizer.frame_size)
        self._runner = asyncio.Runner()  # the decoders want one event loop
        self._producer = producer(settings.kafka)

    def code(self, wanted: Sequence[ToCode]) -> list[Refused]:
        """Publish the codes of some uploads, and return those that have none.

        Delivery: all is acknowledged on return.
        Blocks: while media are loaded and encoders run.
        """
        refused: list[Refused] = []
        for together in _groups(wanted):
            contents = self._runner.run(self._contents(together))
            usable: list[tuple[ToCode, Content]] = []
            for each, content in zip(together, contents, strict=True):
                if isinstance(content, DecodeError):
                    refused.append(Refused(each, content))
                else:
                    usable.append((each, content))
            refused += self._publish(usable)
        flush(self._producer)
        return refused

    def _publish(self, usable: Sequence[tuple[ToCode, Content]]) -> Iterator[Refused]:
        if not usable:
            return
        results = self._featurizer.featurize([content for _, content in usable])
        for (each, _), result in zip(usable, results, strict=True):
            if isinstance(result, DecodeError):
                yield Refused(each, result)
                continue
            computed = codes_computed(
                each.upload,
                result,
                self._featurizer.codebook,
                append_time_ms=each.append_time_ms,
                position=each.position,
            )
            key = codes_key(computed.codebook_version, computed.codes)
            send(self._producer, self._settings.kafka, CODES, key, computed)

    async def _contents(self, wanted: Sequence[ToCode]) -> list[Content | DecodeError]:
        return await asyncio.gather(*(self._content(each.upload) for each in wanted))

    async def _content(self, upload: VideoUploaded) -> Content | DecodeError:
        try:
            media = (
                None if upload.media_uri is None else await self._decoders.load(upload.media_uri)
            )
            return content_from(upload, media, self._settings.uploads)
        except DecodeError as error:
            return error

    def close(self) -> None:
        """End the decoders."""
        self._decoders.close()
        self._runner.close()


def _groups(wanted: Sequence[ToCode]) -> Iterator[list[ToCode]]:
    yield [each for each in wanted if each.upload.media_uri is None]
    with_media = [each for each in wanted if each.upload.media_uri is not None]
    for start in range(0, len(with_media), MEDIA_TOGETHER):
        yield with_media[start : start + MEDIA_TOGETHER]
