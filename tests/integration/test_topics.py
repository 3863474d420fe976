from __future__ import annotations

import uuid

import pytest
from confluent_kafka.admin import AdminClient

from infra.errors import ConfigError
from infra.kafka.broker import LocalBroker
from infra.settings import KafkaSettings
from streams.admin import create_topics, describe_topic
from streams.client import TopicReader, client_config, wait_until
from streams.topics import ALL, UPLOADS, Cleanup

pytestmark = pytest.mark.integration


def settings_on(broker: LocalBroker, partitions: int = 3) -> KafkaSettings:
    """Return settings under which nobody else's topics are seen."""
    return KafkaSettings(
        bootstrap_servers=broker.bootstrap_servers,
        topic_prefix=f"t{uuid.uuid4().hex[:8]}.",
        partitions=partitions,
    )


def test_every_topic_is_created_as_the_contract_says_and_once(broker: LocalBroker) -> None:
    settings = settings_on(broker)
    created = create_topics(settings)
    assert sorted(created) == sorted(topic.in_cluster(settings) for topic in ALL)
    assert create_topics(settings) == []

    with TopicReader(settings, ALL) as reader:
        ends = reader.end_offsets()
    for topic in ALL:
        config = describe_topic(settings, topic)
        assert config["cleanup.policy"] == topic.cleanup.value
        assert config["message.timestamp.type"] == "LogAppendTime"
        if topic.cleanup is Cleanup.DELETE:
            assert config["retention.ms"] == str(topic.retention_ms)
        partitions = [partition for name, partition in ends if name == topic.name]
        assert partitions == list(range(topic.partitions or 3))


def test_topic_that_is_missing_alone_is_created_alone(broker: LocalBroker) -> None:
    settings = settings_on(broker, partitions=1)
    create_topics(settings)
    lost = UPLOADS.in_cluster(settings)
    admin = AdminClient(client_config(settings))
    admin.delete_topics([lost])[lost].result()
    wait_until(
        lambda: lost not in admin.list_topics(timeout=30).topics, timeout_s=60, what="deletion"
    )
    assert create_topics(settings) == [lost]


def test_topic_with_other_partitions_is_refused_with_the_ways_out(broker: LocalBroker) -> None:
    settings = settings_on(broker, partitions=2)
    create_topics(settings)
    with pytest.raises(ConfigError) as caught:
        create_topics(settings.model_copy(update={"partitions": 5}))
    message = str(caught.value)
    assert "has 2 partitions, expected 5" in message
    assert "FRESHET_KAFKA__PARTITIONS" in message
    assert "FRESHET_KAFKA__TOPIC_PREFIX" in message


def test_broker_that_does_not_answer_is_refused_with_the_setting_to_check() -> None:
    settings = KafkaSettings(bootstrap_servers="127.0.0.1:1")
    with pytest.raises(ConfigError, match="FRESHET_KAFKA__BOOTSTRAP_SERVERS"):
        create_topics(settings, timeout_s=1)
