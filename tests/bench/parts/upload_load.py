"""Sends uploads at a pace that does not wait for answers, and times each until its semantic ID is in the log.

Times are the broker's append times on both sides, so a slow reader here adds nothing to them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable

import msgspec
import numpy as np
from confluent_kafka import Producer

from infra.clock import Deadline, now_ms
from infra.settings import KafkaSettings
from streams.catalogue import parse_semantic_id_key
from streams.client import TopicReader, flush, producer, send
from streams.events import VideoRemoved, VideoUploaded
from streams.topics import SEMANTIC_IDS, UPLOADS


class _Assigned(msgspec.Struct):
    video_id: str
    upload_append_time_ms: int


class UploadLoad:
    """A producer of uploads and a thread that notes when each has its semantic ID."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._producer: Producer = producer(settings)
        self._reader = TopicReader(settings, [SEMANTIC_IDS], from_end=True)
        self._delays_s: dict[str, float] = {}
        self._removed_at_ms: dict[str, int] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        decoder = msgspec.json.Decoder(_Assigned)
        while not self._stopping.is_set():
            for _, message in self._reader.poll():
                if message.value() is None:
                    video_id, _ = parse_semantic_id_key(message.key())
                    self._removed_at_ms[video_id] = message.timestamp()[1]
                    continue
                assigned = decoder.decode(message.value())
                delay_ms = message.timestamp()[1] - assigned.upload_append_time_ms
                self._delays_s.setdefault(assigned.video_id, delay_ms / 1000)

    def open_loop(self, uploads: Iterable[VideoUploaded], *, per_s: float) -> list[str]:
        """Send the uploads at that pace, late ones at once, and return their ids."""
        started, ids = time.monotonic(), []
        for number, upload in enumerate(uploads):
            wait_s = started + number / per_s - time.monotonic()
            if wait_s > 0:
                self._producer.poll(0)
                time.sleep(wait_s)
            send(self._producer, self._settings, UPLOADS, upload.video_id, upload)
            ids.append(upload.video_id)
        flush(self._producer)
        return ids

    def wait_for(self, ids: list[str], *, timeout_s: float = 600) -> list[float]:
        """Return the seconds each upload took to its semantic ID, once all have one.

        Raises:
            TimeoutError: some have none in time.
        """
        deadline = Deadline(timeout_s)
        while missing := sum(video_id not in self._delays_s for video_id in ids):
            if deadline.expired():
                raise TimeoutError(
                    f"{missing} of {len(ids)} uploads have no semantic ID after {timeout_s} s"
                )
            time.sleep(0.02)
        return [self._delays_s[video_id] for video_id in ids]

    def remove(self, ids: list[str], *, timeout_s: float = 600) -> list[float]:
        """Remove videos and return the seconds from each one's request to its tombstone.

        Raises:
            TimeoutError: some have none in time.
        """
        sent_ms = {}
        for video_id in ids:
            sent_ms[video_id] = now_ms()
            removed = VideoRemoved(event_time_ms=sent_ms[video_id], video_id=video_id)
            send(self._producer, self._settings, UPLOADS, video_id, removed)
        flush(self._producer)
        deadline = Deadline(timeout_s)
        while missing := sum(video_id not in self._removed_at_ms for video_id in ids):
            if deadline.expired():
                raise TimeoutError(f"{missing} of {len(ids)} removals have no tombstone")
            time.sleep(0.02)
        return [(self._removed_at_ms[each] - sent_ms[each]) / 1000 for each in ids]

    def burst_per_s(self, uploads: list[VideoUploaded]) -> float:
        """Return how many of the uploads, sent all at once, get their semantic IDs in a second."""
        started = time.monotonic()
        self.wait_for(self.open_loop(uploads, per_s=float("inf")))
        return len(uploads) / (time.monotonic() - started)

    def close(self) -> None:
        """Leave the brokers."""
        self._stopping.set()
        self._thread.join()
        self._reader.close()


def p99(values: list[float]) -> float:
    """Return the 99th percentile."""
    return float(np.percentile(values, 99))
