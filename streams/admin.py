"""Creating and describing topics; they are contracts, so no broker ever creates one by itself."""

from __future__ import annotations

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic

from infra.clock import Deadline
from infra.errors import ConfigError
from infra.settings import KafkaSettings
from streams.client import client_config
from streams.topics import ALL, Topic


def create_topics(settings: KafkaSettings, *, timeout_s: float = 60) -> list[str]:
    """Create every topic that is missing and return the names created.

    Blocks: until all topics have leaders, at most `timeout_s`.

    Raises:
        ConfigError: an existing topic has another number of partitions, or the broker cannot be reached.
    """
    admin = AdminClient(client_config(settings))
    deadline = Deadline(timeout_s)
    wanted = {topic.in_cluster(settings): topic for topic in ALL}
    try:
        existing = admin.list_topics(timeout=deadline.remaining_s()).topics
    except KafkaException as error:
        raise ConfigError(
            f"no Kafka broker answers at {settings.bootstrap_servers!r}: {error.args[0]}; "
            "check FRESHET_KAFKA__BOOTSTRAP_SERVERS, or unset it to start a local broker"
        ) from error
    for name, metadata in existing.items():
        if name in wanted and len(metadata.partitions) != wanted[name].num_partitions(settings):
            raise ConfigError(
                f"topic {name} has {len(metadata.partitions)} partitions, expected "
                f"{wanted[name].num_partitions(settings)}; set FRESHET_KAFKA__PARTITIONS to match, "
                "or choose another FRESHET_KAFKA__TOPIC_PREFIX"
            )
    missing = [name for name in wanted if name not in existing]
    new = [
        NewTopic(
            name,
            num_partitions=wanted[name].num_partitions(settings),
            replication_factor=settings.replication,
            config=wanted[name].topic_config(),
        )
        for name in missing
    ]
    if not new:
        return []
    for name, future in admin.create_topics(new, operation_timeout=deadline.remaining_s()).items():
        try:
            future.result()
        except KafkaException as error:
            if (
                error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS
            ):  # another process was faster
                raise ConfigError(f"topic {name} could not be created: {error.args[0]}") from error
    return missing


def describe_topic(settings: KafkaSettings, topic: Topic) -> dict[str, str]:
    """Return the broker's configuration of a topic."""
    admin = AdminClient(client_config(settings))
    resource = ConfigResource(ConfigResource.Type.TOPIC, topic.in_cluster(settings))
    entries = admin.describe_configs([resource])[resource].result()
    return {name: entry.value for name, entry in entries.items()}
