"""Dead letters for operators: counted, found, and sent back to the topic that they came from.

Knows nothing of why a record is refused, and of how one is shown (`workers.dead_letters_shown`).
"""

from __future__ import annotations

import base64
import heapq
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from confluent_kafka import KafkaException, Message, Producer

from infra.errors import ConfigError, DecodeError, TransientError
from infra.settings import KafkaSettings
from streams.catalogue import position_header, upload_position
from streams.client import TopicReader, flush, producer
from streams.codec import decode_dead_letter
from streams.events import DeadLetter
from streams.ranges import Offsets, offsets_at
from streams.topics import ALL, ASSIGNMENTS, CODES, DEAD_LETTERS, UPLOADS, Topic

READ_TIMEOUT_S = 3600
_BY_NAME = {topic.name: topic for topic in ALL}


class Letter(NamedTuple):
    """A dead letter and its place in its topic; `letter` is None where it cannot be read itself."""

    topic: str
    partition: int
    offset: int
    append_time_ms: int
    num_bytes: int
    """Of the refused record's value."""
    letter: DeadLetter | None
    upload_position: int | None
    """What the refused record's own header said, where it had been sent again already."""


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """Which dead letters are meant; what is None does not matter."""

    reason: str | None = None
    since_ms: int | None = None
    partition: int | None = None
    offset: int | None = None

    def __post_init__(self) -> None:
        if self.offset is not None and self.partition is None:
            raise ConfigError(
                f"offset {self.offset} is one of each partition: name the --partition"
            )

    def takes(self, one: Letter) -> bool:
        """Return whether the letter is meant."""
        return (
            (self.reason is None or (one.letter is not None and one.letter.reason == self.reason))
            and (self.since_ms is None or one.append_time_ms >= self.since_ms)
            and (self.offset is None or one.offset == self.offset)
        )


@dataclass
class Listed:
    """What lies in the dead letters.

    Attributes:
        counts: by topic, then reason.
        newest: the newest letters, newest first.
    """

    counts: dict[str, Counter[str]] = field(default_factory=dict)
    newest: list[Letter] = field(default_factory=list)


@dataclass
class Replayed:
    """What was sent back, by (topic, reason), and what was not."""

    sent: Counter[tuple[str, str]] = field(default_factory=Counter)
    unreadable: int = 0
    repeated: int = 0


def topics_named(name: str | None) -> list[Topic]:
    """Return the dead-letter topics that a name means: its own or its source's; all of them without a name.

    Raises:
        ConfigError: there is no such topic.
    """
    if name is None:
        return list(DEAD_LETTERS.values())
    source = name.removesuffix(".dead_letters")
    if source in (CODES.name, ASSIGNMENTS.name):  # the uploads worker's own
        source = UPLOADS.name
    if source not in DEAD_LETTERS:
        raise ConfigError(f"{name!r} has no dead letters; these have: {', '.join(DEAD_LETTERS)}")
    return [DEAD_LETTERS[source]]


def list_letters(
    settings: KafkaSettings, topics: Sequence[Topic], chosen: Chosen, *, limit: int
) -> Listed:
    """Return how many dead letters there are, and the newest `limit` of them without their records.

    Blocks: until the topics were read to their ends.
    """
    listed = Listed({topic.name: Counter() for topic in topics})
    newest: list[tuple[int, str, int, int, Letter]] = []
    for one in _letters(settings, topics, chosen):
        reason = one.letter.reason if one.letter else "unreadable"
        listed.counts[one.topic][reason] += 1
        if one.letter is not None:  # a record takes up to 16 MB
            one = one._replace(letter=one.letter.model_copy(update={"value_base64": None}))
        heapq.heappush(newest, (one.append_time_ms, one.topic, one.partition, one.offset, one))
        if len(newest) > limit:
            heapq.heappop(newest)
    listed.newest = [each[-1] for each in sorted(newest, reverse=True)]
    return listed


def find_letter(settings: KafkaSettings, topic: Topic, partition: int, offset: int) -> Letter:
    """Return one dead letter.

    Raises:
        ConfigError: there is none at that offset.
    """
    chosen = Chosen(partition=partition, offset=offset)
    for one in _letters(settings, [topic], chosen):
        return one
    raise ConfigError(
        f"{topic.name} has no record at partition {partition} offset {offset}; "
        f"`freshet dead-letters list {topic.name}` names those it has"
    )


def replay_letters(
    settings: KafkaSettings,
    topics: Sequence[Topic],
    chosen: Chosen,
    *,
    dry_run: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> Replayed:
    """Send refused records, key and value as they were, back to the partitions that they came from.

    An upload keeps its position in a header, so that it never reverts a newer edit. What is refused again becomes a new
    letter, which this run does not read.

    Delivery: everything sent is acknowledged by all replicas on return. Sent again, an upload settles to the same
    state; a watch is dropped as a redelivery while it is among its user's newest watches.
    Blocks: until all letters were read; `on_progress` is told (records read, records to read).
    """
    done = Replayed()
    client = producer(settings)
    failures: list[Exception] = []
    seen: set[tuple[str, int, int]] = set()
    for one in _letters(settings, topics, chosen, on_progress=on_progress):
        letter = one.letter
        if letter is None or letter.topic not in _BY_NAME:
            done.unreadable += 1
            continue
        at = (letter.topic, letter.partition, letter.offset)
        if at in seen:  # refused twice, as a worker was killed in between
            done.repeated += 1
            continue
        seen.add(at)
        if not dry_run:
            _send(client, settings, one, letter, failures)
        done.sent[letter.topic, letter.reason] += 1
    flush(client)
    if failures:
        raise TransientError(f"{len(failures)} records were not acknowledged: {failures[0]}")
    return done


def _letters(
    settings: KafkaSettings,
    topics: Sequence[Topic],
    chosen: Chosen,
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> Iterator[Letter]:
    """Yield the chosen letters, up to where the topics end now."""
    start: Offsets = {}
    if chosen.since_ms is not None:
        start = offsets_at(settings, topics, chosen.since_ms)
    partitions = None if chosen.partition is None else [chosen.partition]
    for topic in topics:
        count = topic.num_partitions(settings)
        if chosen.partition is not None and not 0 <= chosen.partition < count:
            raise ConfigError(
                f"{topic.name} has the partitions 0 to {count - 1}, not {chosen.partition}"
            )
        if chosen.offset is not None and chosen.partition is not None:
            start[topic.name, chosen.partition] = chosen.offset
    with TopicReader(settings, topics, partitions=partitions, start=start) as reader:
        ends, first = reader.end_offsets(), dict(reader.next_offsets)
        total = sum(max(0, ends[at] - first[at]) for at in ends)
        if chosen.offset is not None and any(first[at] >= ends[at] for at in ends):
            return
        for read, (topic, message) in enumerate(
            reader.read_to_end(timeout_s=READ_TIMEOUT_S), start=1
        ):
            if message.offset() >= ends[topic.name, message.partition()]:
                continue
            if on_progress is not None:
                on_progress(min(read, total), total)
            one = _letter(topic, message)
            if chosen.takes(one):
                yield one
            if chosen.offset is not None:
                return


def _letter(topic: Topic, message: Message) -> Letter:
    letter: DeadLetter | None = None
    position: int | None = None
    with suppress(DecodeError):
        letter = decode_dead_letter(message.value())
    with suppress(DecodeError):
        position = upload_position(message.headers())
    num_bytes = len(decoded(letter.value_base64) or b"") if letter else 0
    at = (topic.name, message.partition(), message.offset(), message.timestamp()[1])
    return Letter(*at, num_bytes, letter, position)


def _send(
    client: Producer,
    settings: KafkaSettings,
    one: Letter,
    letter: DeadLetter,
    failures: list[Exception],
) -> None:
    def report(error: Any, _: Message) -> None:
        if error is not None:
            failures.append(KafkaException(error))

    headers: dict[str, bytes] = {}
    if one.upload_position is not None:
        headers = position_header(one.upload_position)
    elif letter.topic == UPLOADS.name:
        headers = position_header(letter.offset)
    while True:
        try:
            client.produce(
                _BY_NAME[letter.topic].in_cluster(settings),
                key=decoded(letter.key_base64),
                value=decoded(letter.value_base64),
                partition=letter.partition,
                headers=headers,
                on_delivery=report,
            )
        except BufferError:
            client.poll(0.1)
        else:
            client.poll(0)
            return


def decoded(text: str | None) -> bytes | None:
    """Return the bytes that a letter carries in base64."""
    return None if text is None else base64.b64decode(text)
