"""Backfills on the real broker, with the codes of a real codebook."""

from __future__ import annotations

import json
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from infra.clock import now_ms
from infra.errors import ConfigError
from infra.kafka.broker import LocalBroker
from infra.settings import Settings, StorageSettings, with_values
from models.quantizer import QuantizerConfig
from streams.catalogue import position_header
from streams.codec import decode
from streams.codes import codes_key
from streams.events import CodesComputed, VideoRemoved, VideoUploaded, to_json
from streams.movielens import load_timeline
from streams.topics import CODES, UPLOADS
from tests.topic_records import publish, publish_raw, records, settings_with_topics
from workers.backfill_run import BackfillOptions, run_backfill
from workers.bootstrap_codebook import FittedCodebook, fit_codebook

pytestmark = pytest.mark.integration

CONFIG = QuantizerConfig(method="rkmeans", codebook_sizes=(16, 8, 4), embedding_dim=16)


@pytest.fixture
def settings(broker: LocalBroker, tmp_path: Path) -> Settings:
    """Settings with topics and an object store of the test's own."""
    return settings_with_topics(broker, tmp_path)


@pytest.fixture(scope="module")
def films() -> list[VideoUploaded]:
    events = (each.event for each in load_timeline().events)
    uploads = (e for e in events if isinstance(e, VideoUploaded) and e.type == "uploaded")
    return [film for film, _ in zip(uploads, range(80), strict=False)]


@pytest.fixture(scope="module")
def fitted(
    encoders_directory: Path, films: list[VideoUploaded], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, FittedCodebook]:
    """An object store, and the codebook in it."""
    root = tmp_path_factory.mktemp("store")
    (root / "encoders").symlink_to(encoders_directory)
    codebook = fit_codebook(films, Settings(storage=StorageSettings(root=str(root))), config=CONFIG)
    return root, codebook


@pytest.fixture
def coded(settings: Settings, fitted: tuple[Path, FittedCodebook]) -> Settings:
    """Settings with the fitted codebook and small batches."""
    return with_values(settings, storage__root=str(fitted[0]), uploads__batch_max=8)


def backfill(settings: Settings, **options: Any) -> str:
    return run_backfill(settings, BackfillOptions(**options), stopping=threading.Event())


def computed(settings: Settings) -> list[CodesComputed]:
    found = []
    for message in records(settings, CODES):
        codes = decode(CodesComputed, message.value())
        assert message.key() == codes_key(codes.codebook_version, codes.codes).encode()
        found.append(codes)
    return found


def positions(settings: Settings) -> dict[tuple[int, int], str]:
    return {(m.partition(), m.offset()): m.key().decode() for m in records(settings, UPLOADS)}


def test_backfill_codes_the_newest_record_of_each_video_at_its_own_position(
    coded: Settings, films: list[VideoUploaded]
) -> None:
    first, second, gone, again = films[:4]
    edited = first.model_copy(update={"title": "Space telescope launch", "type": "updated"})
    publish(
        coded,
        *((UPLOADS, each.video_id, each) for each in (first, second, gone, edited)),
        (UPLOADS, gone.video_id, VideoRemoved(event_time_ms=9, video_id=gone.video_id)),
    )
    publish_raw(coded, UPLOADS, b"bad", b"not json")
    publish_raw(coded, UPLOADS, again.video_id.encode(), to_json(again), headers=position_header(4))
    said = backfill(coded, from_offset=0)

    found = {each.video_id: each for each in computed(coded)}
    assert found.keys() == {first.video_id, second.video_id, again.video_id}
    assert found[first.video_id].title == "Space telescope launch"
    own = {key: offset for (_, offset), key in positions(coded).items()}
    assert found[first.video_id].upload_position == own[first.video_id]
    assert found[second.video_id].upload_position == own[second.video_id]
    assert found[again.video_id].upload_position == 4
    appended = {m.key().decode(): m.timestamp()[1] for m in records(coded, UPLOADS)}
    assert all(each.upload_append_time_ms == appended[each.video_id] for each in found.values())
    assert "3 videos coded, 2 records older than another of their video, 1 videos removed" in said
    assert "not coded: 1 invalid_json" in said


def test_backfill_gives_the_codes_that_the_fit_gave(
    coded: Settings, films: list[VideoUploaded], fitted: tuple[Path, FittedCodebook]
) -> None:
    publish(coded, *((UPLOADS, each.video_id, each) for each in films))
    backfill(coded, since_s=3600.0)
    expected = {e.video_id: e.codes for e in fitted[1].codes_computed(films, append_time_ms=1)}
    found = {each.video_id: each.codes for each in computed(coded)}
    assert found.keys() == expected.keys()
    assert sum(found[each] == expected[each] for each in expected) >= 0.9 * len(expected)


def test_backfill_stops_at_the_end_of_its_range(
    coded: Settings, films: list[VideoUploaded]
) -> None:
    publish(coded, *((UPLOADS, each.video_id, each) for each in films))
    backfill(coded, from_offset=2, to_offset=5)
    wanted = {key for (_, offset), key in positions(coded).items() if 2 <= offset < 5}
    assert {each.video_id for each in computed(coded)} == wanted


def test_backfill_that_was_stopped_goes_on_where_it_was(
    coded: Settings, films: list[VideoUploaded]
) -> None:
    publish(coded, *((UPLOADS, each.video_id, each) for each in films))
    stopping = threading.Event()

    def progress(stage: str, done: int, total: int | None) -> None:
        if stage == "code" and done >= 20:
            stopping.set()

    said = run_backfill(coded, BackfillOptions(from_offset=0), stopping=stopping, progress=progress)
    assert "--resume" in said
    before = Counter(each.video_id for each in computed(coded))
    assert 0 < len(before) < len(films)

    later = films[0].model_copy(update={"video_id": "later"})
    publish(coded, (UPLOADS, "later", later))  # behind the end of the range that was begun
    said = backfill(coded, resume=True)
    assert "--resume" not in said
    assert Counter(each.video_id for each in computed(coded)) == Counter(f.video_id for f in films)
    with pytest.raises(ConfigError, match="nothing to resume"):
        backfill(coded, resume=True)


def test_backfill_of_a_catalogue_is_older_than_any_upload_and_lists_rows_that_fail(
    coded: Settings, films: list[VideoUploaded], tmp_path: Path
) -> None:
    rows = [{"at": 10, "id": each.video_id, "name": each.title} for each in films[:20]]
    rows += [
        {"at": 11, "id": films[0].video_id, "name": "Its newest title"},
        {"at": 12, "id": "untitled", "name": ""},
        {"at": 13, "id": "no-content", "name": "\u200b"},
        {"at": 14, "id": "no-media", "name": "A walk", "media_uri": "streams/data/clips/none.mp4"},
    ]
    path = tmp_path / "items.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = backfill(coded, catalogue=path, columns="event_time_ms=at:ms,video_id=id,title=name")

    found = {each.video_id: each for each in computed(coded)}
    assert found.keys() == {each.video_id for each in films[:20]}
    assert {each.upload_position for each in found.values()} == {-1}
    assert found[films[0].video_id].title == "Its newest title"
    assert "20 videos coded, 1 records older" in said
    assert f"{path} line 22: column 'name' for title: '': empty, and required" in said
    assert f"{path} line 23: " in said
    assert f"{path} line 24: " in said
    assert "24 rows" in said


def test_backfill_of_a_catalogue_goes_on_at_the_row_where_it_was_stopped(
    coded: Settings, films: list[VideoUploaded], tmp_path: Path
) -> None:
    path = tmp_path / "items.jsonl"
    path.write_bytes(b"".join(to_json(each) + b"\n" for each in films[:30]))
    stopping = threading.Event()
    run_backfill(
        coded,
        BackfillOptions(catalogue=path),
        stopping=stopping,
        progress=lambda stage, done, total: stopping.set(),
    )
    assert len(computed(coded)) == 8
    backfill(coded, resume=True)
    assert Counter(each.video_id for each in computed(coded)) == Counter(
        each.video_id for each in films[:30]
    )


def test_backfill_decodes_media_and_names_those_that_cannot_be(
    coded: Settings, films: list[VideoUploaded]
) -> None:
    clips = {"clip": "streams/data/clips/nasa_13013.mp4", "none": "streams/data/clips/none.mp4"}
    publish(
        coded,
        *(
            (UPLOADS, key, films[0].model_copy(update={"video_id": key, "media_uri": uri}))
            for key, uri in clips.items()
        ),
        (UPLOADS, "silent", films[0].model_copy(update={"video_id": "silent"})),
    )
    said = backfill(with_values(coded, uploads__media_retries=0), from_offset=0)
    found = {each.video_id: each for each in computed(coded)}
    assert found.keys() == {"clip", "silent"}
    assert found["clip"].embedding_f16 != found["silent"].embedding_f16
    assert "not coded: 1 media_unavailable" in said


def test_backfill_refuses_times_that_the_worker_refuses(
    coded: Settings, films: list[VideoUploaded]
) -> None:
    late = films[0].model_copy(update={"event_time_ms": now_ms() + 7 * 86_400_000})
    publish(coded, (UPLOADS, late.video_id, late))
    assert "not coded: 1 event_time_in_future" in backfill(coded, from_offset=0)
    assert computed(coded) == []


def test_backfill_without_a_codebook_is_a_mistake_of_the_users(settings: Settings) -> None:
    with pytest.raises(ConfigError, match="freshet bootstrap"):
        backfill(settings, since_s=1.0)
