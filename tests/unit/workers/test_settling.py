"""Settling without Kafka: what is written in which order, and where that ends whatever comes in which order."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.errors import TransientError
from infra.settings import KafkaSettings
from streams.catalogue import Catalogue
from streams.codec import decode_dead_letter
from streams.events import CodesComputed
from streams.topics import ASSIGNMENTS
from workers.allocating import assignment
from workers.faust_app import Outgoing
from workers.partition_settler import NewestPositions, PartitionSettler, Settlement
from workers.settling import SettleLoop, retirement


class KeptPartition(PartitionSettler):
    """Writes to a list instead of a broker."""

    def __init__(self, partition: int) -> None:
        super().__init__(KafkaSettings(), partition)
        self.written: list[Settlement] = []

    def open(self) -> Any:
        return None

    def _write(self, client: Any, records: Iterable[Settlement]) -> None:
        self.written += records


class KeptRecords:
    """A publisher that keeps what it is given."""

    def __init__(self) -> None:
        self.records: list[Outgoing] = []

    async def publish(self, records: Iterable[Outgoing]) -> None:
        self.records += records


def assigned(video_id: str, code: int, *, position: int) -> Outgoing:
    codes = CodesComputed(
        title="",
        video_id=video_id,
        codes=(code,),
        codebook_version=1,
        embedding_f16="",
        upload_time_ms=1,
        upload_append_time_ms=2,
        upload_position=position,
    )
    return assignment(codes, 0)


def event(record: Outgoing, *, partition: int = 0) -> Any:
    message = SimpleNamespace(partition=partition, offset=0, key=record.key, value=record.value)
    return SimpleNamespace(value=record.value, message=message, headers=dict(record.headers))


async def settled(*records: Outgoing) -> tuple[list[Settlement], list[Outgoing]]:
    """What is written of some records of one partition, and what else is published."""
    publisher: Any = KeptRecords()
    loop = SettleLoop(KafkaSettings(), publisher)
    partition = KeptPartition(0)
    loop._settlers[0] = partition
    await loop.handle([event(record) for record in records])
    return partition.written, publisher.records


def test_retirement_names_the_video_under_each_codebook_version() -> None:
    records = retirement("v", [1, 3], position=9)
    assert [(each.topic, each.key, each.value) for each in records] == [
        (ASSIGNMENTS, b"1:v", None), (ASSIGNMENTS, b"3:v", None),
    ]  # fmt: skip
    assert all(each.headers == {"upload_position": b"9"} for each in records)


async def test_edit_and_removal_are_written_in_their_order() -> None:
    records = [
        assigned("v", 1, position=3), assigned("v", 2, position=5), *retirement("v", [1], position=8),
    ]  # fmt: skip
    written, _ = await settled(*records)
    assert [(each.key, each.value, each.position) for each in written] == [
        (record.key, record.value, position)
        for record, position in zip(records, (3, 5, 8), strict=True)
    ]


async def test_assignment_that_its_removal_or_a_newer_edit_overtook_is_left_out() -> None:
    written, _ = await settled(
        *retirement("removed", [1], position=8),
        assigned("removed", 1, position=7),
        assigned("edited", 2, position=6),
        assigned("edited", 1, position=5),
        assigned("removed", 3, position=9),  # uploaded anew
        *retirement("removed", [1], position=8),
    )
    assert [(each.key, each.position) for each in written] == [
        (b"1:removed", 8), (b"1:edited", 6), (b"1:removed", 9),
    ]  # fmt: skip


async def test_assignment_from_a_catalogue_is_older_than_any_upload() -> None:
    written, published = await settled(
        assigned("new", 1, position=-1),
        *retirement("removed", [1], position=0),
        assigned("removed", 1, position=-1),
    )
    assert [(each.key, each.value is None) for each in written] == [
        (b"1:new", False), (b"1:removed", True),
    ]  # fmt: skip
    assert published == []


async def test_removal_under_another_codebook_leaves_this_one_alone() -> None:
    written, _ = await settled(*retirement("v", [2], position=8), assigned("v", 1, position=7))
    assert [each.key for each in written] == [b"2:v", b"1:v"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"key": b"v"}, "invalid_key"),
        ({"value": b"{"}, "invalid_json"),
        ({"value": None, "headers": {}}, "no_position"),
        ({"value": None, "headers": {"upload_position": b"x"}}, "invalid_position"),
    ],
)
async def test_record_that_is_no_settlement_becomes_a_dead_letter_and_the_rest_is_written(
    change: dict[str, Any], reason: str
) -> None:
    good = assigned("v", 1, position=3)
    poison = Outgoing(**{**vars(assigned("v", 2, position=9)), **change})
    written, published = await settled(poison, good)
    assert [each.value for each in written] == [good.value]
    letter = decode_dead_letter(published[0].value)
    assert (letter.topic, letter.reason) == (ASSIGNMENTS.name, reason)


VIDEOS = st.sampled_from("abc")
WANTED = st.lists(st.tuples(VIDEOS, st.integers(0, 2)), max_size=12)


@settings(deadline=None, max_examples=100)
@given(events=WANTED, data=st.data())
def test_log_ends_in_the_newest_event_of_each_video_over_any_order_replay_and_crash(
    events: list[tuple[str, int]], data: st.DataObject
) -> None:
    """An event with code 0 is a removal; its position is where it stands. Records are read from a committed offset."""
    wanted = [
        Settlement(
            f"1:{video_id}".encode(),
            None if code == 0 else assigned(video_id, code, position=position).value,
            position,
        )
        for position, (video_id, code) in enumerate(events)
    ]
    order = data.draw(st.permutations(wanted))
    log: list[Settlement] = []
    newest, committed = NewestPositions(), 0
    while committed < len(order):
        batch = order[committed : committed + data.draw(st.integers(1, 4))]
        step = data.draw(
            st.sampled_from(["commit", "crash", "written and crash", "written and lost"])
        )
        if step in ("commit", "written and crash", "written and lost"):
            log += newest.newer(batch)
        if "crash" in step:
            newest = restored(log)
        if step == "commit":
            committed += len(batch)

    catalogue = Catalogue(1)
    for record in log:
        catalogue.apply(record.key, record.value)
    last = {video_id: (position, code) for position, (video_id, code) in enumerate(events)}
    assert {
        video_id: (video.upload_position, *video.codes)
        for video_id, video in catalogue.videos.items()
    } == {video_id: each for video_id, each in last.items() if each[1] != 0}
    for key in {record.key for record in log}:
        positions = [record.position for record in log if record.key == key]
        assert positions == sorted(positions)


def restored(log: Iterable[Settlement]) -> NewestPositions:
    newest = NewestPositions()
    for record in log:
        newest.advance(record.key, record.position)
    return newest


def test_what_says_no_position_is_older_than_any_upload() -> None:
    newest = NewestPositions()
    assert newest.advance(b"1:v", -1)
    assert newest.advance(b"1:v", 0)
    assert not newest.advance(b"1:v", -1)


class Refusing:
    """A transactional producer whose commits fail as told, and then succeed."""

    def __init__(self, *failures: KafkaError) -> None:
        self._failures = list(failures)
        self._open: list[bytes] = []
        self.committed: list[bytes] = []
        self.aborted = 0

    def begin_transaction(self) -> None:
        self._open = []

    def produce(self, topic: str, *, key: bytes, **_: Any) -> None:
        self._open.append(key)

    def commit_transaction(self, timeout_s: float) -> None:
        if self._failures:
            raise KafkaException(self._failures.pop(0))
        self.committed += self._open

    def abort_transaction(self, timeout_s: float) -> None:
        self.aborted += 1


def refusing_settler(*failures: KafkaError) -> tuple[PartitionSettler, Refusing]:
    settler, client = PartitionSettler(KafkaSettings(), 0), Refusing(*failures)
    fake: Any = client
    settler._producer = fake
    return settler, client


def test_transaction_that_must_be_aborted_is_written_again() -> None:
    passing = KafkaError(KafkaError._TIMED_OUT, "try", retriable=True)
    abort = KafkaError(KafkaError._STATE, "abort", txn_requires_abort=True)
    settler, client = refusing_settler(passing, abort, abort)
    settler.settle([Settlement(b"1:v", None, 3)])
    assert (client.aborted, client.committed) == (2, [b"1:v"])


def test_writer_that_was_fenced_raises_and_does_not_try_again() -> None:
    settler, client = refusing_settler(KafkaError(KafkaError._FENCED, "fenced", fatal=True))
    with pytest.raises(TransientError, match="another process may have taken it over"):
        settler.settle([Settlement(b"1:v", None, 3)])
    assert (client.aborted, client.committed) == (0, [])
