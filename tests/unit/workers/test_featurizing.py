"""What is made of one record of `video.uploads`, without Kafka, encoders and media."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from infra.errors import DecodeError
from infra.settings import UploadSettings
from models.codebook import CodebookManifest
from models.encoders import Content
from models.media import Media
from models.onnx_quantizer import QuantizedBatch
from streams.codec import decode, decode_dead_letter
from streams.events import CodesComputed, DeadLetter, VideoRemoved, VideoUploaded, to_json
from streams.topics import ASSIGNMENTS, CODES
from workers.faust_app import Outgoing
from workers.featurizing import MEDIA_IN_HAND_MAX, FeaturizeLoop


class FakeFeaturizer:
    """Codes a text by its length, and frames by 99; refuses the text `nan`."""

    codebook = CodebookManifest(
        codebook_version=2,
        codebook_sizes=(128,),
        disambiguation_size=4,
        embedding_dim=2,
        encoders_sha256="",
        quantizer={},
        card={},
        files={},
    )

    def featurize(self, contents: list[Content]) -> list[QuantizedBatch | DecodeError]:
        return [self._one(content) for content in contents]

    def _one(self, content: Content) -> QuantizedBatch | DecodeError:
        if content.text == "nan":
            return DecodeError("not finite", "nan_embedding")
        code = len(content.text) if content.frames is None else 99
        return QuantizedBatch(
            np.array([[code]]), np.ones((1, 2), np.float16), np.zeros(1, np.float32), np.array([7])
        )


class FakeDecoders:
    """Gives each address a frame, once it may; the address `bad` is refused."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.loading = self.most_loading = 0

    async def load(self, uri: str, *, slots: asyncio.Semaphore) -> Media:
        if uri == "bad":
            raise DecodeError("not a film", "media_undecodable")
        await slots.acquire()
        self.loading += 1
        self.most_loading = max(self.most_loading, self.loading)
        await self.go_on.wait()
        self.loading -= 1
        return Media(np.zeros((1, 224, 224, 3), np.uint8), None, "")


class FakePublisher:
    """Remembers what was published."""

    def __init__(self) -> None:
        self.log: list[Outgoing] = []

    async def publish(self, records: Iterable[Outgoing]) -> None:
        self.log += records


class Loop:
    """The featurize loop among fakes."""

    def __init__(self) -> None:
        self.decoders = FakeDecoders()
        publisher = FakePublisher()
        self.log = publisher.log
        fakes: list[Any] = [FakeFeaturizer(), self.decoders, publisher]
        self.handle = FeaturizeLoop(UploadSettings(), *fakes, codebook_versions=(1, 2)).handle

    @property
    def letters(self) -> list[DeadLetter]:
        letters = [each for each in self.log if each.topic.name.endswith("dead_letters")]
        return [decode_dead_letter(each.value) for each in letters]

    @property
    def codes(self) -> list[CodesComputed]:
        return [decode(CodesComputed, each.value) for each in self.log if each.topic == CODES]


def event(value: bytes | None, *, offset: int = 0, **headers: bytes) -> Any:
    message = SimpleNamespace(partition=0, offset=offset, timestamp=1.5, key=b"k", value=value)
    return SimpleNamespace(value=value, message=message, headers=headers)


def upload(title: str, **fields: object) -> bytes:
    return to_json(
        VideoUploaded.model_validate(
            {"event_time_ms": 1, "video_id": title, "title": title, **fields}
        )
    )


async def test_upload_becomes_codes_under_the_key_that_equal_codes_share() -> None:
    loop = Loop()
    await loop.handle(event(upload("abc"), offset=7))
    ((record,), (codes,)) = (loop.log, loop.codes)
    assert record.key == b"2:3"
    assert (codes.video_id, codes.codes, codes.cluster_id) == ("abc", (3,), 7)
    assert (codes.upload_position, codes.upload_append_time_ms) == (7, 1500)


async def test_record_that_was_sent_again_keeps_its_first_position() -> None:
    loop = Loop()
    await loop.handle(event(upload("abc"), offset=7, upload_position=b"3"))
    assert [each.upload_position for each in loop.codes] == [3]


async def test_removal_retires_the_video_under_every_codebook_version() -> None:
    loop = Loop()
    await loop.handle(event(to_json(VideoRemoved(event_time_ms=1, video_id="v")), offset=9))
    assert [(each.topic, each.key, each.value) for each in loop.log] == [
        (ASSIGNMENTS, b"1:v", None),
        (ASSIGNMENTS, b"2:v", None),
    ]
    assert all(each.headers == {"upload_position": b"9"} for each in loop.log)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"{", "invalid_json"),
        (None, "empty"),
        (upload("nan"), "nan_embedding"),
        (upload("v", event_time_ms=1500 + 90_000_000), "event_time_in_future"),
        (upload("v", upload_time_ms=1500 + 90_000_000), "event_time_in_future"),
        (upload("v", media_uri="bad"), "media_undecodable"),
    ],
)
async def test_poison_becomes_a_dead_letter_with_the_raw_record(
    value: bytes | None, reason: str
) -> None:
    loop = Loop()
    await loop.handle(event(value, offset=5))
    (letter,) = loop.letters
    assert (letter.topic, letter.offset, letter.reason) == ("video.uploads", 5, reason)
    assert (value is None) == (letter.value_base64 is None)
    assert base64.b64decode(letter.value_base64 or "") == (value or b"")
    assert len(loop.log) == 1


async def test_upload_with_media_is_coded_by_what_was_decoded() -> None:
    loop = Loop()
    await loop.handle(event(upload("abc", media_uri="clip")))
    assert [each.codes for each in loop.codes] == [(99,)]


async def test_media_that_takes_its_time_holds_up_no_text() -> None:
    loop = Loop()
    loop.decoders.go_on.clear()
    with_media = [
        asyncio.create_task(loop.handle(event(upload(f"m{n}", media_uri="clip"))))
        for n in range(2 * MEDIA_IN_HAND_MAX)
    ]
    await loop.handle(event(upload("abc")))
    assert [each.video_id for each in loop.codes] == ["abc"]
    loop.decoders.go_on.set()
    await asyncio.gather(*with_media)
    assert len(loop.codes) == 1 + len(with_media)
    assert loop.decoders.most_loading == MEDIA_IN_HAND_MAX
