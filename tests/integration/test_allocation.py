"""One place per video and one writer per partition, on a real broker: fenced writers, killed and frozen workers."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from aiokafka.partitioner import murmur2

from infra.errors import TransientError
from infra.kafka.broker import LocalBroker
from infra.settings import KafkaSettings
from streams.admin import create_topics
from streams.catalogue import Catalogue, semantic_id_key, upload_position
from streams.client import TopicReader, flush, producer, send
from streams.codec import decode
from streams.codes import codes_key
from streams.events import CodesComputed
from streams.partitions import partition_of
from streams.topics import ALLOCATIONS, CODES, SEMANTIC_IDS
from workers.allocation_log import AllocationLog, code_allocated, place_key
from workers.bootstrap_assigning import assign
from workers.partition_settler import PartitionSettler, Settlement

pytestmark = pytest.mark.integration


@pytest.fixture
def kafka(broker: LocalBroker) -> KafkaSettings:
    """Topics of the test's own, of two partitions."""
    settings = KafkaSettings(
        bootstrap_servers=broker.bootstrap_servers,
        topic_prefix=f"t{uuid.uuid4().hex[:8]}.",
        partitions=2,
    )
    create_topics(settings)
    return settings


@pytest.fixture
def settlers(kafka: KafkaSettings) -> Iterator[list[PartitionSettler]]:
    """Two that want to write the same partition."""
    both = [PartitionSettler(kafka, 0), PartitionSettler(kafka, 0)]
    yield both
    for each in both:
        each.close()


def removal(video_id: str, position: int) -> Settlement:
    return Settlement(semantic_id_key(video_id, 1).encode(), None, position)


def computed(video_id: str, *codes: int, position: int = 0) -> CodesComputed:
    return CodesComputed(
        title=video_id,
        video_id=video_id,
        codes=codes,
        codebook_version=1,
        embedding_f16="",
        upload_time_ms=1,
        upload_append_time_ms=2,
        upload_position=position,
    )


def written(kafka: KafkaSettings) -> list[tuple[bytes, int | None]]:
    """Key and position of what is in video.semantic_ids, partition by partition."""
    found: list[Any] = []
    with TopicReader(kafka, [SEMANTIC_IDS]) as reader:
        found += [message for _, message in reader.read_to_end()]
    found.sort(key=lambda message: (message.partition(), message.offset()))
    return [(message.key(), upload_position(message.headers())) for message in found]


def test_writer_whose_partition_was_taken_raises_and_leaves_nothing(
    kafka: KafkaSettings, settlers: list[PartitionSettler]
) -> None:
    first, second = settlers
    first.settle([removal("a", 1)])
    second.settle([removal("a", 2)])
    with pytest.raises(TransientError, match="another process may have taken it over"):
        first.settle([removal("a", 3)])
    assert written(kafka) == [(b"1:a", 1), (b"1:a", 2)]


def test_transaction_that_a_dead_writer_left_open_is_ended_by_the_next(
    kafka: KafkaSettings, settlers: list[PartitionSettler]
) -> None:
    dead, living = settlers
    client = dead.open()
    client.begin_transaction()
    dead._produce(client, removal("a", 9))
    client.flush(60)
    assert [each.position for each in living.settle([removal("a", 2)])] == [2]
    assert written(kafka) == [(b"1:a", 2)]


def test_writer_that_comes_back_knows_what_was_written_meanwhile(
    kafka: KafkaSettings, settlers: list[PartitionSettler]
) -> None:
    first, second = settlers
    for number in range(4):
        settler = settlers[number % 2]
        stale = settler.settle([removal("a", 10 * number - 1), removal("b", 10 * number)])
        assert [each.key for each in stale] == ([b"1:b"] if number else [b"1:a", b"1:b"])
        settler.settle([removal("a", 10 * number + 10)])
        settler.close()
    assert second.settle([removal("a", 39), removal("b", 29)]) == []
    assert first.settle([removal("a", 40)]) == [removal("a", 40)]


def test_allocations_are_caught_up_with_from_where_they_were_read_to(kafka: KafkaSettings) -> None:
    log, client = AllocationLog(kafka, disambiguation_size=4), producer(kafka)
    for place, video_id in enumerate("abc"):
        row = code_allocated(computed(video_id, 5), place)
        send(client, kafka, ALLOCATIONS, place_key(row), row, partition=1)
        flush(client)
        log.catch_up({0, 1})
        assert log.allocate(computed(video_id, 5), partition=1) == (place, False)
    assert log._read_to == {(ALLOCATIONS.name, 0): 0, (ALLOCATIONS.name, 1): 3}
    assert log.allocate(computed("d", 5), partition=0) == (0, True)


def test_bootstrap_stores_places_where_the_worker_will_look_for_them(kafka: KafkaSettings) -> None:
    videos = [computed(f"v{n}", n % 7, n % 3, position=-1) for n in range(60)]
    assigned = assign(kafka, videos, 64)
    client = producer(kafka)
    for video in videos:
        send(client, kafka, CODES, codes_key(1, video.codes), video)
    flush(client)

    expected = {each.video_id: each.disambiguation_code for each in assigned}
    log = AllocationLog(kafka, disambiguation_size=64)
    log.catch_up({0, 1})
    with TopicReader(kafka, [CODES]) as reader:
        for _, message in reader.read_to_end():
            video = decode(CodesComputed, message.value())
            found = log.allocate(video, partition=message.partition())
            assert found == (expected[video.video_id], False)
    assert {message[0] for message in written(kafka)} == {
        semantic_id_key(each.video_id, 1).encode() for each in assigned
    }


def test_bootstrap_takes_partitions_over_and_leaves_removals_in_force(
    kafka: KafkaSettings,
) -> None:
    videos = [computed(f"v{n}", n, position=-1) for n in range(20)]
    removed = semantic_id_key("v3", 1).encode()
    running = PartitionSettler(kafka, partition_of(removed, 2))
    running.settle([Settlement(removed, None, 7)])
    assign(kafka, videos, 4)
    with pytest.raises(TransientError):
        running.settle([Settlement(removed, None, 8)])
    running.close()

    catalogue = Catalogue(1)
    with TopicReader(kafka, [SEMANTIC_IDS]) as reader:
        for _, message in reader.read_to_end():
            catalogue.apply(message.key(), message.value())
    assert catalogue.videos.keys() == {video.video_id for video in videos} - {"v3"}


def test_partition_of_a_key_is_the_one_that_producers_choose(kafka: KafkaSettings) -> None:
    client, keys = producer(kafka), [f"{n}:{n * n}-{n}".encode() * (1 + n % 4) for n in range(200)]
    for key in keys:
        client.produce(CODES.in_cluster(kafka), key=key, value=b"")
    flush(client)
    with TopicReader(kafka, [CODES]) as reader:
        found = {message.key(): message.partition() for _, message in reader.read_to_end()}
    assert found == {key: partition_of(key, 2) for key in keys}
    assert found == {key: (murmur2(key) & 0x7FFFFFFF) % 2 for key in keys}  # Faust's
