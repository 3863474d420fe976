from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY

from infra.metrics import STAGE_METRICS
from infra.storage import ObjectStore, write_atomically
from streams.events import (
    ImpressionItem,
    ImpressionsShown,
    VideoCounts,
    VideoUploaded,
    to_json,
)
from streams.figures import read_figures
from streams.topics import (
    CHECKPOINTS,
    COUNTS,
    DEAD_LETTERS,
    IMPRESSIONS,
    SERVABLE,
    SHARDS,
    SWAPS,
    UPLOADS,
)
from tests.unit.workers.freshness_events import promoted, sealed, swap
from workers.faust_app import Outgoing
from workers.freshness_counting import FreshnessWorker, Read
from workers.freshness_snapshot import REPORT_FILE, STATE_FILE, Snapshot, load_snapshot

IDS = {IMPRESSIONS.name: "a"}


class KeepingPublisher:
    """Keeps what it is given, or fails while it has an error."""

    def __init__(self) -> None:
        self.sent: list[Outgoing] = []
        self.error: Exception | None = None

    async def publish(self, records: Iterable[Outgoing]) -> None:
        if self.error is not None:
            raise self.error
        self.sent += records


def worker(tmp_path: Path, publisher: KeepingPublisher) -> FreshnessWorker:
    """A worker that goes on from what is saved."""
    any_publisher: Any = publisher
    snapshot = load_snapshot(tmp_path / STATE_FILE, IDS)
    return FreshnessWorker(snapshot, tmp_path, any_publisher, save_every_s=0)


def records(*values: bytes) -> list[Read]:
    """Records of partition 0, from offset 0 on."""
    return [Read(0, offset, 1_500, b"u", value) for offset, value in enumerate(values)]


def impression(arm: str = "lrm") -> bytes:
    item = ImpressionItem(video_id="v", position=0, source="lrm", age_s=1.0, new=True)
    return to_json(
        ImpressionsShown(
            event_time_ms=1, request_id="r", surface="home", arm=arm, model_version=1,
            codebook_version=1, items=(item,),
        )
    )  # fmt: skip


def saved(tmp_path: Path) -> Snapshot:
    return load_snapshot(tmp_path / STATE_FILE, IDS)


async def test_batch_is_saved_with_its_offsets_and_its_poison_published(tmp_path: Path) -> None:
    publisher = KeepingPublisher()
    await worker(tmp_path, publisher).count(IMPRESSIONS, records(impression(), b"{", impression()))
    assert saved(tmp_path).figures.report()["impressions"] == 2
    assert saved(tmp_path).next_offsets == {IMPRESSIONS.name: {0: 3}}
    assert [each.topic for each in publisher.sent] == [DEAD_LETTERS[IMPRESSIONS.name]]


async def test_batch_that_comes_again_after_a_restart_is_counted_once(tmp_path: Path) -> None:
    batch = records(impression(), impression())
    for size in (1, 2):
        await worker(tmp_path, KeepingPublisher()).count(IMPRESSIONS, batch[:size])
    assert saved(tmp_path).figures.report()["impressions"] == 2


async def test_dead_letter_that_cannot_be_written_leaves_its_batch_uncounted(
    tmp_path: Path,
) -> None:
    publisher = KeepingPublisher()
    running = worker(tmp_path, publisher)
    publisher.error = ConnectionError("no broker")
    with pytest.raises(ConnectionError):
        await running.count(IMPRESSIONS, records(impression(), b"{"))
    publisher.error = None
    await running.count(SWAPS, [])  # another loop saves what there is
    assert saved(tmp_path).next_offsets == {}
    assert saved(tmp_path).figures.report()["impressions"] == 0


def views(video_id: str) -> bytes:
    counted = VideoCounts(
        video_id=video_id, surface="home", arm="lrm", window_start_ms=0, window_s=3600, views=2,
        completed_views=1, likes=1, watched_s=7.5,
    )  # fmt: skip
    return to_json(counted)


async def test_committed_records_are_saved_with_what_is_saved_next_and_poison_is_passed_over(
    tmp_path: Path,
) -> None:
    running = worker(tmp_path, KeepingPublisher())
    running.count_committed(COUNTS, records(views("v"), b"{", views("w"), b"{"))
    assert saved(tmp_path).next_offsets == {}
    await running.save()
    assert saved(tmp_path).next_offsets == {COUNTS.name: {0: 4}}
    assert running.next_offsets([COUNTS, IMPRESSIONS]) == {(COUNTS.name, 0): 4}
    running.count_committed(COUNTS, records(views("v"), b"{", views("w")))  # read once more
    await running.count(IMPRESSIONS, records(impression()))
    arm = saved(tmp_path).figures.report()["cold_start"]["arms"]["lrm"]
    assert arm["clicks_per_impression"] == 4
    assert arm["watched_s_per_impression"] == 15


async def test_batches_that_wait_for_the_same_save_are_in_it_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []

    def write(path: Path, content: bytes) -> None:
        written.append(len(content))
        write_atomically(path, content)

    monkeypatch.setattr("workers.freshness_counting.write_atomically", write)
    running = worker(tmp_path, KeepingPublisher())
    batches = [running.count(topic, []) for topic in (SWAPS, SERVABLE, CHECKPOINTS, IMPRESSIONS)]
    await asyncio.gather(*batches)
    assert len(written) <= 2  # the first begins at once, the second has all others
    await running.save()
    assert len(written) <= 2  # nothing new


def observed(stage: str) -> float:
    return REGISTRY.get_sample_value(f"{STAGE_METRICS[stage]}_count") or 0.0


async def test_delays_that_other_processes_observe_are_not_observed_here_again(
    tmp_path: Path,
) -> None:
    stages = ("shard_to_checkpoint", "checkpoint_to_serving", "watch_to_serving")
    before = {stage: observed(stage) for stage in (*stages, "upload_to_first_shown")}
    running = worker(tmp_path, KeepingPublisher())
    upload = VideoUploaded(video_id="v", title="Film", event_time_ms=1)
    running.count_committed(UPLOADS, records(to_json(upload)))
    running.count_committed(SHARDS, records(to_json(sealed("s", 1_000))))
    await running.count(IMPRESSIONS, records(impression()))
    await running.count(CHECKPOINTS, records(to_json(promoted(2, 9_000, shard_ids=("s",)))))
    await running.count(SWAPS, records(to_json(swap(2, 11_000, 1))))
    delays = saved(tmp_path).figures.report()["delays_s"]
    assert all(delays[stage]["count"] == 1 for stage in before)
    assert {stage: observed(stage) - before[stage] for stage in before} == {
        **dict.fromkeys(stages, 0), "upload_to_first_shown": 1,
    }  # fmt: skip


async def test_arms_that_there_are_not_share_one_name(tmp_path: Path) -> None:
    running = worker(tmp_path, KeepingPublisher())
    await running.count(IMPRESSIONS, records(*(impression(f"made up {n}") for n in range(5))))
    report = saved(tmp_path).figures.report()
    assert set(report["by_arm"]) == {"other"}
    assert set(report["cold_start"]["arms"]) == {"lrm", "other"}
    assert report["impressions"] == 5


async def test_report_is_written_for_people_and_the_endpoint(tmp_path: Path) -> None:
    running, store = worker(tmp_path, KeepingPublisher()), ObjectStore(str(tmp_path / "store"))
    await running.count(IMPRESSIONS, records(impression()))
    await running.show(store)
    figures = read_figures(store)
    assert figures["impressions"] == 1
    assert json.loads((tmp_path / REPORT_FILE).read_text()) == figures
