"""Bad input end to end: each kind is a dead letter with its reason and raw record, a metric, and the stream goes on.

The worker is real, with encoders of its own: tiny ones, as none of this is about what a video is like, and one word
of which has no finite vector.
"""

from __future__ import annotations

import base64
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from infra.kafka.broker import LocalBroker
from infra.settings import Settings, StorageSettings, with_values
from models.own_encoders import write_hashes
from models.quantizer import QuantizerConfig
from streams.events import VideoUploaded
from streams.topics import MAX_MESSAGE_BYTES, UPLOADS
from tests.clip_factories import RED, Video, clip_bytes, video_and_sound
from tests.encoder_factories import WORDS, write_own
from tests.integration.media_server import Server
from tests.integration.uploads_process import UploadsProcess, worker_settings
from workers.bootstrap_codebook import fit_codebook

pytestmark = pytest.mark.integration

CONFIG = QuantizerConfig(method="rkmeans", codebook_sizes=(2, 2), embedding_dim=2)
NOT_A_NUMBER = "green"  # not the last word, with which encoders are tried
WHOLE = {"event_time_ms": 1, "type": "uploaded", "video_id": "p", "title": "red"}


def upload(**fields: object) -> bytes:
    return json.dumps(WHOLE | fields).encode()


INVALID: dict[str, tuple[bytes | None, str]] = {
    "nothing": (None, "empty"),
    "undecodable JSON": (b'{"title": "\xff', "invalid_json"),
    "no JSON at all": (b"\x00\x01\x02", "invalid_json"),
    "JSON of great depth": (b"[" * 100_000, "invalid_json"),
    "a list": (b"[1, 2]", "invalid_event"),
    "wrong types": (upload(title=5), "invalid_event"),
    "tags that are no list": (upload(tags="a, b"), "invalid_event"),
    "unknown schema version": (upload(schema_version=2), "unknown_schema_version"),
    "no id": (b'{"event_time_ms": 1, "type": "uploaded", "title": "red"}', "invalid_event"),
    "empty id": (upload(video_id=""), "invalid_event"),
    "no type": (b'{"event_time_ms": 1, "video_id": "p", "title": "red"}', "invalid_event"),
    "time before the epoch": (upload(event_time_ms=-1), "invalid_event"),
    "time in microseconds": (upload(event_time_ms=1_700_000_000_000_000), "invalid_event"),
    "time that is no number": (upload(event_time_ms="NaN"), "invalid_event"),
    "time of another century": (upload(event_time_ms=4_000_000_000_000), "event_time_in_future"),
    "upload time in the future": (
        upload(upload_time_ms=4_000_000_000_000), "event_time_in_future",
    ),
    "infinite duration": (b'{"duration_s": Infinity, ' + upload()[1:], "invalid_json"),
    "description of 10 MB": (upload(description="x" * 10_000_000), "too_large"),
    "description of 1 MB": (upload(description="x" * 1_000_000), "invalid_event"),
    "control characters": (upload(title="red\x00\x1b[2J"), "invalid_event"),
    "bidirectional characters": (upload(title="red\u202egnp.exe"), "invalid_event"),
    "id of control characters": (upload(video_id="p\x07"), "invalid_event"),
    "nothing but invisible characters": (upload(title="\u200e", description="\u2066\x00"), "no_content"),
    "an embedding that is not finite": (upload(title=NOT_A_NUMBER), "nan_embedding"),
}  # fmt: skip

MEDIA = {
    "scheme outside the list": ("ftp://127.0.0.1/clip.mp4", "media_uri"),
    "host outside the list": ("http://localhost:1/videos/clip.mp4", "media_outside_roots"),
    "file outside the list": ("/etc/passwd", "media_outside_roots"),
    "path traversal": ("{folder}/../secret.mp4", "media_outside_roots"),
    "path traversal in a URL": ("{server}../private/clip.mp4", "media_outside_roots"),
    "path traversal in disguise": ("{server}%2e%2e/private/clip.mp4", "media_outside_roots"),
    "link out of the folder": ("{folder}/link.mp4", "media_outside_roots"),
    "chained address": ("simplecache::{server}clip.mp4", "media_uri"),
    "redirect": ("{server}status_302.mp4", "media_redirect"),
    "forbidden": ("{server}status_403.mp4", "media_forbidden"),
    "endless download": ("{server}endless.mp4", "media_too_many_bytes"),
    "endless drip": ("{server}drip.mp4", "media_timeout"),
    "text that claims to be a film": ("{folder}/text.mp4", "media_undecodable"),
    "archive that claims to be a film": ("{folder}/archive.mp4", "media_undecodable"),
    "empty file": ("{folder}/empty.mp4", "media_empty"),
    "half a film": ("{folder}/half.mp4", "media_truncated"),
    "decompression bomb": ("{folder}/bomb.mp4", "media_too_many_pixels"),
    "film that does not come": ("{folder}/late.mp4", "media_unavailable"),
}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server.running() as running:
        yield running


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A media root with one good film and many bad ones, and a secret beside it."""
    outside = tmp_path_factory.mktemp("outside")
    root = outside / "media"
    root.mkdir()
    film = video_and_sound()
    (outside / "secret.mp4").write_bytes(film)
    (root / "film.mp4").write_bytes(film)
    (root / "link.mp4").symlink_to(outside / "secret.mp4")
    (root / "text.mp4").write_text("not a film")
    (root / "archive.mp4").write_bytes(b"PK\x03\x04" + bytes(4000))
    (root / "empty.mp4").touch()
    (root / "half.mp4").write_bytes(film[: len(film) // 2])
    (root / "bomb.mp4").write_bytes(
        clip_bytes("matroska", Video(width=2048, height=2048, colours=(RED,)))
    )
    return root


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A codebook on tiny encoders, the text's with one word that is not a number."""
    own = write_own(tmp_path_factory.mktemp("own"))
    graph = onnx.load(own / "text.onnx")
    words = next(each for each in graph.graph.initializer if each.name == "words")
    vectors = numpy_helper.to_array(words).copy()
    vectors[WORDS[NOT_A_NUMBER]] = np.nan
    words.CopyFrom(numpy_helper.from_array(vectors, "words"))
    onnx.save(graph, own / "text.onnx")
    write_hashes(own)
    root = tmp_path_factory.mktemp("store")
    settings = Settings(storage=StorageSettings(root=str(root)))
    films = [
        VideoUploaded(event_time_ms=1, video_id=str(n), title=" ".join(["red", "blue", "any"][: 1 + n % 3]))
        for n in range(12)
    ]  # fmt: skip
    fit_codebook(films, with_values(settings, uploads__encoders=own), config=CONFIG)
    return root


@pytest.fixture(scope="module")
def worker(
    broker: LocalBroker,
    store: Path,
    folder: Path,
    server: Server,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[UploadsProcess]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = worker_settings(broker.bootstrap_servers, store, tmp_path_factory.mktemp("var"))
    running = UploadsProcess(
        with_values(
            settings,
            uploads__media_roots=(str(folder), server.root),
            uploads__media_max_bytes=3_000_000,
            uploads__media_max_pixels=1024 * 1024,
            uploads__media_timeout_s=10.0,
            uploads__media_retry_s=0.5,
            metrics__uploads_port=port,
        )
    )
    yield running
    running.close()


def refused(worker: UploadsProcess, reason: str) -> float:
    """The metric of that reason."""
    port = worker.settings.metrics.uploads_port
    wanted = f'freshet_dlq_records_total{{reason="{reason}",topic="{UPLOADS.name}"}}'
    lines = httpx.get(f"http://127.0.0.1:{port}/metrics").text.splitlines()
    return sum(float(line.removeprefix(wanted)) for line in lines if line.startswith(wanted))


def assert_refused_alone(worker: UploadsProcess, raw: bytes | None, reason: str) -> None:
    """The record is refused, whole and counted; what comes behind it on its partition is not."""
    before = len(worker.dead_letters)
    worker.assign(VideoUploaded.model_validate(WHOLE))
    counted = refused(worker, reason)
    worker.send_raw(UPLOADS, b"p", raw)
    worker.assign(VideoUploaded.model_validate(WHOLE | {"title": "blue"}))
    worker.wait_for(lambda: len(worker.dead_letters) > before, "the dead letter")
    (letter,) = worker.dead_letters[before:]
    assert (letter.topic, letter.reason) == (UPLOADS.name, reason), letter.detail
    kept = letter.value_base64
    assert (None if kept is None else base64.b64decode(kept)) == raw
    assert letter.key_base64 == base64.b64encode(b"p").decode()
    assert refused(worker, reason) == counted + 1


@pytest.mark.parametrize("kind", INVALID)
def test_record_that_is_no_upload_is_refused_alone(worker: UploadsProcess, kind: str) -> None:
    raw, reason = INVALID[kind]
    assert_refused_alone(worker, raw, reason)


@pytest.mark.parametrize("kind", MEDIA)
def test_upload_whose_media_are_bad_is_refused_alone(
    worker: UploadsProcess, folder: Path, server: Server, kind: str
) -> None:
    uri, reason = MEDIA[kind]
    uri = uri.format(folder=folder, server=server.root)
    assert_refused_alone(worker, upload(media_uri=uri), reason)


def test_good_media_by_either_way_are_read(
    worker: UploadsProcess, folder: Path, server: Server
) -> None:
    roots = (f"{folder}/film.mp4", f"file://{folder}/film.mp4", f"{server.root}clip.mp4")
    sent = [
        VideoUploaded.model_validate(WHOLE | {"video_id": f"good-{n}", "media_uri": uri})
        for n, uri in enumerate(roots)
    ]
    assert len(worker.assign(*sent)) == len(roots)


def test_greatest_record_that_a_topic_takes_is_kept_whole(worker: UploadsProcess) -> None:
    raw: Any = b"x" * (MAX_MESSAGE_BYTES - 1000)
    assert_refused_alone(worker, raw, "too_large")
