"""Somebody's own data on the real broker: the README's producer, and files."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from infra.kafka.broker import LocalBroker
from infra.settings import Settings, as_environment
from streams.client import flush, producer, send
from streams.codec import decode, decode_upload
from streams.events import VideoRemoved, VideoUploaded, WatchEvent
from streams.partitions import partition_of
from streams.topics import SEMANTIC_IDS, UPLOADS, WATCHES
from tests.topic_records import records, settings_with_topics

pytestmark = pytest.mark.integration

REPOSITORY = Path(__file__).parents[2]
WATCH_COLUMNS = "event_time_ms=at:s,watched_s=played:ms,surface:=home,duration_s:=60"


@pytest.fixture
def settings(broker: LocalBroker, tmp_path: Path) -> Settings:
    """Settings with topics of the test's own."""
    return settings_with_topics(broker, tmp_path)


def run(settings: Settings, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=REPOSITORY,
        env=os.environ | as_environment(settings),
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )


def play(settings: Settings, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run(settings, "-m", "freshet", "replay", "--events-per-s", "100000", *arguments)


def uploads(settings: Settings) -> list[VideoUploaded | VideoRemoved]:
    return [decode_upload(message.value()) for message in records(settings, UPLOADS)]


def watches(settings: Settings) -> list[WatchEvent]:
    return [decode(WatchEvent, message.value()) for message in records(settings, WATCHES)]


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_producer_of_the_readme_reaches_the_topics_with_typed_events(settings: Settings) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.S)
    assert len(ast.parse(block).body) <= 10
    done = run(settings, "-W", "error", "-c", block)
    assert (done.returncode, done.stderr) == (0, "")
    (video,) = uploads(settings)
    assert isinstance(video, VideoUploaded)
    assert (video.video_id, video.title) == ("cats-1", "Cats in boxes")
    (watch,) = watches(settings)
    assert (watch.user_id, watch.video_id, watch.watched_s) == ("ada", "cats-1", 42)


def test_key_lies_in_the_partition_that_is_computed_for_it(settings: Settings) -> None:
    client = producer(settings.kafka)
    keys = [f"{'ключ' * (n % 3)}{'x' * (n % 7)}{n}" for n in range(400)]
    for key in keys:
        send(client, settings.kafka, SEMANTIC_IDS, key, None)
    flush(client)
    found = {each.key(): each.partition() for each in records(settings, SEMANTIC_IDS)}
    count = SEMANTIC_IDS.num_partitions(settings.kafka)
    assert found == {key.encode(): partition_of(key.encode(), count) for key in keys}


def test_files_are_played_by_event_time_under_their_keys(
    settings: Settings, tmp_path: Path
) -> None:
    rows = [
        {"sku": n, "name": f"Video {n}", "listed": f"2026-01-01T00:00:{n:02}Z"}
        for n in range(9, 0, -1)
    ]
    videos = write_jsonl(tmp_path / "items.jsonl", rows)
    plays = tmp_path / "plays.csv"
    start_s = 1_767_225_600  # 2026-01-01
    lines = [f"{start_s + n},u{n % 3},{n},{n}500" for n in range(1, 10)]
    plays.write_text("\n".join(["at,user_id,video_id,played", *lines]) + "\n")
    arguments = (
        "--videos", videos, "--columns", "video_id=sku,title=name,event_time_ms=listed:iso",
        "--watches", str(plays), "--watch-columns", WATCH_COLUMNS,
    )  # fmt: skip
    done = play(settings, *arguments)
    assert (done.returncode, done.stdout) == (0, "9 uploaded, 9 watched\n"), done.stderr

    found = uploads(settings)
    assert {each.video_id for each in found} == {str(n) for n in range(1, 10)}
    times = {at: [] for at in range(settings.kafka.partitions)}  # type: dict[int, list[int]]
    for message in records(settings, UPLOADS):
        upload = decode_upload(message.value())
        assert message.key() == upload.video_id.encode()
        times[message.partition()].append(upload.event_time_ms)
    assert all(each == sorted(each) for each in times.values())
    first = watches(settings)
    assert {(each.user_id, each.watched_s) for each in first} == {
        (f"u{n % 3}", n + 0.5) for n in range(1, 10)
    }

    assert play(settings, *arguments).returncode == 0  # once more: the same events
    assert {each.event_id for each in watches(settings)} == {each.event_id for each in first}


def test_bad_row_stops_before_anything_is_sent_unless_it_is_to_be_skipped(
    settings: Settings, tmp_path: Path
) -> None:
    rows: list[dict[str, Any]] = [
        {"event_time_ms": n, "video_id": f"v{n}", "title": "A walk"} for n in range(4)
    ]
    rows[2]["title"] = None
    videos = write_jsonl(tmp_path / "items.jsonl", rows)

    refused = play(settings, "--videos", videos)
    assert refused.returncode == 2
    assert f"{videos} line 3: column 'title' for title: None: empty, and required" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert uploads(settings) == []

    done = play(settings, "--videos", videos, "--skip-bad-rows")
    assert (done.returncode, done.stdout) == (0, "1 rejected, 3 uploaded\n"), done.stderr
    assert len(uploads(settings)) == 3
    (line,) = Path(f"{videos}.rejected.jsonl").read_text().splitlines()
    assert json.loads(line)["line"] == 3


def test_mapping_that_names_no_column_is_a_mistake_of_the_users(
    settings: Settings, tmp_path: Path
) -> None:
    videos = write_jsonl(
        tmp_path / "items.jsonl", [{"event_time_ms": 1, "video_id": "v", "name": "A walk"}]
    )
    done = play(settings, "--videos", videos, "--columns", "title=nmae")
    assert done.returncode == 2
    assert "no column 'nmae' for title; it has event_time_ms, video_id, name" in done.stderr
    done = play(settings, "--videos", videos, "--watch-columns", "user_id=u")
    assert done.returncode == 2
    assert "a file that is not given" in done.stderr
