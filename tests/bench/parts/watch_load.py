"""Watch events to load a sealer with, users and videos by Zipf; knows nothing of who reads them.

JSON is rendered from prepared parts, so that one core produces several hundred thousand events per second, of which no
two share an event id. Event times go on at `EVENTS_PER_S`, out of order by up to `JITTER_MS`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
from confluent_kafka import Producer

from infra.clock import now_ms
from infra.settings import KafkaSettings
from streams.catalogue import semantic_id_key
from streams.client import flush, producer, send
from streams.events import SURFACES, SemanticIdAssigned
from streams.partitions import partition_of
from streams.topics import SEMANTIC_IDS, WATCHES, Topic

Ints = npt.NDArray[np.int64]
EVENTS_PER_S = 100_000
JITTER_MS = 2_000
PREPARED = 50_000
BATCH = 20_000
DAY_MS = 86_400_000
CODES = (256, 128, 64)
EMBEDDING_BYTES = "A" * 1_024  # as long as base64 of 384 float16


def zipf_cumulative(count: int, exponent: float) -> npt.NDArray[np.float64]:
    """Return the cumulative shares of ranks 1 to `count`, each rank's share falling with its power."""
    shares = np.arange(1, count + 1, dtype=np.float64) ** -exponent
    cumulative = np.cumsum(shares)
    return cumulative / cumulative[-1]


def drawn(cumulative: npt.NDArray[np.float64], count: int, random: np.random.Generator) -> Ints:
    """Return `count` ranks, from 0, drawn by their shares."""
    return np.searchsorted(cumulative, random.random(count), side="right").astype(np.int64)


def user_id(number: int) -> bytes:
    """Return a user's id, as long as every other user's."""
    return b"user-%08d" % number


def video_id(number: int) -> str:
    """Return a video's id."""
    return f"video-{number:07d}"


class WatchSource:
    """Draws users and renders their watches.

    Attributes:
        num_users: there are users from 0 up to this number.
    """

    def __init__(self, *, users: int, videos: int, exponent: float, seed: int) -> None:
        self.num_users = users
        self._random = np.random.default_rng(seed)
        self._users = zipf_cumulative(users, exponent)
        self._user_parts = [_user_part(number) for number in range(users)]
        of_videos = zipf_cumulative(videos, exponent)
        self._watch_parts = [
            _watch_part(int(video), int(context), self._random)
            for video, context in zip(
                drawn(of_videos, PREPARED, self._random),
                drawn(of_videos, PREPARED, self._random),
                strict=True,
            )
        ]
        self._started_ms = now_ms() - DAY_MS
        self._rendered = 0

    def draw_users(self, count: int) -> Ints:
        """Return the users of the next `count` events."""
        return drawn(self._users, count, self._random)

    def render(self, users: Ints) -> list[bytes]:
        """Return one new event for each of the users, in their order."""
        count = len(users)
        ids = self._random.bytes(16 * count).hex().encode()
        times = self._started_ms + (self._rendered + np.arange(count)) * 1000 // EVENTS_PER_S
        times += self._random.integers(-JITTER_MS, JITTER_MS + 1, size=count)
        chosen = self._random.integers(len(self._watch_parts), size=count)
        self._rendered += count
        user_parts, watch_parts = self._user_parts, self._watch_parts
        return [
            b'{"event_id":"%b","event_time_ms":%d,%b,%b}'
            % (ids[32 * n : 32 * n + 32], time_ms, user_parts[user], watch_parts[part])
            for n, (time_ms, user, part) in enumerate(
                zip(times.tolist(), users.tolist(), chosen.tolist(), strict=True)
            )
        ]


def _user_part(number: int) -> bytes:
    part = b'"user_id":"%b"' % user_id(number)
    if number % 4:  # most players do not say who watches
        return part
    age, region = 18 + number % 60, (b"DE", b"FR", b"JP", b"BR")[number // 4 % 4]
    return part + b',"user":{"region":"%b","age":%d,"device":"tv"}' % (region, age)


def _watch_part(video: int, context: int, random: np.random.Generator) -> bytes:
    duration_s = int(random.integers(15, 3_600))
    watched_s = round(float(random.random()) * duration_s, 1)
    fields = (
        f'"video_id":"{video_id(video)}","surface":"{SURFACES[random.integers(len(SURFACES))]}",'
        f'"watched_s":{watched_s},"duration_s":{duration_s},"request_id":"{random.bytes(8).hex()}",'
        f'"arm":"{"ab"[video % 2]}","liked":{"true" if watched_s % 1 > 0.8 else "false"}'
    )
    if context % 2:
        fields += f',"context_video_id":"{video_id(context)}"'
    return fields.encode()


class RecordSender:
    """Queues records as fast as one core can, each in the partition that its key has."""

    def __init__(self, settings: KafkaSettings, topic: Topic) -> None:
        self._name = topic.in_cluster(settings)
        self._num_partitions = topic.num_partitions(settings)
        self._client: Producer = producer(settings)

    def partition(self, key: bytes) -> int:
        """Return the partition of `key`."""
        return partition_of(key, self._num_partitions)

    def send(self, records: Iterable[tuple[bytes, bytes, int]]) -> None:
        """Queue keys and values for their partitions, waiting for room.

        Delivery: nothing is durable before `flush` returns.
        """
        produce: Any = self._client.produce
        name = self._name
        for key, value, partition in records:
            while True:
                try:
                    produce(name, value, key, partition)
                except BufferError:
                    self._client.poll(0.1)
                else:
                    break
        self._client.poll(0)

    def flush(self) -> None:
        """Wait until all of them are durable."""
        flush(self._client, timeout_s=600)


def produce_watches(settings: KafkaSettings, source: WatchSource, users: Iterable[Ints]) -> int:
    """Send one event for each of the users, batch by batch, and return the bytes of all values.

    Blocks: until the broker has them all.
    """
    sender = RecordSender(settings, WATCHES)
    keys: dict[int, tuple[bytes, int]] = {}
    num_bytes = 0
    for batch in users:
        values = source.render(batch)
        num_bytes += sum(map(len, values))
        numbers = batch.tolist()
        for number in set(numbers) - keys.keys():
            key = user_id(number)
            keys[number] = (key, sender.partition(key))
        found = [keys[number] for number in numbers]
        sender.send(
            (key, value, partition) for (key, partition), value in zip(found, values, strict=True)
        )
    sender.flush()
    return num_bytes


def in_batches(users: Ints) -> list[Ints]:
    """Return the users in batches of at most `BATCH`."""
    return [users[start : start + BATCH] for start in range(0, len(users), BATCH)]


def produce_labels(settings: KafkaSettings, videos: int) -> None:
    """Give every video a semantic ID.

    Blocks: until the broker has them all.
    """
    client = producer(settings)
    at_ms = now_ms()
    for number in range(videos):
        first, rest = divmod(number, CODES[1] * CODES[2])
        assigned = SemanticIdAssigned(
            video_id=video_id(number),
            codes=(first % CODES[0], *divmod(rest, CODES[2])),
            disambiguation_code=first // CODES[0],
            codebook_version=1,
            title=f"Video {number}",
            channel=f"channel {number % 500}",
            embedding_f16=EMBEDDING_BYTES,
            upload_time_ms=at_ms,
            upload_append_time_ms=at_ms,
            upload_position=number,
            assigned_time_ms=at_ms,
        )
        send(client, settings, SEMANTIC_IDS, semantic_id_key(assigned.video_id, 1), assigned)
    flush(client)
