from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from streams.events import ImpressionItem, ImpressionsShown, to_json
from streams.topics import DEAD_LETTERS, IMPRESSIONS, SWAPS
from workers.faust_app import Outgoing
from workers.freshness import FreshnessWorker
from workers.freshness_snapshot import FILE_NAME, Snapshot, load_snapshot

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
    path = tmp_path / FILE_NAME
    any_publisher: Any = publisher
    return FreshnessWorker(load_snapshot(path, IDS), path, any_publisher)


def events(*values: bytes) -> list[Any]:
    """Records of partition 0, from offset 0 on."""
    return [
        SimpleNamespace(
            value=value,
            message=SimpleNamespace(
                key=b"u", value=value, partition=0, offset=offset, timestamp=1.5
            ),
        )
        for offset, value in enumerate(values)
    ]


def impression() -> bytes:
    item = ImpressionItem(video_id="v", position=0, source="lrm", age_s=1.0, new=True)
    return to_json(
        ImpressionsShown(
            event_time_ms=1, request_id="r", surface="home", arm="lrm", model_version=1,
            codebook_version=1, items=(item,),
        )
    )  # fmt: skip


def saved(tmp_path: Path) -> Snapshot:
    return load_snapshot(tmp_path / FILE_NAME, IDS)


async def test_batch_is_saved_with_its_offsets_and_its_poison_published(tmp_path: Path) -> None:
    publisher = KeepingPublisher()
    await worker(tmp_path, publisher).count(IMPRESSIONS, events(impression(), b"{", impression()))
    assert saved(tmp_path).figures.report()["impressions"] == 2
    assert saved(tmp_path).next_offsets == {IMPRESSIONS.name: {0: 3}}
    assert [each.topic for each in publisher.sent] == [DEAD_LETTERS[IMPRESSIONS.name]]


async def test_batch_that_comes_again_after_a_restart_is_counted_once(tmp_path: Path) -> None:
    batch = events(impression(), impression())
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
        await running.count(IMPRESSIONS, events(impression(), b"{"))
    publisher.error = None
    await running.count(SWAPS, [])  # another loop saves what there is
    assert saved(tmp_path).next_offsets == {}
    assert saved(tmp_path).figures.report()["impressions"] == 0
