from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator

import pytest

from infra.errors import TransientError
from infra.kafka.broker import LocalBroker
from infra.settings import KafkaSettings
from streams.admin import create_topics
from streams.client import TopicReader, flush, producer, send, wait_until
from streams.codec import decode
from streams.events import VideoServable
from streams.topics import SERVABLE, UPLOADS

pytestmark = pytest.mark.integration


@pytest.fixture
def settings(broker: LocalBroker) -> KafkaSettings:
    """Return settings with topics of the test's own, of one partition."""
    settings = KafkaSettings(
        bootstrap_servers=broker.bootstrap_servers,
        topic_prefix=f"t{uuid.uuid4().hex[:8]}.",
        partitions=1,
    )
    create_topics(settings)
    return settings


def servable(number: int) -> VideoServable:
    return VideoServable(
        video_id=f"v-{number}",
        codebook_version=1,
        semantic_id=(number,),
        replica="r",
        servable_time_ms=number,
        upload_append_time_ms=0,
    )


def send_plain(settings: KafkaSettings, numbers: range) -> None:
    client = producer(settings)
    for number in numbers:
        send(client, settings, SERVABLE, f"v-{number}", servable(number))
    flush(client)


class Transactions:
    """A transactional producer of numbered events."""

    def __init__(self, settings: KafkaSettings) -> None:
        self.settings = settings
        self.client = producer(settings, transactional_id="writer")
        self.client.init_transactions(60)

        self.reader = TopicReader(settings, [SERVABLE])

    def begin(self, numbers: range) -> None:
        self.client.begin_transaction()
        for number in numbers:
            send(self.client, self.settings, SERVABLE, f"v-{number}", servable(number))
        self.client.flush(60)

    def end(self, how: Callable[[float], None]) -> None:
        """Commit or abort, and return once the end has moved: a moment after Kafka has confirmed it."""
        before = self.reader.end_offsets()
        how(60)
        wait_until(lambda: self.reader.end_offsets() != before, timeout_s=60, what="the end's move")

    def commit(self, numbers: range) -> None:
        self.begin(numbers)
        self.end(self.client.commit_transaction)

    def abort(self, numbers: range) -> None:
        self.begin(numbers)
        self.end(self.client.abort_transaction)


def numbers_of(settings: KafkaSettings, **options: object) -> list[int]:
    with TopicReader(settings, [SERVABLE], **options) as reader:  # type: ignore[arg-type]
        return list(read(reader))


def read(reader: TopicReader) -> Iterator[int]:
    for topic, message in reader.read_to_end(timeout_s=60):
        assert topic is SERVABLE
        yield decode(VideoServable, message.value()).servable_time_ms


def test_empty_topic_is_read_to_its_end_at_once(settings: KafkaSettings) -> None:
    assert numbers_of(settings) == []


def test_everything_is_read_in_order(settings: KafkaSettings) -> None:
    send_plain(settings, range(3000))
    assert numbers_of(settings) == list(range(3000))


def test_end_is_reached_behind_the_marker_of_a_committed_transaction(
    settings: KafkaSettings,
) -> None:
    Transactions(settings).commit(range(5))
    with TopicReader(settings, [SERVABLE]) as reader:
        assert list(read(reader)) == list(range(5))
        assert reader.next_offsets == reader.end_offsets() == {(SERVABLE.name, 0): 6}


def test_aborted_transaction_is_passed_over(settings: KafkaSettings) -> None:
    transactions = Transactions(settings)
    transactions.abort(range(100, 105))
    transactions.commit(range(3))
    transactions.abort(range(200, 205))
    assert numbers_of(settings) == [0, 1, 2]


def test_open_transaction_is_not_waited_for(settings: KafkaSettings) -> None:
    transactions = Transactions(settings)
    transactions.commit(range(3))
    transactions.begin(range(3, 6))
    with TopicReader(settings, [SERVABLE]) as reader:
        assert list(read(reader)) == [0, 1, 2]
        transactions.end(transactions.client.commit_transaction)
        assert list(read(reader)) == [3, 4, 5]


def test_own_earlier_transaction_is_in_view_once_its_writer_starts_again(
    settings: KafkaSettings,
) -> None:
    first = Transactions(settings)
    for number in range(10):
        first.begin(range(number, number + 1))
        first.client.commit_transaction(60)
        first = Transactions(settings)
        assert numbers_of(settings) == list(range(number + 1))


def test_reader_goes_on_where_it_stopped(settings: KafkaSettings) -> None:
    with TopicReader(settings, [SERVABLE]) as reader:
        for numbers in (range(2), range(2, 2), range(2, 5)):
            send_plain(settings, numbers)
            assert list(read(reader)) == list(numbers)


@pytest.mark.timeout(60)  # less than it would wait for a thousand records
def test_poll_waits_for_the_first_record_and_not_for_more(settings: KafkaSettings) -> None:
    send_plain(settings, range(3))
    with TopicReader(settings, [SERVABLE]) as reader:
        found: list[int] = []
        while len(found) < 3:
            polled = reader.poll(timeout_s=90)
            found += [decode(VideoServable, each.value()).servable_time_ms for _, each in polled]
    assert found == [0, 1, 2]


def test_given_offset_or_the_end_is_where_reading_starts(settings: KafkaSettings) -> None:
    send_plain(settings, range(5))
    assert numbers_of(settings, start={(SERVABLE.name, 0): 3}) == [3, 4]
    with TopicReader(settings, [SERVABLE], from_end=True) as reader:
        assert list(read(reader)) == []
        send_plain(settings, range(5, 7))
        assert list(read(reader)) == [5, 6]


def test_several_topics_are_read_together_and_told_apart(settings: KafkaSettings) -> None:
    send_plain(settings, range(2))
    client = producer(settings)
    send(client, settings, UPLOADS, "v", None)
    flush(client)
    with TopicReader(settings, [SERVABLE, UPLOADS]) as reader:
        found = [(topic.name, message.value() is None) for topic, message in reader.read_to_end()]
    assert sorted(found) == [(SERVABLE.name, False)] * 2 + [(UPLOADS.name, True)]


def test_reading_that_runs_out_of_time_says_so(settings: KafkaSettings) -> None:
    send_plain(settings, range(2))
    with (
        TopicReader(settings, [SERVABLE]) as reader,
        pytest.raises(TransientError, match=r"servable.* was not reached in 0 s"),
    ):
        list(reader.read_to_end(timeout_s=0))
