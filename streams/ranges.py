"""Which part of a topic is meant: from a time on, or between offsets; knows nothing of what the records mean."""

from __future__ import annotations

import re
from collections.abc import Iterable

from confluent_kafka import TopicPartition

from infra.clock import now_ms
from infra.errors import ConfigError
from infra.settings import KafkaSettings
from streams.client import TopicReader, consumer
from streams.topics import Topic

Offsets = dict[tuple[str, int], int]
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
TIMEOUT_S = 30


def parse_duration_s(text: str) -> float:
    """Return the seconds in `90s`, `30m`, `2h` or `7d`.

    Raises:
        ConfigError: the text is none of these.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text.strip())
    if match is None:
        raise ConfigError(f"{text!r} is no duration; expected one such as 90s, 30m, 2h or 7d")
    return float(match[1]) * _SECONDS[match[2]]


def offsets_at(settings: KafkaSettings, topics: Iterable[Topic], append_time_ms: int) -> Offsets:
    """Return, for each partition, the first offset that was appended at this time or later, or else the end.

    Blocks: until the brokers have answered, at most `TIMEOUT_S` for each request.
    """
    client = consumer(settings)
    found: Offsets = {}
    try:
        for topic in topics:
            name = topic.in_cluster(settings)
            wanted = [
                TopicPartition(name, number, append_time_ms)
                for number in range(topic.num_partitions(settings))
            ]
            for at in client.offsets_for_times(wanted, timeout=TIMEOUT_S):
                offset = at.offset
                if offset < 0:  # nothing is that new
                    partition = TopicPartition(name, at.partition)
                    offset = client.get_watermark_offsets(partition, timeout=TIMEOUT_S)[1]
                found[topic.name, at.partition] = offset
    finally:
        client.close()
    return found


def range_of(
    settings: KafkaSettings,
    topic: Topic,
    *,
    from_offset: int | None = None,
    to_offset: int | None = None,
    since_s: float | None = None,
) -> tuple[Offsets, Offsets]:
    """Return the first offset of each partition and the one after its last, within what the topic still holds.

    `since_s` are the records appended in the last so many seconds; offsets are of every partition.
    Blocks: as `offsets_at`.
    """
    with TopicReader(settings, [topic]) as reader:
        first, ends = dict(reader.next_offsets), reader.end_offsets()
    start = first
    if since_s is not None:
        start = offsets_at(settings, [topic], now_ms() - round(since_s * 1000))
    elif from_offset is not None:
        start = {at: min(max(from_offset, low), ends[at]) for at, low in first.items()}
    if to_offset is not None:
        ends = {at: max(start[at], min(to_offset, end)) for at, end in ends.items()}
    return start, ends
