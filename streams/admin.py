"""Creating and describing topics; they are contracts, so no broker ever creates one by itself."""

from __future__ import annotations

import time

from confluent_kafka import ConsumerGroupState, KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic

from infra.clock import Deadline
from infra.errors import ConfigError, TransientError
from infra.settings import KafkaSettings
from streams.client import client_config
from streams.topics import ALL, Topic

POLL_S = 0.1


def create_topics(settings: KafkaSettings, *, timeout_s: float = 60) -> list[str]:
    """Create every topic that is missing and return the names created.

    Blocks: until all topics have leaders, at most `timeout_s`.

    Raises:
        ConfigError: an existing topic has another number of partitions, or the broker cannot be reached.
        TransientError: the topics have no leaders in time.
    """
    admin = AdminClient(client_config(settings))
    deadline = Deadline(timeout_s)
    wanted = {topic.in_cluster(settings): topic for topic in ALL}
    existing = _partitions(admin, settings, deadline)
    _refuse_other_partitions(existing, wanted, settings)
    missing = {name: topic for name, topic in wanted.items() if name not in existing}
    created = _create(admin, settings, missing, deadline) if missing else []
    while not all(existing.get(name, 0) > 0 for name in wanted):
        if deadline.expired():
            raise TransientError(f"not all topics had leaders within {timeout_s} s; is Kafka well?")
        time.sleep(POLL_S)
        existing = _partitions(admin, settings, deadline)
    _refuse_other_partitions(existing, wanted, settings)  # another process may have been faster
    return created


def _partitions(admin: AdminClient, settings: KafkaSettings, deadline: Deadline) -> dict[str, int]:
    """Return the number of partitions of each topic; 0 while one of them has no leader."""
    try:
        topics = admin.list_topics(timeout=max(POLL_S, deadline.remaining_s())).topics
    except KafkaException as error:
        raise ConfigError(
            f"no Kafka broker answers at {settings.bootstrap_servers!r}: {error.args[0]}; "
            "check FRESHET_KAFKA__BOOTSTRAP_SERVERS, or unset it to start a local broker"
        ) from error
    return {
        name: 0
        if any(partition.leader < 0 for partition in topic.partitions.values())
        else len(topic.partitions)
        for name, topic in topics.items()
    }


def _refuse_other_partitions(
    existing: dict[str, int], wanted: dict[str, Topic], settings: KafkaSettings
) -> None:
    for name, topic in wanted.items():
        found, expected = existing.get(name, 0), topic.num_partitions(settings)
        if found and found != expected:
            raise ConfigError(
                f"topic {name} has {found} partitions, expected {expected}; set "
                "FRESHET_KAFKA__PARTITIONS to match, or choose another FRESHET_KAFKA__TOPIC_PREFIX"
            )


def _create(
    admin: AdminClient, settings: KafkaSettings, missing: dict[str, Topic], deadline: Deadline
) -> list[str]:
    new = [
        NewTopic(
            name,
            num_partitions=topic.num_partitions(settings),
            replication_factor=settings.replication,
            config=topic.topic_config(),
        )
        for name, topic in missing.items()
    ]
    created = []
    for name, future in admin.create_topics(new, operation_timeout=deadline.remaining_s()).items():
        try:
            future.result()
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise ConfigError(f"topic {name} could not be created: {error.args[0]}") from error
        else:
            created.append(name)
    return created


def describe_topic(settings: KafkaSettings, topic: Topic) -> dict[str, str]:
    """Return the broker's configuration of a topic."""
    admin = AdminClient(client_config(settings))
    resource = ConfigResource(ConfigResource.Type.TOPIC, topic.in_cluster(settings))
    entries = admin.describe_configs([resource])[resource].result()
    return {name: entry.value for name, entry in entries.items()}


def group_is_ready(settings: KafkaSettings, group: str) -> bool:
    """Return whether a consumer group is stable and some member owns partitions."""
    admin = AdminClient(client_config(settings))
    name = settings.topic_prefix + group
    try:
        found = admin.describe_consumer_groups([name])[name].result(timeout=10)
    except KafkaException:
        return False  # nobody has joined yet, or its coordinator is loading
    return found.state == ConsumerGroupState.STABLE and any(
        member.assignment and member.assignment.topic_partitions for member in found.members
    )
