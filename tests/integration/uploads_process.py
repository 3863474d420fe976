"""An uploads worker in a process of its own, on topics of its own, and what it makes of what it is sent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

from infra.settings import (
    KafkaSettings,
    Settings,
    StorageSettings,
    UploadSettings,
    as_environment,
)
from streams.admin import create_topics
from streams.catalogue import parse_semantic_id_key
from streams.client import TopicReader, flush, producer, wait_until
from streams.codec import decode, decode_dead_letter
from streams.events import DeadLetter, SemanticIdAssigned, VideoRemoved, VideoUploaded, to_json
from streams.topics import DEAD_LETTERS, SEMANTIC_IDS, UPLOADS, Topic

RUN = "from infra.settings import load_settings; from workers.uploads import run; run(load_settings())"
TIMEOUT_S = 120.0  # a worker starts in 3 s, but the machine may be busy with others


def worker_settings(
    bootstrap_servers: str, store: Path, var_dir: Path, *, media_root: Path | None = None
) -> Settings:
    """Return settings with topics of their own, which exist on return."""
    settings = Settings(
        var_dir=var_dir,
        kafka=KafkaSettings(
            bootstrap_servers=bootstrap_servers,
            topic_prefix=f"t{uuid.uuid4().hex[:8]}.",
            partitions=2,
        ),
        storage=StorageSettings(root=str(store)),
        uploads=UploadSettings(
            media_roots=("streams/data/clips", *([str(media_root)] if media_root else ())),
            media_retries=1,
        ),
    )
    create_topics(settings.kafka)
    return settings


class UploadsProcess:
    """The worker's process, and a client that sends uploads and reads the outcome."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.assigned: dict[str, list[SemanticIdAssigned]] = defaultdict(list)
        self.tombstones: dict[str, list[dict[str, bytes]]] = defaultdict(list)
        self.dead_letters: list[DeadLetter] = []
        self._dead_letter_topic = DEAD_LETTERS[UPLOADS.name]
        self._producer = producer(settings.kafka)
        self._reader = TopicReader(settings.kafka, [SEMANTIC_IDS, self._dead_letter_topic])
        self._log = (settings.var_dir / "worker.log").open("ab")
        self._started: list[subprocess.Popen[bytes]] = []
        self.start()

    def start(self) -> None:
        """Start the process, or another one after or beside it."""
        environment = os.environ | as_environment(self.settings)
        self.process = subprocess.Popen(
            [sys.executable, "-c", RUN], env=environment, stderr=self._log, stdout=self._log
        )
        self._started.append(self.process)

    def kill(self) -> None:
        """End the process as a power cut would."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """Ask the process to end, and return its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(TIMEOUT_S)

    def close(self) -> None:
        """Leave nothing running."""
        for process in self._started:
            process.kill()
            process.wait()
        self._reader.close()
        self._log.close()

    def send(self, events: Iterable[VideoUploaded | VideoRemoved]) -> None:
        """Send uploads and removals; on return they are durable."""
        for event in events:
            self.send_raw(UPLOADS, event.video_id.encode(), to_json(event))

    def send_raw(self, topic: Topic, key: bytes | None, value: bytes | None) -> None:
        """Send any record; on return it is durable."""
        self._producer.produce(topic.in_cluster(self.settings.kafka), key=key, value=value)
        flush(self._producer)

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        """Read outcomes until the condition holds.

        Raises:
            TransientError: it did not in time.
        """

        def holds() -> bool:
            self._read()
            return condition()

        wait_until(holds, timeout_s=TIMEOUT_S, what=what)

    def assign(self, *uploads: VideoUploaded) -> list[SemanticIdAssigned]:
        """Send uploads and return what each is assigned, once all are."""
        before = {upload.video_id: len(self.assigned[upload.video_id]) for upload in uploads}
        self.send(uploads)
        self.wait_for(
            lambda: all(len(self.assigned[video_id]) > n for video_id, n in before.items()),
            f"the assignment of {sorted(before)}",
        )
        return [self.assigned[upload.video_id][-1] for upload in uploads]

    def _read(self) -> None:
        for topic, message in self._reader.poll():
            if topic is self._dead_letter_topic:
                self.dead_letters.append(decode_dead_letter(message.value()))
                continue
            video_id, _ = parse_semantic_id_key(message.key())
            if message.value() is None:
                self.tombstones[video_id].append(dict(message.headers() or []))
            else:
                self.assigned[video_id].append(decode(SemanticIdAssigned, message.value()))
