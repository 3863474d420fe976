"""What is announced, and whether it is true: every offset exactly once; knows nothing of how that is shown.

Looks at announcements, files, dead letters and committed offsets; writes nothing.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from confluent_kafka import TopicPartition

from infra.errors import ConfigError, DecodeError, FreshetError
from infra.settings import KafkaSettings
from infra.storage import ObjectStore
from streams.client import TopicReader, consumer
from streams.codec import decode, decode_dead_letter
from streams.events import ShardSealed
from streams.shards import ShardRow, read_ranges, read_shard, verify_shards
from streams.topics import DEAD_LETTERS, SHARDS, WATCHES, Topic
from workers.sealing import shards_folder
from workers.watches import GROUP

Progress = Callable[[str, int, int | None], None]
Refused = Mapping[int, Sequence[int]]
"""Offsets that are dead letters, in order, by partition."""


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What was looked at, and what was found.

    Attributes:
        problems: what contradicts "every offset exactly once", in words; none is the proof for what is announced.
        orphans: keys of files that nobody announced; younger ones may be of a shard that is just being sealed.
    """

    shards: Sequence[ShardSealed]
    problems: Sequence[str]
    orphans: Sequence[str]

    def offsets(self) -> int:
        """Return how many offsets the shards cover."""
        return sum(
            found.last_offset - found.first_offset + 1
            for shard in self.shards
            for found in shard.ranges
        )


def announced_shards(settings: KafkaSettings) -> list[ShardSealed]:
    """Return the announcements that the topic still holds, oldest first.

    Raises:
        DecodeError: one of them is not of this version.
    """
    with TopicReader(settings, [SHARDS]) as reader:
        return [decode(ShardSealed, message.value()) for _, message in reader.read_to_end()]


def find_shard(settings: KafkaSettings, shard_id: str) -> ShardSealed:
    """Return the announcement of a shard.

    Raises:
        ConfigError: there is none of that id.
    """
    for shard in announced_shards(settings):
        if shard.shard_id == shard_id:
            return shard
    raise ConfigError(
        f"no shard {shard_id!r} is announced: `freshet shards list` names those that are"
    )


def audit(
    settings: KafkaSettings,
    store: ObjectStore,
    *,
    progress: Progress = lambda what, done, total: None,
) -> Audit:
    """Return what is announced and everything that contradicts it.

    Blocks: while every announced file is read.
    """
    files = store.list(
        shards_folder(settings)
    )  # before the announcements: none announced since seems an orphan
    before = _committed(settings)
    shards = announced_shards(settings)
    refused = _refused_offsets(settings)
    problems = verify_shards(shards)
    known = _committed(settings)
    if not _is_whole(settings, SHARDS):
        # A partition without watches for as long as announcements are kept has none of them left.
        kept = {at.partition for shard in shards for at in shard.ranges}
        before = {at: offset for at, offset in before.items() if at in kept}
    problems += _disagreeing(shards, before, known)
    has_all_letters = _is_whole(settings, DEAD_LETTERS[WATCHES.name])
    for done, shard in enumerate(shards, start=1):
        problems += _problems_of(shard, store, refused, has_all_letters=has_all_letters)
        progress("verify", done, len(shards))
    announced = {shard.path for shard in shards}
    return Audit(
        shards=shards,
        problems=problems,
        orphans=[key for key in files if key not in announced],
    )


def _is_whole(settings: KafkaSettings, topic: Topic) -> bool:
    """Return whether no record of a topic has outlived its retention."""
    with TopicReader(settings, [topic]) as reader:
        return not any(reader.next_offsets.values())


def _refused_offsets(settings: KafkaSettings) -> Refused:
    """Return which records of `watch.events` are among the dead letters that are still kept."""
    found: dict[int, list[int]] = defaultdict(list)
    with TopicReader(settings, [DEAD_LETTERS[WATCHES.name]]) as reader:
        for _, message in reader.read_to_end():
            try:
                letter = decode_dead_letter(message.value())
            except DecodeError:
                continue  # of a newer version: it is no less refused, and the count will say so
            if letter.topic == WATCHES.name:
                found[letter.partition].append(letter.offset)
    return {partition: sorted(offsets) for partition, offsets in found.items()}


def _problems_of(
    shard: ShardSealed, store: ObjectStore, refused: Refused, *, has_all_letters: bool
) -> Iterator[str]:
    """Yield what is wrong with a shard's file; that no other shard has its offsets follows from the ranges.

    Letters go when a whole segment of them is old enough, so an announcement may outlive some of its own.
    """
    try:
        data = store.get_bytes(shard.path, sha256=shard.sha256)
        rows, ranges = read_shard(data), read_ranges(data)
    except (FreshetError, OSError) as error:
        yield f"{shard.shard_id}: {error}"
        return
    if ranges != shard.ranges:
        yield f"{shard.shard_id} says {ranges} in its file and {shard.ranges} in its announcement"
    yield from _miscounted(shard, rows)
    offsets: dict[int, list[int]] = defaultdict(list)
    for row in rows:
        for each in row.watches:
            offsets[each.partition].append(each.offset)
    letters = 0
    for at in shard.ranges:
        held, outside = set(offsets[at.partition]), refused.get(at.partition, ())
        if len(held) < len(offsets.pop(at.partition)):
            yield f"{shard.shard_id} holds a watch of partition {at.partition} twice"
        if held and not at.first_offset <= min(held) <= max(held) <= at.last_offset:
            yield f"{shard.shard_id} holds watches of partition {at.partition} outside its range"
        first, last = bisect_left(outside, at.first_offset), bisect_right(outside, at.last_offset)
        letters += last - first
        if both := held.intersection(outside[first:last]):
            yield f"{shard.shard_id} holds {at.partition}/{min(both)}, which is a dead letter too"
    if offsets:
        yield f"{shard.shard_id} holds watches of partitions that it does not cover: {sorted(offsets)}"
    if letters > shard.dead_letters or (has_all_letters and letters < shard.dead_letters):
        yield f"{shard.shard_id} announces {shard.dead_letters} dead letters, its ranges have {letters}"


def _miscounted(shard: ShardSealed, rows: Sequence[ShardRow]) -> Iterator[str]:
    watches = [each for row in rows for each in row.watches]
    for name, announced, found in (
        ("rows", shard.rows, len(rows)),
        ("watches", shard.watches, len(watches)),
        ("late watches", shard.late, sum(each.late for each in watches)),
        ("unknown videos", shard.unknown_videos, sum(each.semantic_id is None for each in watches)),
    ):
        if announced != found:
            yield f"{shard.shard_id} announces {announced} {name} and holds {found}"
    for row in rows:
        times = [each.event_time_ms for each in row.watches]
        if times != sorted(times):
            yield f"{shard.shard_id} has a row whose watches are not in the order of their times"


def _committed(settings: KafkaSettings) -> dict[int, int]:
    """Return where each partition goes on, as far as somebody has committed."""
    name = WATCHES.in_cluster(settings)
    client = consumer(settings, group=GROUP)
    try:
        wanted = [TopicPartition(name, at) for at in range(WATCHES.num_partitions(settings))]
        found = client.committed(wanted, timeout=30)
    finally:
        client.close()
    return {at.partition: at.offset for at in found if at.offset >= 0}


def _disagreeing(
    shards: Sequence[ShardSealed], before: Mapping[int, int], after: Mapping[int, int]
) -> Iterator[str]:
    """Yield where the offsets committed before and after the announcements were read do not enclose their ends."""
    ends: dict[int, int] = {}
    for shard in shards:
        for found in shard.ranges:
            ends[found.partition] = max(ends.get(found.partition, 0), found.last_offset + 1)
    for partition, offset in before.items():
        if offset > (end := ends.get(partition, 0)):
            yield f"partition {partition} is committed up to {offset} and announced up to {end}"
    for partition, end in ends.items():
        if end > (offset := after.get(partition, 0)):
            yield f"partition {partition} is announced up to {end} and committed up to {offset}"
