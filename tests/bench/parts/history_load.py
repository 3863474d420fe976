"""Fills `user.histories` with many users, in the bytes that the sealer itself writes.

A sealer makes the histories of a few users; every other user gets one of these under another id of the same length. So
this knows nothing of what a history looks like, except that an id in it stands there as text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from infra.clock import now_ms
from infra.settings import KafkaSettings
from streams.client import TopicReader
from streams.events import to_json
from streams.history import Entry, user_history
from streams.topics import HISTORIES
from tests.bench.parts.watch_load import (
    DAY_MS,
    Ints,
    RecordSender,
    drawn,
    user_id,
    video_id,
    zipf_cumulative,
)


def zipf_lengths(count: int, *, longest: int, seed: int) -> Ints:
    """Return lengths of histories from 1 to `longest`, a length half as likely as one half as long."""
    shares = zipf_cumulative(longest, 1.0)
    return drawn(shares, count, np.random.default_rng(seed)) + 1


def full_histories(count: int, videos: int, *, length: int) -> list[tuple[bytes, bytes]]:
    """Return keys and histories of the first users, watched a day before a `WatchSource` begins."""
    random, begin_ms = np.random.default_rng(0), now_ms() - 2 * DAY_MS
    found = []
    for number in range(count):
        entries = [
            Entry(video_id(video), at % 101, 60, begin_ms + 1000 * at, "home")
            for at, video in enumerate(random.integers(videos, size=length).tolist())
        ]
        key = user_id(number)
        found.append((key, to_json(user_history(key.decode(), entries))))
    return found


def written_histories(settings: KafkaSettings) -> dict[bytes, bytes]:
    """Return the newest history of each user, by key."""
    with TopicReader(settings, [HISTORIES]) as reader:
        return {
            message.key(): message.value()
            for _, message in reader.read_to_end()
            if message.value() is not None
        }


def copies(histories: Sequence[tuple[bytes, bytes]], users: int) -> Iterable[tuple[bytes, bytes]]:
    """Yield a key and a history for each user, the given ones in turn."""
    for number in range(users):
        former, value = histories[number % len(histories)]
        copy = user_id(number)
        yield copy, value.replace(former, copy)


def fill_histories(
    settings: KafkaSettings, histories: Sequence[tuple[bytes, bytes]], users: int
) -> int:
    """Give each user one of the histories in turn and return the bytes of them all.

    Blocks: until the broker has them all.
    """
    sender = RecordSender(settings, HISTORIES)
    num_bytes = 0

    def records() -> Iterable[tuple[bytes, bytes, int]]:
        nonlocal num_bytes
        for key, value in copies(histories, users):
            num_bytes += len(value)
            yield key, value, sender.partition(key)

    sender.send(records())
    sender.flush()
    return num_bytes
