"""Allocation without Kafka: which places are given, whoever gives them, whatever dies on the way."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.settings import KafkaSettings
from models.allocation import Allocator
from streams.catalogue import upload_position
from streams.codec import decode, decode_dead_letter
from streams.events import CodeAllocated, CodesComputed, SemanticIdAssigned, to_json
from streams.topics import ALLOCATIONS, ASSIGNMENTS, Topic
from workers.allocating import AllocateLoop
from workers.allocation_log import AllocationLog
from workers.faust_app import Outgoing

CAPACITY = 4
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


class KeptLog(AllocationLog):
    """Reads its places from the records published so far."""

    def __init__(self, published: list[Outgoing]) -> None:
        super().__init__(KafkaSettings(), disambiguation_size=CAPACITY)
        self._published = published
        self.caught_up = 0

    def catch_up(self, partitions: Collection[int]) -> None:
        self.caught_up += 1
        for partition in partitions:
            self._allocators.setdefault(partition, Allocator())
        for record in of(self._published, ALLOCATIONS):
            if record.partition is not None and record.partition in partitions:
                self.take(record.partition, record.value)


class LossyPublisher:
    """Stores records, or only some of them and then dies."""

    def __init__(self, log: list[Outgoing]) -> None:
        self.log = log
        self.survivors: set[int] | None = None

    async def publish(self, records: Iterable[Outgoing]) -> None:
        if self.survivors is None:
            self.log += records
            return
        self.log += [each for at, each in enumerate(records) if at in self.survivors]
        raise ConnectionError("the process died here")


class Worker:
    """An allocate loop at some offset of the log of codes."""

    def __init__(self, published: list[Outgoing], codes: list[bytes]) -> None:
        self.publisher = LossyPublisher(published)
        self.log = KeptLog(published)
        publisher: Any = self.publisher
        self.loop = AllocateLoop(self.log, publisher)
        self.next_offset = 0
        self._codes = codes

    def work(self, size: int) -> None:
        end = min(self.next_offset + size, len(self._codes))
        batch = [event(self._codes[at], offset=at) for at in range(self.next_offset, end)]
        asyncio.run(self.loop.handle(batch))
        self.next_offset = end


def of(log: list[Outgoing], topic: Topic) -> list[Outgoing]:
    return [record for record in log if record.topic.name == topic.name]


def event(value: bytes | None, *, offset: int = 0, partition: int = 0) -> Any:
    message = SimpleNamespace(partition=partition, offset=offset, key=b"k", value=value)
    return SimpleNamespace(value=value, message=message, headers={})


def computed(video_id: str, code: int = 5, *, position: int = 3) -> bytes:
    return to_json(
        CodesComputed(
            title="",
            video_id=video_id,
            codes=(code,),
            codebook_version=1,
            embedding_f16="",
            upload_time_ms=1,
            upload_append_time_ms=2,
            upload_position=position,
        )
    )


def places(log: list[Outgoing]) -> list[tuple[str, tuple[int, ...]]]:
    """Video and semantic ID of every assignment."""
    found = (decode(SemanticIdAssigned, record.value) for record in of(log, ASSIGNMENTS))
    return [(each.video_id, each.semantic_id) for each in found]


def test_videos_with_the_same_codes_get_places_in_their_order() -> None:
    log: list[Outgoing] = []
    Worker(log, [computed("a"), computed("b"), computed("a"), computed("c", 6)]).work(4)
    assert places(log) == [("a", (5, 0)), ("b", (5, 1)), ("a", (5, 0)), ("c", (6, 0))]
    stored = of(log, ALLOCATIONS)
    assert [(each.key, each.partition) for each in stored] == [
        (b"1:5#0", 0), (b"1:5#1", 0), (b"1:6#0", 0),
    ]  # fmt: skip
    assert decode(CodeAllocated, stored[1].value).video_id == "b"


def test_assignment_says_in_its_header_which_upload_it_answers() -> None:
    log: list[Outgoing] = []
    Worker(log, [computed("a", position=7)]).work(1)
    (record,) = of(log, ASSIGNMENTS)
    assert record.key == b"1:a"
    assert upload_position(record.headers.items()) == 7


def test_video_beyond_the_capacity_and_poison_become_dead_letters() -> None:
    log: list[Outgoing] = []
    Worker(log, [*map(computed, "abcde"), b"{", computed("a")]).work(7)
    assert [each for each, _ in places(log)] == ["a", "b", "c", "d", "a"]
    letters = [decode_dead_letter(each.value) for each in log if "dead" in each.topic.name]
    assert [(each.topic, each.offset, each.reason) for each in letters] == [
        ("video.codes", 4, "codes_full"), ("video.codes", 5, "invalid_json"),
    ]  # fmt: skip


def test_log_is_read_again_only_where_somebody_else_handled_records() -> None:
    log: list[Outgoing] = []
    codes = [*map(computed, "abc")]
    first, second = Worker(log, codes), Worker(log, codes)
    first.work(1)
    second.next_offset = 1
    second.work(1)
    first.next_offset = 2
    first.work(1)
    first.next_offset = 0
    first.work(3)  # a replay
    assert (first.log.caught_up, second.log.caught_up) == (2, 1)
    assert set(places(log)) == {("a", (5, 0)), ("b", (5, 1)), ("c", (5, 2))}


STEPS = st.one_of(
    st.tuples(st.just("work"), st.integers(0, 1), st.integers(1, 4)),
    st.tuples(st.just("die"), st.integers(0, 1), st.integers(1, 4), st.sets(st.integers(0, 8))),
    st.tuples(st.just("take over"), st.integers(0, 1)),
)


@settings(deadline=None, max_examples=120)
@given(
    codes=st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(1, 2)), max_size=20),
    steps=st.lists(STEPS, max_size=20),
)
def test_two_workers_racing_and_dying_give_each_video_the_place_of_its_first_appearance(
    codes: list[tuple[str, int]], steps: list[Any]
) -> None:
    """The one that does not own the partition goes on as a zombie: it publishes, and cannot commit."""
    log: list[Outgoing] = []
    values = [computed(video_id, code) for video_id, code in codes]
    workers = [Worker(log, values), Worker(log, values)]
    owner = committed = 0
    for kind, number, *more in steps:
        if kind == "take over":
            owner = number
            workers[owner].next_offset = committed
        elif kind == "work":
            workers[number].work(more[0])
        else:
            workers[number].publisher.survivors = more[1]
            with pytest.raises(ConnectionError):
                workers[number].work(more[0])
            workers[number] = Worker(log, values)
            workers[number].next_offset = committed
        if number == owner:
            committed = max(committed, workers[number].next_offset)
    last = Worker(log, values)
    last.next_offset = committed
    last.work(len(values))

    assert set(places(log)) == expected_places(codes)
    stored = [decode(CodeAllocated, record.value) for record in of(log, ALLOCATIONS)]
    by_key = {(each.codes, each.disambiguation_code): each.video_id for each in stored}
    assert len({(each.codes, each.disambiguation_code, each.video_id) for each in stored}) == len(
        by_key
    )


def expected_places(codes: list[tuple[str, int]]) -> set[tuple[str, tuple[int, ...]]]:
    """The k-th video of each code tuple has place k; those beyond the capacity have none."""
    rows: dict[int, list[str]] = {}
    for video_id, code in codes:
        row = rows.setdefault(code, [])
        if video_id not in row:
            row.append(video_id)
    return {
        (video_id, (code, place))
        for code, row in rows.items()
        for place, video_id in enumerate(row[:CAPACITY])
    }
