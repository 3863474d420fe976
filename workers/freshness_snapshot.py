"""The file that the freshness worker goes on from, `freshness.state`: the figures, and how far they go.

Figures and the offsets behind them are one file, replaced as a whole, so neither is ever ahead of the other. The
consumer group is named in it too: whoever loses the file reads the topics from the beginning, under a new name. With
50,000 new videos in two arms it has 5 to 10 MB. Knows nothing of what the figures mean.
"""

from __future__ import annotations

import uuid
from pathlib import Path

import msgspec
from confluent_kafka import KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient

from infra.errors import ConfigError
from infra.log import get_logger
from infra.settings import KafkaSettings
from streams.client import client_config
from streams.topics import Topic
from workers.freshness_figures import Figures
from workers.freshness_rules import FreshnessRules

STATE_FILE = "freshness.state"
REPORT_FILE = "freshness.json"
LOCK_NAME = "freshness.lock"
GROUP = "freshet-freshness"
FORMAT_VERSION = 2
"""Of the file; one of another version is not gone on from."""


class Snapshot(msgspec.Struct):
    """What is saved.

    Attributes:
        format_version: how to read it.
        group: the consumer group that has committed no further than `next_offsets`.
        topic_ids: which topics the offsets are of; one that is deleted and created again has another id.
        next_offsets: by topic and partition; what lies before them is in the figures.
    """

    group: str
    topic_ids: dict[str, str]
    format_version: int = FORMAT_VERSION
    next_offsets: dict[str, dict[int, int]] = msgspec.field(default_factory=dict)
    figures: Figures = msgspec.field(default_factory=Figures)

    def advance(self, topic: Topic, partition: int, offset: int) -> bool:
        """Take note that a record is counted; return False if it was before, and must not be again."""
        next_offsets = self.next_offsets.setdefault(topic.name, {})
        if offset < next_offsets.get(partition, 0):
            return False
        next_offsets[partition] = offset + 1
        return True

    def to_bytes(self) -> bytes:
        """Return the file's content, which `load_snapshot` reads."""
        return msgspec.msgpack.encode(self)


def load_snapshot(
    path: Path, topic_ids: dict[str, str], rules: FreshnessRules | None = None
) -> Snapshot:
    """Return what was saved for these topics, or an empty snapshot with a group of its own; from now on by `rules`."""
    snapshot = _saved(path, topic_ids) or _empty(topic_ids)
    snapshot.figures.go_by(rules or FreshnessRules())
    return snapshot


def _saved(path: Path, topic_ids: dict[str, str]) -> Snapshot | None:
    try:
        snapshot = msgspec.msgpack.decode(path.read_bytes(), type=Snapshot)
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
        get_logger().warning("snapshot_unreadable", path=str(path), error=str(error))
        return None
    if snapshot.format_version != FORMAT_VERSION:
        get_logger().warning(
            "snapshot_of_another_version", path=str(path), found=snapshot.format_version
        )
        return None
    if snapshot.topic_ids != topic_ids:
        get_logger().warning("snapshot_of_other_topics", path=str(path))
        return None
    return snapshot


def _empty(topic_ids: dict[str, str]) -> Snapshot:
    return Snapshot(group=f"{GROUP}-{uuid.uuid4().hex[:12]}", topic_ids=topic_ids)


def topic_ids(kafka: KafkaSettings, topics: tuple[Topic, ...]) -> dict[str, str]:
    """Return the ids under which the cluster knows the topics, by our names.

    Raises:
        ConfigError: a topic does not exist, or no broker answers.
    """
    admin = AdminClient(client_config(kafka))
    names = {topic.in_cluster(kafka): topic.name for topic in topics}
    found = admin.describe_topics(TopicCollection(list(names)), request_timeout=60)
    try:
        return {names[name]: str(each.result().topic_id) for name, each in found.items()}
    except KafkaException as error:
        raise ConfigError(
            f"the topics cannot be read at {kafka.bootstrap_servers!r}: {error.args[0]}; "
            "create them with `freshet topics create`, or check FRESHET_KAFKA__BOOTSTRAP_SERVERS"
        ) from error
