"""What a running system looks like from its topics and files; `freshet status`."""

from __future__ import annotations

import json
from typing import Any

from infra.errors import DecodeError
from infra.log import get_logger
from infra.settings import Settings
from streams.client import TopicReader
from streams.codec import decode
from streams.events import CheckpointPromoted, SwapReported
from streams.topics import ALL, CHECKPOINTS, SWAPS, Topic

log = get_logger()


def status(settings: Settings) -> dict[str, Any]:
    """Return records per topic, the promoted checkpoints, the newest swap of each replica, and the last figures.

    A record that cannot be read is logged and left out.

    Blocks: for the reading of two small topics.
    """
    found: dict[str, Any] = {"kafka": settings.kafka.bootstrap_servers, "topics": {}}
    with TopicReader(settings.kafka, ALL) as reader:
        for (name, partition), end in reader.end_offsets().items():
            first = reader.next_offsets[name, partition]
            found["topics"][name] = found["topics"].get(name, 0) + end - first
    found["checkpoints"], found["replicas"] = {}, {}
    with TopicReader(settings.kafka, [CHECKPOINTS, SWAPS]) as reader:
        for topic, message in reader.read_to_end():
            if message.value() is None:
                continue
            try:
                _take(found, topic, message.value())
            except DecodeError as error:
                log.warning(
                    "record_skipped",
                    topic=topic.name,
                    partition=message.partition(),
                    offset=message.offset(),
                    reason=error.reason,
                )
    for name in ("serve", "freshness"):
        path = settings.var_dir / f"{name}.json"
        found[name] = json.loads(path.read_text()) if path.exists() else None
    return found


def _take(found: dict[str, Any], topic: Topic, value: bytes) -> None:
    if topic is CHECKPOINTS:
        promoted = decode(CheckpointPromoted, value)
        found["checkpoints"][promoted.model_name] = promoted.model_dump(exclude={"shard_ids"})
    else:
        swap = decode(SwapReported, value)
        found["replicas"][swap.replica] = swap.model_dump()
