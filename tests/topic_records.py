"""Topics of a test's own on the real broker, and plain records in and out of them."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

from confluent_kafka import Message
from pydantic import BaseModel

from infra.kafka.broker import LocalBroker
from infra.settings import KafkaSettings, Settings, StorageSettings
from streams.admin import create_topics
from streams.client import TopicReader, flush, producer, send
from streams.topics import Topic


def settings_with_topics(broker: LocalBroker, folder: Path) -> Settings:
    """Return settings with new topics of three partitions, and everything else under a folder."""
    kafka = KafkaSettings(
        bootstrap_servers=broker.bootstrap_servers,
        topic_prefix=f"t{uuid.uuid4().hex[:8]}.",
        partitions=3,
    )
    create_topics(kafka)
    return Settings(
        var_dir=folder / "var", kafka=kafka, storage=StorageSettings(root=str(folder / "store"))
    )


def publish(settings: Settings, *sent: tuple[Topic, str, BaseModel | None]) -> None:
    """Send events under keys, acknowledged on return."""
    client = producer(settings.kafka)
    for topic, key, event in sent:
        send(client, settings.kafka, topic, key, event)
    flush(client)


def publish_raw(
    settings: Settings, topic: Topic, key: bytes | None, value: bytes | None, **fields: Any
) -> None:
    """Send one record as it is; `fields` are those of the client, such as headers."""
    client = producer(settings.kafka)
    client.produce(topic.in_cluster(settings.kafka), key=key, value=value, **fields)
    flush(client)


def records(settings: Settings, topic: Topic) -> list[Message]:
    """Return everything that a topic holds now."""
    with TopicReader(settings.kafka, [topic]) as reader:
        return [message for _, message in reader.read_to_end()]
