"""The file that the freshness worker goes on from, `freshness.json`: figures for people, and how far they go.

Figures and the offsets behind them are one file, replaced as a whole, so neither is ever ahead of the other. The
consumer group is named in it too: whoever loses the file reads the topics from the beginning, under a new name.
Knows nothing of what the figures mean.
"""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

from confluent_kafka import KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient
from pydantic import BaseModel, Field, ValidationError

from infra.clock import now_ms
from infra.errors import ConfigError
from infra.log import get_logger
from infra.settings import KafkaSettings
from streams.client import client_config
from streams.topics import Topic
from workers.freshness_figures import Figures

FILE_NAME = "freshness.json"
LOCK_NAME = "freshness.lock"
GROUP = "freshet-freshness"


class Snapshot(BaseModel):
    """What is saved.

    Attributes:
        group: the consumer group that has committed no further than `next_offsets`.
        topic_ids: which topics the offsets are of; one that is deleted and created again has another id.
        next_offsets: by topic and partition; what lies before them is in the figures.
    """

    group: str
    topic_ids: dict[str, str]
    next_offsets: dict[str, dict[int, int]] = Field(default_factory=dict)
    figures: Figures = Field(default_factory=Figures)

    def advance(self, topic: Topic, partition: int, offset: int) -> bool:
        """Take note that a record is counted; return False if it was before, and must not be again."""
        next_offsets = self.next_offsets.setdefault(topic.name, {})
        if offset < next_offsets.get(partition, 0):
            return False
        next_offsets[partition] = offset + 1
        return True

    def report(self) -> dict[str, Any]:
        """Return the figures for people, and when these are of."""
        return {"written_time_ms": now_ms(), **self.figures.report()}

    def to_bytes(self) -> bytes:
        """Return the file's content: the report at its top, and under `state` what `load_snapshot` reads."""
        return json.dumps({**self.report(), "state": self.model_dump(mode="json")}).encode()


def load_snapshot(path: Path, topic_ids: dict[str, str]) -> Snapshot:
    """Return what was saved for these topics, or an empty snapshot with a group of its own."""
    try:
        snapshot = Snapshot.model_validate(json.loads(path.read_bytes())["state"])
    except FileNotFoundError:
        return _empty(topic_ids)
    except (ValueError, KeyError, TypeError, ValidationError) as error:
        get_logger().warning("snapshot_unreadable", path=str(path), error=str(error))
        return _empty(topic_ids)
    if snapshot.topic_ids != topic_ids:
        get_logger().warning("snapshot_of_other_topics", path=str(path))
        return _empty(topic_ids)
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
