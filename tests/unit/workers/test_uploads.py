"""The uploads worker's rules without Kafka: what is published, in which order, and after which crash."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.settings import KafkaSettings, UploadSettings
from models.allocation import Allocator
from models.codebook import CodebookManifest
from models.encoders import Content
from models.onnx_quantizer import QuantizedBatch
from streams.codec import decode
from streams.events import (
    CodesAllocated,
    CodesComputed,
    DeadLetter,
    SemanticIdAssigned,
    VideoRemoved,
    VideoUploaded,
    to_json,
)
from streams.topics import ALLOCATIONS, CODES, SEMANTIC_IDS, Topic
from workers.allocation_log import AllocationLog
from workers.faust_app import Outgoing
from workers.uploads import UploadsWorker

CAPACITY = 4


class FakeFeaturizer:
    """Codes a text by its length."""

    codebook = CodebookManifest(
        codebook_version=1,
        codebook_sizes=(64,),
        disambiguation_size=CAPACITY,
        embedding_dim=2,
        encoders_sha256="",
        quantizer={},
        card={},
        files={},
    )

    def featurize(self, contents: list[Content]) -> list[QuantizedBatch]:
        return [
            QuantizedBatch(
                np.array([[len(content.text)]]),
                np.ones((1, 2), np.float16),
                np.zeros(1, np.float32),
            )
            for content in contents
        ]


class DyingPublisher:
    """Stores records until it dies, after `lifetime` records; what was stored stays."""

    def __init__(self, log: list[Outgoing], lifetime: int | None = None) -> None:
        self.log = log
        self.lifetime = lifetime

    async def publish(self, records: Iterable[Outgoing]) -> None:
        for record in records:
            if self.lifetime is not None:
                if self.lifetime == 0:
                    raise ConnectionError("the process died here")
                self.lifetime -= 1
            self.log.append(record)


class RestoredFromMemory(AllocationLog):
    """Reads its rows from the records published so far."""

    def __init__(self, log: list[Outgoing]) -> None:
        super().__init__(KafkaSettings(), disambiguation_size=CAPACITY)
        self._log = log

    def restore(self, partitions: set[int]) -> None:
        for partition in partitions:
            allocator = Allocator()
            for record in of(self._log, ALLOCATIONS):
                row = decode(CodesAllocated, record.value)
                if record.partition == partition:
                    allocator.restore(row.codebook_version, row.codes, row.video_ids)
            self._owned[partition] = allocator


def of(log: list[Outgoing], topic: Topic) -> list[Outgoing]:
    return [record for record in log if record.topic.name == topic.name]


def worker(log: list[Outgoing], *, lifetime: int | None = None) -> UploadsWorker:
    featurizer: Any = FakeFeaturizer()
    publisher: Any = DyingPublisher(log, lifetime)
    return UploadsWorker(
        UploadSettings(media_retries=0), featurizer, RestoredFromMemory(log), publisher
    )


def event(value: bytes | None, *, offset: int = 0, partition: int = 0) -> Any:
    message = SimpleNamespace(
        partition=partition, offset=offset, timestamp=1.5, key=b"k", value=value
    )
    return SimpleNamespace(value=value, message=message)


def upload(video_id: str, title: str) -> bytes:
    return to_json(VideoUploaded(event_time_ms=1, video_id=video_id, title=title))


def computed(video_id: str, codes: tuple[int, ...]) -> bytes:
    return to_json(
        CodesComputed(
            title="",
            video_id=video_id,
            codes=codes,
            codebook_version=1,
            embedding_f16="",
            upload_time_ms=1,
            upload_append_time_ms=2,
            upload_position=3,
        )
    )


async def test_upload_becomes_codes_under_the_key_that_equal_codes_share() -> None:
    log: list[Outgoing] = []
    await worker(log).featurize([event(upload("v1", "abc"), offset=7)])
    (record,) = log
    codes = decode(CodesComputed, record.value)
    assert (record.topic, record.key) == (CODES, b"1:3")
    assert (codes.video_id, codes.upload_position, codes.upload_append_time_ms) == ("v1", 7, 1500)


async def test_removal_becomes_a_tombstone_that_says_what_it_answers() -> None:
    log: list[Outgoing] = []
    removed = to_json(VideoRemoved(event_time_ms=1, video_id="v1"))
    await worker(log).featurize([event(removed, offset=9)])
    assert log == [Outgoing(SEMANTIC_IDS, b"1:v1", None, headers={"upload_position": b"9"})]


async def test_poison_between_good_uploads_becomes_a_dead_letter_with_the_raw_record() -> None:
    log: list[Outgoing] = []
    batch = [upload("v1", "a"), b"{", upload("v2", "b")]
    await worker(log).featurize([event(value, offset=i) for i, value in enumerate(batch)])
    assert len(of(log, CODES)) == 2
    (record,) = [each for each in log if each.topic.name.endswith("dead_letters")]
    letter = decode(DeadLetter, record.value)
    assert (letter.topic, letter.offset, letter.reason) == ("video.uploads", 1, "invalid_json")
    assert base64.b64decode(letter.value_base64 or "") == b"{"


async def test_allocation_is_durable_before_any_semantic_id_is_published() -> None:
    log: list[Outgoing] = []
    await worker(log).allocate([event(computed(video_id, (5,))) for video_id in "ab"])
    assert [record.topic.name for record in log] == [ALLOCATIONS.name] + 2 * [SEMANTIC_IDS.name]
    assert decode(CodesAllocated, log[0].value).video_ids == ("a", "b")
    found = [decode(SemanticIdAssigned, record.value) for record in log[1:]]
    assert [each.semantic_id for each in found] == [(5, 0), (5, 1)]


async def test_video_beyond_the_capacity_of_its_codes_becomes_a_dead_letter() -> None:
    log: list[Outgoing] = []
    await worker(log).allocate([event(computed(video_id, (5,))) for video_id in "abcde"])
    assert len(of(log, SEMANTIC_IDS)) == CAPACITY
    letter = decode(DeadLetter, log[-1].value)
    assert (letter.topic, letter.reason) == ("video.codes", "codes_full")


async def test_partition_that_was_given_away_is_read_anew_before_it_is_allocated_from() -> None:
    log: list[Outgoing] = []
    first, second = worker(log), worker(log)
    await first.allocate([event(computed("a", (5,)))])
    first._allocations.drop([0])
    await second.allocate([event(computed("b", (5,)))])
    await first.allocate([event(computed("c", (5,)))])
    found = [decode(SemanticIdAssigned, record.value) for record in of(log, SEMANTIC_IDS)]
    assert [each.disambiguation_code for each in found] == [0, 1, 2]


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@settings(deadline=None, max_examples=50)
@given(
    videos=st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, 2)), max_size=12),
    lifetimes=st.lists(st.integers(0, 8), max_size=5),
    size=st.integers(1, 4),
)
def test_workers_dying_anywhere_still_give_each_video_one_semantic_id(
    videos: list[tuple[str, int]], lifetimes: list[int], size: int
) -> None:
    log: list[Outgoing] = []
    events = [event(computed(video_id, (code,))) for video_id, code in videos]
    batches = [events[start : start + size] for start in range(0, len(events), size)]

    async def work(lifetime: int | None) -> None:
        """Handle what is not yet acknowledged until the end, or until the process dies."""
        running = worker(log, lifetime=lifetime)
        while batches:
            await running.allocate(batches[0])
            batches.pop(0)

    for lifetime in lifetimes:
        try:
            asyncio.run(work(lifetime))
        except ConnectionError:
            continue
    asyncio.run(work(None))

    assigned = [decode(SemanticIdAssigned, record.value) for record in of(log, SEMANTIC_IDS)]
    semantic_ids = {(each.video_id, each.codes): each.semantic_id for each in assigned}
    assert semantic_ids.keys() == {(video_id, (code,)) for video_id, code in videos}
    assert len(set(semantic_ids.values())) == len(semantic_ids)
    for each in assigned:
        assert semantic_ids[each.video_id, each.codes] == each.semantic_id
