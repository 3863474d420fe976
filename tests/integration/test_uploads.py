"""From uploads to semantic IDs: the worker's process on the real broker, with the real encoders."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from confluent_kafka import TopicPartition

from infra.kafka.broker import LocalBroker
from infra.settings import Settings, StorageSettings, with_values
from models.quantizer import QuantizerConfig
from streams.client import TopicReader, consumer
from streams.codes import decode_embedding
from streams.events import VideoRemoved, VideoUploaded, to_json
from streams.movielens import load_timeline
from streams.topics import ALLOCATIONS, CODES, UPLOADS, Topic
from tests.integration.uploads_process import TIMEOUT_S, UploadsProcess, worker_settings
from workers.bootstrap_codebook import FittedCodebook, fit_codebook
from workers.uploads import GROUP

pytestmark = pytest.mark.integration

CONFIG = QuantizerConfig(method="rkmeans", codebook_sizes=(64, 32, 16), embedding_dim=32)
BUNNY, NASA = "streams/data/clips/bigbuckbunny.mp4", "streams/data/clips/nasa_13013.mp4"


@pytest.fixture(scope="module")
def uploads() -> list[VideoUploaded]:
    """The first films of MovieLens."""
    events = (each.event for each in load_timeline().events)
    films = (e for e in events if isinstance(e, VideoUploaded) and e.type == "uploaded")
    return [film for film, _ in zip(films, range(400), strict=False)]


@pytest.fixture(scope="module")
def store(encoders_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("store")
    (root / "encoders").symlink_to(encoders_directory)
    return root


@pytest.fixture(scope="module")
def fitted(store: Path, uploads: list[VideoUploaded]) -> FittedCodebook:
    """A codebook fitted to the first half of the films."""
    settings = Settings(storage=StorageSettings(root=str(store)))
    return fit_codebook(uploads[:200], settings, config=CONFIG)


@pytest.fixture(scope="module")
def media_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("media")


@pytest.fixture(scope="module")
def worker(
    broker: LocalBroker,
    store: Path,
    fitted: FittedCodebook,
    media_root: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[UploadsProcess]:
    """One running worker for all tests that do not harm it."""
    running = UploadsProcess(
        worker_settings(
            broker.bootstrap_servers, store, tmp_path_factory.mktemp("var"), media_root=media_root
        )
    )
    yield running
    running.close()


@pytest.fixture
def fragile(
    broker: LocalBroker, store: Path, fitted: FittedCodebook, tmp_path: Path
) -> Iterator[UploadsProcess]:
    """A worker to be harmed."""
    running = UploadsProcess(worker_settings(broker.bootstrap_servers, store, tmp_path))
    yield running
    running.close()


def video(video_id: str, title: str, **fields: object) -> VideoUploaded:
    return VideoUploaded.model_validate(
        {"event_time_ms": 1, "video_id": video_id, "title": title, **fields}
    )


def assert_each_has_one_semantic_id(worker: UploadsProcess, events: list[VideoUploaded]) -> None:
    """Each video was assigned, always the same semantic ID, and no two share one."""
    found = {
        video_id: {each.semantic_id for each in assigned}
        for video_id, assigned in worker.assigned.items()
    }
    assert found.keys() == {event.video_id for event in events}
    assert all(len(each) == 1 for each in found.values())
    assert len(set.union(*found.values())) == len(events)
    assert worker.dead_letters == []


def test_uploads_get_semantic_ids_that_nobody_else_has(
    worker: UploadsProcess, uploads: list[VideoUploaded]
) -> None:
    assigned = worker.assign(*uploads[200:260])
    assert len({each.semantic_id for each in assigned}) == 60
    for upload, each in zip(uploads[200:260], assigned, strict=True):
        assert (each.video_id, each.title, each.topics) == (
            upload.video_id, upload.title, upload.topics,
        )  # fmt: skip
        assert each.upload_append_time_ms <= each.assigned_time_ms
        assert decode_embedding(each.embedding_f16).shape == (CONFIG.embedding_dim,)


def test_uploads_with_the_same_content_differ_in_the_disambiguation_code_alone(
    worker: UploadsProcess,
) -> None:
    copies = worker.assign(*(video(f"copy-{n}", "Cleo the dog fetches") for n in range(3)))
    assert len({each.codes for each in copies}) == 1
    assert {each.disambiguation_code for each in copies} == {0, 1, 2}


def test_replayed_upload_gets_the_semantic_id_it_has(worker: UploadsProcess) -> None:
    first, _ = worker.assign(video("replayed", "A walk"), video("other", "A walk"))
    (again,) = worker.assign(video("replayed", "A walk"))
    assert again.semantic_id == first.semantic_id
    assert again.upload_position > first.upload_position


def test_edit_that_changes_the_content_gets_another_semantic_id_under_the_same_key(
    worker: UploadsProcess,
) -> None:
    (before,) = worker.assign(video("edited", "How to bake sourdough bread"))
    (after,) = worker.assign(video("edited", "Space telescope launch, live", type="updated"))
    assert after.codes != before.codes
    assert after.codebook_version == before.codebook_version


def test_bootstrap_gave_its_catalogue_the_codes_that_the_worker_computes(
    worker: UploadsProcess, fitted: FittedCodebook, uploads: list[VideoUploaded]
) -> None:
    expected = list(fitted.codes_computed(uploads[:200], append_time_ms=1))[:20]
    assigned = worker.assign(*uploads[:20])
    same = [a.codes == e.codes for a, e in zip(assigned, expected, strict=True)]
    assert sum(same) >= 19  # one near-tie may fall the other way


def test_removal_becomes_a_tombstone_that_names_its_position(worker: UploadsProcess) -> None:
    (assigned,) = worker.assign(video("removed", "Soon gone"))
    worker.send([VideoRemoved(event_time_ms=2, video_id="removed")])
    worker.wait_for(lambda: bool(worker.tombstones["removed"]), "the tombstone")
    (headers,) = worker.tombstones["removed"]
    assert int(headers["upload_position"]) > assigned.upload_position


def test_pictures_and_sound_change_what_the_same_title_is_coded_as(worker: UploadsProcess) -> None:
    titles = ["My holiday", "Big Buck Bunny", "Toy Story (1995)", "News at nine", "Cats"]
    clips = {"silent": None, "bunny": BUNNY, "nasa": NASA}
    sent = [
        video(f"{clip}-{title}", title, media_uri=uri)
        for title in titles
        for clip, uri in clips.items()
    ]
    found = worker.assign(*sent)
    embeddings = [decode_embedding(each.embedding_f16).astype(np.float32) for each in found]
    for first in range(0, len(sent), len(clips)):
        silent, bunny, nasa = embeddings[first : first + len(clips)]
        assert max(silent @ bunny, silent @ nasa, bunny @ nasa) < 0.95
    # A codebook fitted to titles alone is coarse where clips lie: a few may share a cell.
    assert len({(each.title, each.codes) for each in found}) >= 12


def test_stop_waits_for_no_media_that_do_not_come_and_their_upload_comes_again(
    broker: LocalBroker, store: Path, fitted: FittedCodebook, media_root: Path, tmp_path: Path
) -> None:
    settings = with_values(
        worker_settings(broker.bootstrap_servers, store, tmp_path, media_root=media_root),
        uploads__media_retries=100,
        uploads__media_retry_s=3600.0,
    )
    worker = UploadsProcess(settings)
    try:
        waiting = video("waiting", "Tomorrow", media_uri=f"{media_root}/tomorrow.mp4")
        for each in (waiting, video("behind", "Today")):
            worker.send_raw(UPLOADS, b"same partition", to_json(each))
        worker.wait_for(lambda: bool(worker.assigned["behind"]), "the upload behind it")
        assert worker.stop() == 0
        assert not worker.assigned["waiting"]
        (media_root / "tomorrow.mp4").write_bytes(Path(BUNNY).read_bytes())
        worker.start()
        worker.wait_for(lambda: bool(worker.assigned["waiting"]), "the upload that waited")
    finally:
        worker.close()


def test_worker_killed_in_mid_batch_misses_and_doubles_nothing(
    fragile: UploadsProcess, uploads: list[VideoUploaded]
) -> None:
    # Copies, so that a restarted worker that forgot the allocations would hand some out twice.
    copies = [video(f"copy-{n}", f"One of six {n // 6}") for n in range(60)]
    events = [*uploads[:150], *copies, *uploads[150:300]]
    fragile.send(events[:200])
    fragile.wait_for(lambda: len(fragile.assigned) >= 20, "some assignments")
    fragile.kill()
    fragile.send(events[200:])
    fragile.start()
    fragile.wait_for(lambda: len(fragile.assigned) >= len(events), "all assignments")
    assert fragile.stop() == 0

    assert_each_has_one_semantic_id(fragile, events)
    assert committed(fragile, UPLOADS) == ends(fragile, UPLOADS)


def test_workers_that_come_and_go_miss_and_double_nothing(
    fragile: UploadsProcess, uploads: list[VideoUploaded]
) -> None:
    copies = [video(f"copy-{n}", f"One of six {n // 6}") for n in range(60)]
    events = [*uploads[:90], *copies, *uploads[90:180]]
    fragile.send(events[:80])
    fragile.wait_for(lambda: len(fragile.assigned) >= 20, "some assignments")
    first = fragile.process
    fragile.start()  # a second process: the partitions are shared out anew
    fragile.send(events[80:160])
    fragile.wait_for(lambda: len(fragile.assigned) >= 160, "assignments by both")
    first.terminate()
    fragile.send(events[160:])
    fragile.wait_for(lambda: len(fragile.assigned) >= len(events), "all assignments")
    assert first.wait(TIMEOUT_S) == 0
    assert_each_has_one_semantic_id(fragile, events)


def test_worker_that_cannot_read_its_allocations_stops_instead_of_guessing(
    fragile: UploadsProcess,
) -> None:
    for key in map(str, range(20)):  # enough keys to reach every partition
        fragile.send_raw(ALLOCATIONS, key.encode(), b"garbage")
    fragile.send([video("v1", "Never assigned")])
    assert fragile.process.wait(TIMEOUT_S) == 1
    assert fragile.assigned == {}
    assert sum(committed(fragile, CODES).values()) == 0


def ends(worker: UploadsProcess, topic: Topic) -> dict[int, int]:
    with TopicReader(worker.settings.kafka, [topic]) as reader:
        return {partition: end for (_, partition), end in reader.end_offsets().items() if end}


def committed(worker: UploadsProcess, topic: Topic) -> dict[int, int]:
    """The worker group's committed offsets, where there are any."""
    kafka = worker.settings.kafka
    client = consumer(kafka, group=GROUP)
    wanted = [TopicPartition(topic.in_cluster(kafka), p) for p in range(kafka.partitions)]
    found = {each.partition: each.offset for each in client.committed(wanted, timeout=60)}
    client.close()
    return {partition: offset for partition, offset in found.items() if offset > 0}
