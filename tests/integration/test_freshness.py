"""The freshness worker's process on the real broker, and the catalogue view rebuilt from its topic."""

from __future__ import annotations

import base64
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from confluent_kafka import Producer
from pydantic import BaseModel

from infra.claim import claim
from infra.clock import now_ms
from infra.errors import ConfigError, TransientError
from infra.kafka.broker import LocalBroker
from infra.settings import (
    ExperimentSettings,
    KafkaSettings,
    MetricsSettings,
    Settings,
    StorageSettings,
    as_environment,
)
from infra.storage import ObjectStore
from streams.admin import create_topics
from streams.catalogue import semantic_id_key
from streams.client import TopicReader, client_config, flush, producer, send, wait_until
from streams.codec import decode_dead_letter
from streams.codes import encode_embedding
from streams.events import (
    CheckpointPromoted,
    ImpressionItem,
    ImpressionsShown,
    SemanticIdAssigned,
    SwapReported,
    VideoCounts,
    VideoServable,
    VideoUploaded,
    to_json,
)
from streams.figures import read_figures
from streams.topics import (
    CHECKPOINTS,
    COUNTS,
    DEAD_LETTERS,
    IMPRESSIONS,
    SEMANTIC_IDS,
    SERVABLE,
    SWAPS,
    UPLOADS,
    Topic,
)
from workers.freshness import COMMITTED, FOLLOWED
from workers.freshness_counting import FreshnessWorker, Read
from workers.freshness_figures import Figures
from workers.freshness_rules import rules_of
from workers.freshness_snapshot import LOCK_NAME, REPORT_FILE, STATE_FILE, Snapshot

pytestmark = pytest.mark.integration

RUN = "from infra.settings import load_settings; from workers.freshness import run; run(load_settings())"
TIMEOUT_S = 120.0
VIDEOS, ANSWERS = 300, 300
ARMS = ("lrm", "lrm_fresh")
Sent = list[tuple[Topic, str, BaseModel | None]]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
def settings(broker: LocalBroker, tmp_path: Path) -> Settings:
    """Topics and a folder of this test's own."""
    found = Settings(
        var_dir=tmp_path,
        storage=StorageSettings(root=str(tmp_path / "store")),
        kafka=KafkaSettings(
            bootstrap_servers=broker.bootstrap_servers,
            topic_prefix=f"t{uuid.uuid4().hex[:8]}.",
            partitions=2,
        ),
        metrics=MetricsSettings(freshness_port=free_port()),
        experiment=ExperimentSettings(arms=ARMS),
    )
    create_topics(found.kafka)
    return found


class FreshnessProcess:
    """The worker in a process of its own."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.start()

    def start(self) -> None:
        environment = os.environ | as_environment(self.settings)
        with (self.settings.var_dir / "worker.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", RUN], env=environment, stderr=log, stdout=log
            )

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def report(self) -> dict[str, Any]:
        path = self.settings.var_dir / REPORT_FILE
        return dict(json.loads(path.read_bytes())) if path.exists() else {"impressions": 0}

    def metrics(self) -> str:
        return httpx.get(f"http://127.0.0.1:{self.settings.metrics.freshness_port}/metrics").text


@pytest.fixture
def worker(settings: Settings) -> Iterator[FreshnessProcess]:
    running = FreshnessProcess(settings)
    yield running
    running.kill()


def uploads(start_ms: int) -> Sent:
    return [
        (UPLOADS, f"v{n}", VideoUploaded(video_id=f"v{n}", title="Film", event_time_ms=start_ms))
        for n in range(VIDEOS)
    ]


def assigned(number: int, appended_ms: int) -> SemanticIdAssigned:
    angle = number / VIDEOS
    embedding = np.array([np.cos(angle), np.sin(angle)], dtype=np.float16)
    return SemanticIdAssigned.model_validate(
        {
            "video_id": f"v{number}", "title": f"Film {number}", "codes": (number % 7, 1),
            "disambiguation_code": number, "codebook_version": 1,
            "embedding_f16": encode_embedding(embedding), "upload_time_ms": appended_ms,
            "upload_append_time_ms": appended_ms, "upload_position": number,
            "assigned_time_ms": appended_ms + 1,
        }
    )  # fmt: skip


def answers(start_ms: int) -> Sent:
    return [(IMPRESSIONS, f"u{n}", answer(n, start_ms + n)) for n in range(ANSWERS)]


def answer(number: int, event_time_ms: int = 1) -> ImpressionsShown:
    items = tuple(
        ImpressionItem(
            video_id=f"v{n}", position=n, source="lrm", age_s=1, new=n == 0 and not number % 3
        )
        for n in range(2)
    )
    return ImpressionsShown.model_validate(
        {
            "event_time_ms": event_time_ms, "request_id": f"r{number}", "arm": ARMS[number % 2],
            "surface": "home", "model_version": 1, "codebook_version": 1, "items": items,
        }
    )  # fmt: skip


def videos(start_ms: int) -> Sent:
    """Each video becomes servable 4 s after its upload; half of them again, on another replica."""
    sent: Sent = []
    for number in range(VIDEOS):
        video_id = f"v{number}"
        key = semantic_id_key(video_id, 1)
        sent.append((SEMANTIC_IDS, key, assigned(number, start_ms)))
        for replica in range(1 + number % 2):
            event = VideoServable(
                video_id=video_id,
                codebook_version=1,
                semantic_id=(number % 7, 1, number),
                replica=str(replica),
                servable_time_ms=start_ms + 4000 + 50_000 * replica,
                upload_append_time_ms=start_ms,
            )
            sent.append((SERVABLE, video_id, event))
    sent.append((SEMANTIC_IDS, semantic_id_key("v0", 1), None))
    return sent


def models(start_ms: int) -> Sent:
    """Three checkpoints, each served a second after it was promoted."""
    sent: Sent = []
    for version in (2, 3, 4):
        at_ms = start_ms + 10_000 * version
        promoted = CheckpointPromoted(
            model_name="lrm", model_version=version, codebook_version=1, path="p", sha256="s",
            metrics={}, promoted_time_ms=at_ms,
        )  # fmt: skip
        swap = SwapReported(
            replica="one", model_name="lrm", model_version=version, previous_version=version - 1,
            outcome="succeeded", sha256="s", swapped_time_ms=at_ms + 1000, load_s=0.1,
        )  # fmt: skip
        sent += [(CHECKPOINTS, "lrm", promoted), (SWAPS, "one", swap)]
    return sent


def send_all(settings: Settings, records: Sent) -> None:
    client = producer(settings.kafka)
    for topic, key, event in records:
        send(client, settings.kafka, topic, key, event)
    flush(client)


def watched(start_ms: int) -> list[tuple[str, VideoCounts]]:
    """What two shards count: each video is watched in both, every third one often enough."""
    return [
        (
            f"v{number}",
            VideoCounts(
                video_id=f"v{number}", surface="home", arm=ARMS[number % 2], likes=1,
                window_start_ms=start_ms, window_s=3600, views=1 + 5 * (number % 3 == 0),
                completed_views=0, watched_s=1.3,
            ),
        )
        for number in (*range(VIDEOS), *range(VIDEOS))
    ]  # fmt: skip


def send_counts(
    settings: Settings, counted: list[tuple[str, VideoCounts]], *, commit: bool
) -> None:
    """Send in one transaction, as the sealer does; without `commit`, one that is aborted."""
    client = producer(settings.kafka, transactional_id=uuid.uuid4().hex)
    client.init_transactions(60)
    client.begin_transaction()
    for key, event in counted:
        send(client, settings.kafka, COUNTS, key, event)
    client.flush(60)
    if commit:
        client.commit_transaction(60)
    else:
        client.abort_transaction(60)


def uninterrupted(settings: Settings) -> dict[str, Any]:
    """The report of figures that everything in the topics is counted into at once."""
    snapshot = Snapshot(group="", topic_ids={}, figures=Figures(rules=rules_of(settings)))
    nobody: Any = None
    counting = FreshnessWorker(snapshot, settings.var_dir, nobody)
    with TopicReader(settings.kafka, [*FOLLOWED, *COMMITTED]) as reader:
        for topic, message in reader.read_to_end():
            at = (message.partition(), message.offset(), message.timestamp()[1])
            counting.count_committed(topic, [Read(*at, message.key(), message.value())])
    report: dict[str, Any] = json.loads(json.dumps(snapshot.figures.report()))
    return report


def test_worker_killed_at_any_line_reports_what_an_uninterrupted_one_would(
    worker: FreshnessProcess,
) -> None:
    settings, start_ms = worker.settings, now_ms()
    counted = watched(start_ms - start_ms % 3_600_000)
    # As soon as some figures are shown, and at places of the loops that nobody chose: while all topics are being read.
    kills = random.Random(settings.kafka.topic_prefix)
    sources = (answers(start_ms), uploads(start_ms), videos(start_ms), models(start_ms))
    records = [each for some in zip_longest(*sources) for each in some if each is not None]
    parts, size = 4, len(records) // 4 + 1
    for part in range(parts):
        send_all(settings, records[part * size : (part + 1) * size])
        send_counts(settings, counted[part::parts], commit=True)
        send_counts(settings, counted, commit=False)
        if part < 2:
            before = worker.report()["impressions"]
            wait_until(
                lambda before=before: worker.report()["impressions"] > before,  # type: ignore[misc]
                timeout_s=TIMEOUT_S,
                what="some figures",
                interval_s=0.01,
            )
        else:
            time.sleep(kills.random())  # not waited for: the kill is to come anywhere
        worker.kill()
        worker.start()

    expected = uninterrupted(settings)
    store = ObjectStore(settings.storage.root)  # where the endpoint reads them

    def shown() -> dict[str, Any]:
        return {name: each for name, each in read_figures(store).items() if name in expected}

    try:
        wait_until(lambda: shown() == expected, timeout_s=TIMEOUT_S, what="all figures")
    except TransientError:
        assert shown() == expected  # says in what they differ
    worker.process.send_signal(signal.SIGTERM)
    assert worker.process.wait(TIMEOUT_S) == 0

    assert expected["impressions"] == 2 * ANSWERS
    assert expected["new_impressions"] == ANSWERS // 3
    assert expected["delays_s"]["upload_to_servable"]["count"] == VIDEOS
    assert expected["delays_s"]["upload_to_servable"]["p99"] == pytest.approx(4, rel=0.011)
    assert expected["delays_s"]["checkpoint_to_serving"]["p50"] == pytest.approx(1, rel=0.011)
    assert (expected["model_version"], expected["swaps"]) == (4, 3)
    for name in ARMS:
        arm = expected["cold_start"]["arms"][name]
        assert (arm["new_videos"], arm["view_threshold"]) == (VIDEOS, 5)
        assert arm["reached"] == VIDEOS // 6
        assert arm["clicks_per_impression"] == pytest.approx(
            2 * (VIDEOS / 2 + 5 * VIDEOS / 6) / ANSWERS
        )


def test_poison_impression_becomes_a_dead_letter_and_the_metrics_go_on(
    worker: FreshnessProcess,
) -> None:
    settings = worker.settings
    client = producer(settings.kafka)
    for topic in (IMPRESSIONS, SERVABLE, SWAPS):
        client.produce(topic.in_cluster(settings.kafka), key=b"u1", value=b"{poison")
    flush(client)
    send_all(settings, [(IMPRESSIONS, "u1", answer(0)), *models(now_ms())])
    wait_until(
        lambda: worker.report()["impressions"] == 2 and worker.report()["swaps"] == 3,
        timeout_s=TIMEOUT_S,
        what="what came after the poison",
    )
    with TopicReader(settings.kafka, [DEAD_LETTERS[IMPRESSIONS.name]]) as reader:
        (letter,) = [decode_dead_letter(each.value()) for _, each in reader.read_to_end()]
    assert letter.reason == "invalid_json"
    assert base64.b64decode(letter.value_base64 or "") == b"{poison"

    text = worker.metrics()
    assert 'freshet_freshness_coverage_ratio{arm="lrm",surface="home"} 0.5' in text
    assert 'freshet_freshness_model_version{model_name="lrm"} 4.0' in text
    assert 'freshet_freshness_impressions_total{arm="lrm",new="true",surface="home"} 1.0' in text
    assert 'freshet_freshness_delay_seconds{quantile="0.99",stage="checkpoint_to_serving"}' in text
    assert 'freshet_records_total{outcome="refused",topic="video.servable"} 1.0' in text
    assert 'freshet_freshness_effective_vocabulary_videos{arm="lrm"} 2.0' in text
    with pytest.raises(ConfigError, match="FRESHET_VAR_DIR"):
        claim(settings.var_dir / LOCK_NAME, "test")


def test_worker_reads_every_compression_that_producers_may_choose(
    worker: FreshnessProcess,
) -> None:
    kafka = worker.settings.kafka
    for codec in ("none", "gzip", "snappy", "lz4", "zstd"):
        client = Producer(client_config(kafka) | {"compression.type": codec, "linger.ms": 50})
        for n in range(20):
            client.produce(IMPRESSIONS.in_cluster(kafka), key=b"u", value=to_json(answer(n)))
        flush(client)
    wait_until(
        lambda: worker.report()["impressions"] == 200, timeout_s=TIMEOUT_S, what="all impressions"
    )


def test_worker_without_its_snapshot_begins_with_what_the_topics_hold(
    worker: FreshnessProcess,
) -> None:
    send_all(worker.settings, [(IMPRESSIONS, f"u{n}", answer(n)) for n in range(10)])
    for _ in range(2):
        wait_until(
            lambda: worker.report()["impressions"] == 20, timeout_s=TIMEOUT_S, what="the figures"
        )
        worker.process.send_signal(signal.SIGTERM)
        worker.process.wait(TIMEOUT_S)
        (worker.settings.var_dir / STATE_FILE).unlink()
        (worker.settings.var_dir / REPORT_FILE).unlink()
        worker.start()
