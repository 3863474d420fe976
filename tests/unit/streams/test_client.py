from __future__ import annotations

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition
from pydantic import SecretStr

from infra.errors import TransientError
from infra.settings import KafkaSettings
from streams.client import TopicReader, client_config, flush, producer, send, wait_until
from streams.events import VideoRemoved
from streams.topics import UPLOADS

NOBODY = KafkaSettings(bootstrap_servers="127.0.0.1:1")
EVENT = VideoRemoved(event_time_ms=0, video_id="v")


def test_records_that_nobody_acknowledges_are_reported_by_flush() -> None:
    client = producer(NOBODY)
    send(client, NOBODY, UPLOADS, "v", EVENT)
    with pytest.raises(TransientError, match=r"1 records were not acknowledged within 0\.1 s"):
        flush(client, timeout_s=0.1)
    client.purge()


def test_record_that_could_not_be_delivered_is_an_error_and_not_lost_in_silence() -> None:
    client = producer(NOBODY)
    send(client, NOBODY, UPLOADS, "v", EVENT)
    client.purge()
    with pytest.raises(KafkaException):
        flush(client, timeout_s=10)


class ForgetfulConsumer:
    """A client; one that has forgotten its brokers, which cannot be caused at will, knows no partition."""

    def __init__(self, *, forgetful: bool) -> None:
        self.forgetful, self.closed = forgetful, False
        self.assigned: list[TopicPartition] = []

    def get_watermark_offsets(self, partition: TopicPartition, **_: object) -> tuple[int, int]:
        if self.forgetful:
            raise KafkaException(KafkaError(KafkaError._UNKNOWN_PARTITION))
        return 0, 7

    def consume(self, *_: object) -> list[object]:
        return []

    def assign(self, partitions: list[TopicPartition]) -> None:
        self.assigned = partitions

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def clients(monkeypatch: pytest.MonkeyPatch) -> list[ForgetfulConsumer]:
    """Every client that is made from now on."""
    made: list[ForgetfulConsumer] = []

    def consumer(*_: object, **__: object) -> ForgetfulConsumer:
        made.append(ForgetfulConsumer(forgetful=False))
        return made[-1]

    monkeypatch.setattr("streams.client.consumer", consumer)
    monkeypatch.setattr("streams.client.PATIENCE_S", 0.0)
    return made


def test_reader_whose_client_has_forgotten_its_brokers_goes_on_with_another(
    clients: list[ForgetfulConsumer],
) -> None:
    reader = TopicReader(NOBODY, [UPLOADS], partitions=[1], start={(UPLOADS.name, 1): 5})
    clients[0].forgetful = True
    assert reader.end_offsets() == {(UPLOADS.name, 1): 7}
    assert clients[0].closed
    [at] = clients[1].assigned
    assert (at.topic, at.partition, at.offset) == (UPLOADS.name, 1, 5)


def test_reader_that_hears_nothing_for_long_asks_whether_its_client_still_knows_a_broker(
    clients: list[ForgetfulConsumer], monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = TopicReader(NOBODY, [UPLOADS], partitions=[1])
    clients[0].forgetful = True
    assert reader.poll() == []
    assert len(clients) == 1
    monkeypatch.setattr("streams.client.SILENCE_S", -1.0)
    assert reader.poll() == []
    assert [one.closed for one in clients] == [True, False]
    assert reader.poll() == []  # this one knows
    assert len(clients) == 2


def test_credentials_are_passed_on_when_a_mechanism_is_set() -> None:
    settings = KafkaSettings(
        bootstrap_servers="a:1",
        security_protocol="SASL_SSL",
        sasl_mechanism="PLAIN",
        sasl_username="freshet",
        sasl_password=SecretStr("hunter2"),
        ssl_ca_location="/ca.pem",
    )
    assert client_config(settings) == {
        "bootstrap.servers": "a:1",
        "log_level": 3,
        "security.protocol": "SASL_SSL",
        "ssl.ca.location": "/ca.pem",
        "sasl.mechanism": "PLAIN",
        "sasl.username": "freshet",
        "sasl.password": "hunter2",
    }
    assert client_config(NOBODY) == {"bootstrap.servers": "127.0.0.1:1", "log_level": 3}


def test_wait_that_is_in_vain_says_what_did_not_happen() -> None:
    with pytest.raises(TransientError, match="the swap did not happen within 0 s"):
        wait_until(lambda: False, timeout_s=0, what="the swap")


def test_wait_ends_when_the_condition_holds() -> None:
    answers = iter([False, False, True])
    wait_until(lambda: next(answers), timeout_s=60, what="the swap", interval_s=0)
    assert next(answers, None) is None
