"""Sealers that start with many users' histories: how long the restore takes and what memory it costs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from infra.settings import KafkaSettings, Settings, with_values
from streams.admin import create_topics
from streams.client import TopicReader
from streams.codec import decode
from streams.events import ShardSealed
from streams.topics import SHARDS
from tests.bench.parts.history_load import fill_histories, written_histories, zipf_lengths
from tests.bench.parts.marks import Mark, measured_process, read_marks, say
from tests.bench.parts.measured_sealer import RESTORES
from tests.bench.parts.watch_load import WatchSource, in_batches, produce_watches, user_id

SEALER = "tests.bench.parts.measured_sealer"
SEED = 0
Written = list[tuple[bytes, bytes]]


@dataclass(frozen=True)
class Histories:
    """Restores of full histories, of more full ones, and of many that are not: marks before and after.

    Attributes:
        mean_length: entries per user of the many.
    """

    full: tuple[Mark, Mark]
    more: tuple[Mark, Mark]
    many: tuple[Mark, Mark]
    mean_length: float


def restored_histories(
    settings: Settings,
    folder: Path,
    source: WatchSource,
    *,
    full_users: int,
    more_users: int,
    many_users: int,
    timeout_s: float,
) -> Histories:
    """Restore users with full histories, more of these, and many whose lengths are by Zipf, in a process each.

    The sealer itself writes the histories of the source's users, half of them full; the others are copies.
    """
    full, many, mean_length = _written(settings, folder, source, timeout_s)
    return Histories(
        _restored(settings, "full", full, full_users, folder, timeout_s),
        _restored(settings, "more", full, more_users, folder, timeout_s),
        _restored(settings, "many", many, many_users, folder, timeout_s),
        mean_length,
    )


def announced_shards(kafka: KafkaSettings) -> list[ShardSealed]:
    """Return all announcements, in their order."""
    with TopicReader(kafka, [SHARDS]) as reader:
        return [decode(ShardSealed, message.value()) for _, message in reader.read_to_end()]


def _written(
    settings: Settings, folder: Path, source: WatchSource, timeout_s: float
) -> tuple[Written, Written, float]:
    """Return as many full histories as of lengths by Zipf, in the bytes of the topic, and the latter's mean length."""
    count, longest = source.num_users // 2, settings.watches.history_length
    lengths = zipf_lengths(count, longest=longest, seed=SEED)
    of_users = np.concatenate([np.full(count, longest), lengths])
    users = np.repeat(np.arange(2 * count), of_users)
    np.random.default_rng(SEED).shuffle(users)
    settings = with_values(settings, kafka__topic_prefix="written.", watches__shard_max_age_s=1.0)
    create_topics(settings.kafka)
    say(f"write {2 * count:,} histories")
    produce_watches(settings.kafka, source, in_batches(users))
    own = folder / "written"
    own.mkdir()
    with measured_process(SEALER, (own, 0, 0), settings, own / "log") as process:
        process.wait_for(
            lambda: sum(shard.watches for shard in announced_shards(settings.kafka)) >= len(users),
            timeout_s=timeout_s,
            what=f"{len(users)} sealed watches",
        )
        process.stop(timeout_s=60)
    histories = written_histories(settings.kafka)
    numbered = [(user_id(number), histories[user_id(number)]) for number in range(2 * count)]
    return numbered[:count], numbered[count:], float(lengths.mean())


def _restored(
    settings: Settings, name: str, histories: Written, users: int, folder: Path, timeout_s: float
) -> tuple[Mark, Mark]:
    """Give `users` these histories in turn, start a sealer, and return it before and after its restore."""
    settings = with_values(settings, kafka__topic_prefix=f"{name}.")
    create_topics(settings.kafka)
    num_bytes = fill_histories(settings.kafka, histories, users)
    say(f"restore {users:,} users, {num_bytes / users:,.0f} bytes each in the topic")
    own = folder / name
    own.mkdir()
    with measured_process(SEALER, (own, 0, 0), settings, own / "log") as process:
        process.wait_for(
            lambda: len(read_marks(own / RESTORES)) > 1, timeout_s=timeout_s, what="restore"
        )
    before, after = read_marks(own / RESTORES)[:2]
    return before, after
