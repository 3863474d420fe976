"""Where is my upload? A video's path from the real topics, as the command prints it."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydantic import BaseModel

import freshet
from infra.clock import now_ms
from infra.kafka.broker import LocalBroker
from infra.settings import KafkaSettings, Settings, StorageSettings, as_environment
from infra.storage import ObjectStore
from models.codebook import CodebookManifest, publish_codebook
from streams.admin import create_topics
from streams.catalogue import semantic_id_key
from streams.client import flush, producer, send
from streams.codes import encode_embedding
from streams.events import (
    CheckpointPromoted,
    DeadLetter,
    ImpressionItem,
    ImpressionsShown,
    SemanticIdAssigned,
    VideoCounts,
    VideoRemoved,
    VideoServable,
    VideoUploaded,
)
from streams.partitions import partition_of
from streams.topics import (
    CHECKPOINTS,
    COUNTS,
    DEAD_LETTERS,
    IMPRESSIONS,
    SEMANTIC_IDS,
    SERVABLE,
    UPLOADS,
    Topic,
)

pytestmark = pytest.mark.integration
PARTITIONS = 2
Show = Callable[[str], tuple[int, str]]


@pytest.fixture(scope="module")
def settings(broker: LocalBroker, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Topics of this file's own, and a codebook."""
    folder: Path = tmp_path_factory.mktemp("video_path")
    found = Settings(
        var_dir=folder,
        storage=StorageSettings(root=str(folder / "store")),
        kafka=KafkaSettings(
            bootstrap_servers=broker.bootstrap_servers,
            topic_prefix=f"t{uuid.uuid4().hex[:8]}.",
            partitions=PARTITIONS,
        ),
    )
    create_topics(found.kafka)
    manifest = CodebookManifest(
        codebook_version=1, codebook_sizes=(16, 8), disambiguation_size=64, embedding_dim=2,
        encoders_sha256="", quantizer={}, card={}, files={},
    )  # fmt: skip
    publish_codebook(ObjectStore(found.storage.root), manifest, {})
    send_all(found, path_of("seen"))
    send_all(found, [*path_of("gone")[:2], (UPLOADS, "gone", removal("gone"))])
    send_all(found, [(SEMANTIC_IDS, semantic_id_key("gone", 1), None)])
    send_all(found, [(UPLOADS, "bad", upload("bad")), (DEAD_LETTERS[UPLOADS.name], "bad", LETTER)])
    send_all(found, [(UPLOADS, "waiting", upload("waiting"))])
    return found


LETTER = DeadLetter(
    topic=UPLOADS.name, partition=0, offset=0, reason="media_unavailable", detail="404",
    refused_time_ms=1,
)  # fmt: skip


def upload(video_id: str) -> VideoUploaded:
    return VideoUploaded(video_id=video_id, title=f"Film {video_id}", event_time_ms=1)


def removal(video_id: str) -> VideoRemoved:
    return VideoRemoved(video_id=video_id, event_time_ms=1, type="removed")


def path_of(video_id: str) -> list[tuple[Topic, str, BaseModel | None]]:
    """A video's whole path: learned by the third LRM, shown twice and watched twice."""
    key = semantic_id_key(video_id, 1)
    assigned = SemanticIdAssigned(
        video_id=video_id, title=f"Film {video_id}", codes=(1, 2), disambiguation_code=0,
        codebook_version=1, embedding_f16=encode_embedding(np.ones(2, np.float16)),
        upload_time_ms=1, upload_append_time_ms=2, upload_position=0, assigned_time_ms=3,
        featurized_time_ms=now_ms(),
    )  # fmt: skip
    servable = VideoServable(
        video_id=video_id, codebook_version=1, semantic_id=(1, 2, 0), replica="r",
        servable_time_ms=4, upload_append_time_ms=2,
    )  # fmt: skip
    learned = [
        CheckpointPromoted(
            model_name=name, model_version=version, codebook_version=1, path="p", sha256="s",
            metrics={}, promoted_time_ms=5,
            next_semantic_id_offsets={partition_of(key.encode(), PARTITIONS): end},
        )
        for name, version, end in (("lrm", 2, 0), ("two_tower_hash", 9, 1), ("lrm", 3, 1), ("lrm", 4, 9))
    ]  # fmt: skip
    shown = [
        ImpressionsShown(
            event_time_ms=1, request_id="q", surface="home", arm=arm, model_version=3,
            codebook_version=1,
            items=(ImpressionItem(video_id=video_id, position=0, source="lrm", age_s=0, new=True),),
        )
        for arm in ("lrm_fresh", "lrm")
    ]  # fmt: skip
    watched = [
        VideoCounts(
            video_id=video_id, surface="home", arm="lrm_fresh", window_start_ms=0, window_s=3600,
            views=views, completed_views=0, likes=0, watched_s=1.0,
        )
        for views in (2, 5)
    ]  # fmt: skip
    return [
        (UPLOADS, video_id, upload(video_id)),
        (SEMANTIC_IDS, key, assigned),
        (SERVABLE, video_id, servable),
        *((CHECKPOINTS, one.model_name, one) for one in learned),
        *((IMPRESSIONS, "same user", one) for one in shown),
        *((COUNTS, video_id, one) for one in watched),
    ]


def send_all(settings: Settings, records: list[tuple[Topic, str, BaseModel | None]]) -> None:
    """Send one after the other, so that their append times are in order."""
    client = producer(settings.kafka)
    for topic, key, event in records:
        send(client, settings.kafka, topic, key, event)
        flush(client)


@pytest.fixture
def show(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Show:
    """The command on these topics: its exit status, and what it printed."""
    for name, value in as_environment(settings).items():
        monkeypatch.setenv(name, value)

    def run(video_id: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            freshet.main(["sids", "show", video_id])
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out + printed.err

    return run


def test_path_goes_on_from_upload_to_first_watch_with_versions(show: Show) -> None:
    status, printed = show("seen")
    assert status == 0, printed
    path = printed.split("path\n")[1].splitlines()
    details = {line.split("Z", 1)[-1].split()[2 if "+" in line else 0]: line for line in path}
    assert "as its semantic ID says" in details.pop("featurized")
    assert list(details) == ["uploaded", "assigned", "servable", "learned", "shown", "watched"]
    assert "lrm 3" in details["learned"]
    assert "by lrm_fresh on home, place 1, from lrm, model 3" in details["shown"]
    assert "2 views" in details["watched"]


def test_video_that_is_not_live_says_why(show: Show) -> None:
    for video_id, said in (
        ("gone", "not live under codebook 1: removed "),
        ("bad", "not live under codebook 1: refused, media_unavailable: 404"),
        ("waiting", "not live under codebook 1: on its way"),
    ):
        status, printed = show(video_id)
        assert (status, said in printed) == (0, True), printed


def test_unknown_id_is_refused_with_where_it_was_looked_for(show: Show) -> None:
    status, printed = show("nobody")
    assert status == 2
    assert "no video 'nobody': searched video.uploads" in printed
