"""Builds of the offline table on the real broker and Ray: what is in it, what is kept, and what a kill leaves."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterable
from pathlib import Path

import pytest
import ray

from infra.clock import now_ms
from infra.errors import TransientError
from infra.kafka.broker import LocalBroker
from infra.settings import Settings, as_environment, with_values
from infra.storage import ObjectStore
from models.lrm import Lrm
from models.offline_table import DATA, OfflineTable, load_table
from models.related import related_videos
from models.tasks import DAY_MS, render_related
from models.trie import LiveTrie
from streams.admin import create_topics
from streams.catalogue import semantic_id_key
from streams.client import flush, producer, send, wait_until
from streams.events import (
    LRM_MODEL_NAME,
    TABLE_MODEL_NAME,
    CheckpointPromoted,
    SemanticIdAssigned,
    VideoCounts,
)
from streams.topics import CHECKPOINTS, COUNTS, SEMANTIC_IDS
from tests.tiny_serving import (
    HOUR_MS,
    NOON_MS,
    SPACE,
    assigned,
    publish_tiny_codebook,
    save_checkpoint,
    tiny_lrm,
)
from workers.table_build import build
from workers.table_rules import SAMPLE_ROWS
from workers.table_schedule import TableSchedule, due_in_s
from workers.table_store import read_pointers

pytestmark = pytest.mark.integration

RELATED, NUM_VIDEOS, NUM_HEAD = 12, 100, 80


class Deployment:
    """Topics and a store of its own: a catalogue, views of most of it in the last week, and an LRM."""

    def __init__(self, broker: LocalBroker, folder: Path) -> None:
        self.settings = with_values(
            Settings(),
            var_dir=folder,
            storage__root=str(folder / "store"),
            kafka__bootstrap_servers=broker.bootstrap_servers,
            kafka__topic_prefix=f"{folder.name}-",
            kafka__partitions=2,
            table__head=NUM_HEAD,
            table__related=RELATED,
        )
        create_topics(self.settings.kafka)
        self.store = ObjectStore(self.settings.storage.root)
        publish_tiny_codebook(self.store)
        self.videos = {f"v-{number}": assigned(number, age_h=48) for number in range(NUM_VIDEOS)}
        self._client = producer(self.settings.kafka)

    def send_videos(self, video_ids: Iterable[str]) -> None:
        for video_id in video_ids:
            self.send_video(video_id, self.videos[video_id])

    def send_video(self, video_id: str, video: SemanticIdAssigned | None) -> None:
        send(self._client, self.settings.kafka, SEMANTIC_IDS, semantic_id_key(video_id, 1), video)
        flush(self._client)

    def view(self, video_id: str, views: int, *, age_days: float = 0) -> None:
        start_ms = NOON_MS - round(age_days * DAY_MS)
        counted = VideoCounts(
            video_id=video_id, surface="home", arm="", window_s=3600,
            window_start_ms=start_ms - start_ms % HOUR_MS,
            views=views, completed_views=0, likes=0, watched_s=1.0,
        )  # fmt: skip
        send(self._client, self.settings.kafka, COUNTS, video_id, counted)
        flush(self._client)

    def view_most(self) -> None:
        """v-0 is viewed most; v-99 was, more than a week ago."""
        for number in range(NUM_VIDEOS - 1):
            self.view(f"v-{number}", NUM_VIDEOS - number)
        self.view(f"v-{NUM_VIDEOS - 1}", 10_000, age_days=7.2)

    def promote(self, version: int, lrm: Lrm) -> None:
        promoted = save_checkpoint(Path(self.settings.storage.root), version, lrm)
        send(self._client, self.settings.kafka, CHECKPOINTS, LRM_MODEL_NAME, promoted)
        flush(self._client)

    @property
    def announced(self) -> CheckpointPromoted:
        return read_pointers(self.settings.kafka)[TABLE_MODEL_NAME]

    def table(self) -> OfflineTable:
        """The announced table, as a replica loads it."""
        return load_table(
            Path(self.settings.storage.root) / self.announced.path,
            sha256=self.announced.sha256,
            codebook_version=self.announced.codebook_version,
        )

    def folders(self) -> list[str]:
        return sorted({key.split("/")[2] for key in self.store.list("checkpoints/table")})


@pytest.fixture
def deployment(broker: LocalBroker, tmp_path: Path) -> Deployment:
    found = Deployment(broker, tmp_path)
    found.send_videos(found.videos)
    found.view_most()
    found.promote(1, tiny_lrm())
    return found


def test_build_answers_the_head_as_the_model_does_and_tells_its_progress(
    ray_cluster: None, deployment: Deployment
) -> None:
    deployment.send_video("v-3", None)
    told: list[tuple[str, int, int | None]] = []
    promoted = build(deployment.settings, progress=lambda *each: told.append(each))
    assert promoted == deployment.announced
    assert (promoted.model_version, promoted.codebook_version) == (1, 1)
    assert promoted.metrics.items() >= {
        "rows": NUM_HEAD, "rows_rebuilt": NUM_HEAD, "lrm_model_version": 1.0,
    }.items()  # fmt: skip
    assert told[-1] == ("search", NUM_HEAD, NUM_HEAD)
    table = deployment.table()
    head = [f"v-{number}" for number in range(NUM_HEAD + 1) if number != 3]
    assert [row.video_id for row in table.rows()] == head
    live = {one: video for one, video in deployment.videos.items() if one != "v-3"}
    trie = LiveTrie(SPACE)
    trie.insert_many([video.semantic_id for video in live.values()], list(live), [0] * len(live))
    for video_id in ("v-0", "v-1", "v-80"):
        expected = related_videos(
            tiny_lrm(),
            [(video_id, render_related(live[video_id], NOON_MS))],
            trie.view,
            top_k=RELATED,
            beam_width=deployment.settings.serve.beam_width,
        )[0]
        found = table.lookup(video_id)
        assert found is not None
        assert [one for one, _ in found] == [one for one, _ in expected]
        assert [log_prob for _, log_prob in found] == pytest.approx(
            [log_prob for _, log_prob in expected], abs=1e-4
        )


@pytest.mark.long
def test_rows_are_kept_until_their_question_or_the_model_moves(
    ray_cluster: None, deployment: Deployment
) -> None:
    build(deployment.settings)
    first = deployment.table()
    deployment.promote(2, tiny_lrm())  # the same weights
    deployment.view("v-99", 5000)
    retitled = deployment.videos["v-0"].model_copy(update={"title": "Another title"})
    deployment.send_video("v-0", retitled)
    promoted = build(deployment.settings)
    assert promoted.metrics["rows_rebuilt"] == SAMPLE_ROWS + 2
    assert promoted.metrics["sample_overlap"] == 1.0
    second = deployment.table()
    computed = {row.video_id for row in second.rows() if row.lrm_version == 2}
    assert len(computed) == SAMPLE_ROWS + 2
    assert {"v-0", "v-99"} <= computed
    for row in second.rows():
        if row.video_id not in {"v-0", "v-99"}:
            before = first.row(row.video_id)
            assert before is not None
            assert [one for one, _ in row.related] == [one for one, _ in before.related]

    deployment.promote(3, tiny_lrm(seed=3))
    promoted = build(deployment.settings)
    assert promoted.metrics["sample_overlap"] < 0.8
    assert promoted.metrics["rows_rebuilt"] == NUM_HEAD
    assert {row.lrm_version for row in deployment.table().rows()} == {3}
    assert deployment.folders() == ["000002", "000003"]


def on_this_ray(settings: Settings) -> Settings:
    return with_values(settings, ray__address=ray.get_runtime_context().gcs_address)


@pytest.mark.long
def test_schedule_has_the_first_table_built_by_the_command_line_and_then_waits(
    ray_cluster: None, deployment: Deployment
) -> None:
    settings = with_values(on_this_ray(deployment.settings), table__first_build_s=0.0)
    stopping = threading.Event()
    schedule = threading.Thread(target=TableSchedule(settings, stopping).run)
    schedule.start()
    try:
        wait_until(
            lambda: TABLE_MODEL_NAME in read_pointers(settings.kafka),
            timeout_s=400,
            what="the first table",
        )
    finally:
        stopping.set()
        schedule.join()
    assert len(deployment.table()) == NUM_HEAD
    due_s = due_in_s(deployment.announced, settings.table, at_ms=now_ms(), started_ms=0)
    assert 23 * 3600 < due_s <= 24 * 3600


def killed_at(settings: Settings, step: str) -> None:
    """Run a build in a process of its own, and kill it where it is about to take a step."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.integration.table_process", step],
        env=dict(os.environ) | as_environment(on_this_ray(settings)),
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"stopped\n"
    finally:
        process.kill()
        process.wait()


@pytest.mark.long
def test_killed_build_leaves_the_table_before_and_its_garbage_is_collected(
    ray_cluster: None, deployment: Deployment
) -> None:
    build(deployment.settings)
    before = deployment.announced
    killed_at(deployment.settings, "table.json")
    assert deployment.announced == before
    assert len(deployment.table()) == NUM_HEAD
    assert deployment.store.list("checkpoints/table/000002") == [f"checkpoints/table/000002/{DATA}"]
    killed_at(deployment.settings, "announcement")
    assert deployment.announced == before
    assert deployment.folders() == ["000001", "000002"]  # the first's garbage was collected
    promoted = build(deployment.settings)
    assert promoted.model_version == 3  # what was whole does not change
    assert promoted == deployment.announced
    assert len(deployment.table()) == NUM_HEAD


def test_nothing_is_built_before_there_is_a_model_and_a_view(
    ray_cluster: None, broker: LocalBroker, tmp_path: Path
) -> None:
    found = Deployment(broker, tmp_path)
    found.send_videos(["v-0", "v-1"])
    with pytest.raises(TransientError, match="no LRM is announced"):
        build(found.settings)
    found.promote(1, tiny_lrm())
    with pytest.raises(TransientError, match="nothing to build"):
        build(found.settings)
    assert TABLE_MODEL_NAME not in read_pointers(found.settings.kafka)
    found.view("v-0", 1)
    build(found.settings)
    assert found.table().lookup("v-0") is not None
