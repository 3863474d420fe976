"""Decoder processes: what hangs, dies or waits in one of them is one item's loss and nobody else's."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from infra.errors import ConfigError, DecodeError
from infra.settings import UploadSettings
from models.media import Media, decode_media
from tests.decoder_faults import faulty
from workers import decoders as decoders_module
from workers.decoders import MediaDecoders

pytestmark = pytest.mark.integration

REPOSITORY = Path(__file__).parents[2]
NASA = "streams/data/clips/nasa_13013.mp4"
HANGING_PARENT = """
import asyncio, sys
from infra.settings import UploadSettings
from tests.decoder_faults import faulty
from workers.decoders import MediaDecoders
async def run():
    decoders = MediaDecoders(UploadSettings(), decode=faulty)
    await asyncio.gather(*(decoders.load(f"hang:{path}") for path in sys.argv[1:]))
if __name__ == "__main__":
    asyncio.run(run())
"""


@pytest.fixture
def made() -> Iterator[list[MediaDecoders]]:
    made: list[MediaDecoders] = []
    yield made
    for each in made:
        each.close()
    assert not multiprocessing.active_children()


def make(made: list[MediaDecoders], **values: Any) -> MediaDecoders:
    """Return faulty decoders, closed after the test."""
    made.append(MediaDecoders(UploadSettings(**values), decode=faulty))
    return made[-1]


async def reason_of(decoders: MediaDecoders, uri: str) -> str:
    with pytest.raises(DecodeError) as refusal:
        await decoders.load(uri)
    return refusal.value.reason


def facts(media: Media) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(media.subtitles)
    return found


async def written(path: Path) -> int:
    """Return the process id that a fault wrote, once it has."""
    return await asyncio.to_thread(wait_for_pid, path)


def wait_for_pid(path: Path) -> int:
    while not (path.exists() and path.read_text()):
        time.sleep(0.01)
    return int(path.read_text())


def wait_until_broken(decoders: MediaDecoders) -> None:
    while decoders._pool is not None and decoders._pool.active:
        time.sleep(0.01)


async def test_clip_comes_out_of_another_process_as_out_of_this_one(
    made: list[MediaDecoders], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPOSITORY)
    made.append(MediaDecoders(UploadSettings(), frame_size=96))
    loaded = await asyncio.gather(*(made[0].load(NASA) for _ in range(3)))
    expected = decode_media(Path(NASA), frame_size=96)
    for media in loaded:
        np.testing.assert_array_equal(media.frames, expected.frames)
        np.testing.assert_array_equal(media.waveform, expected.waveform)
        assert media.subtitles == expected.subtitles != ""
    assert await reason_of(made[0], "pyproject.toml") == "media_outside_roots"


async def test_no_process_starts_before_the_first_media_and_none_is_heavy(
    made: list[MediaDecoders], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoders = make(made, decoders=1)
    assert not multiprocessing.active_children()
    monkeypatch.chdir(tmp_path)
    found = facts(await decoders.load("facts"))
    assert found["pid"] != os.getpid()
    # The test runner itself is imported, as spawn imports the main module; a worker's is as light as `freshet`.
    assert set(found["heavy"]) <= {"pytest"}
    assert found["directory"] == str(tmp_path)
    assert found["frame_size"] == 224


def test_root_that_could_never_be_read_is_said_at_the_start() -> None:
    with pytest.raises(ConfigError):
        MediaDecoders(UploadSettings(media_roots=("zip://a",)))


async def test_item_that_hangs_is_killed_and_others_go_on(
    made: list[MediaDecoders], tmp_path: Path
) -> None:
    decoders = make(made, decoders=2, media_timeout_s=0.5)
    hanging = asyncio.create_task(reason_of(decoders, f"hang:{tmp_path / 'pid'}"))
    pid = await written(tmp_path / "pid")
    assert facts(await decoders.load("meanwhile"))["pid"] != pid
    assert await hanging == "media_timeout"
    assert not psutil.pid_exists(pid)
    await decoders.load("afterwards")


@pytest.mark.parametrize("fault", ["die", "segfault"])
async def test_process_that_dies_takes_its_own_item_only(
    fault: str, made: list[MediaDecoders], tmp_path: Path
) -> None:
    decoders = make(made, decoders=2)
    slow = asyncio.create_task(decoders.load(f"slow:{tmp_path / 'pid'}"))
    await written(tmp_path / "pid")
    assert await reason_of(decoders, fault) == "media_decoder_died"
    await slow
    await asyncio.gather(*(decoders.load("afterwards") for _ in range(4)))


async def test_process_that_exits_as_if_all_were_well_runs_out_of_time(
    made: list[MediaDecoders],
) -> None:
    decoders = make(made, decoders=1, media_timeout_s=0.1)
    assert await reason_of(decoders, "exit") == "media_timeout"
    await decoders.load("afterwards")


async def test_idle_process_that_is_killed_is_replaced(made: list[MediaDecoders]) -> None:
    decoders = make(made, decoders=1, media_retries=0)
    pid = facts(await decoders.load("before"))["pid"]
    os.kill(pid, signal.SIGKILL)
    await asyncio.to_thread(wait_until_broken, decoders)
    assert facts(await decoders.load("afterwards"))["pid"] != pid


async def test_pool_without_progress_is_replaced(
    made: list[MediaDecoders], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoders = make(made, decoders=1, media_timeout_s=0.1)
    pid = facts(await decoders.load("before"))["pid"]
    os.kill(pid, signal.SIGSTOP)  # as good as one that waits for a lock for ever
    monkeypatch.setattr(decoders_module, "START_S", 0.0)
    monkeypatch.setattr(decoders_module, "KILL_GRACE_S", 5.0)
    assert facts(await decoders.load("afterwards"))["pid"] != pid


async def test_bug_in_the_decoder_is_one_dead_letter(made: list[MediaDecoders]) -> None:
    decoders = make(made, decoders=1)
    pid = facts(await decoders.load("before"))["pid"]
    assert await reason_of(decoders, "bug") == "media_decoder_failed"
    assert await reason_of(decoders, "bad") == "media_undecodable"
    assert facts(await decoders.load("afterwards"))["pid"] == pid


async def test_media_that_come_back_are_loaded(made: list[MediaDecoders], tmp_path: Path) -> None:
    await make(made, media_retries=3).load(f"late:{tmp_path / 'tries'}")
    assert (tmp_path / "tries").read_text() == "..."


@pytest.mark.parametrize(
    ("budget", "tries"),
    [({"media_retries": 1}, ".."), ({"media_retries": 9, "media_retry_s": 0.05}, ".")],
    ids=["attempts", "seconds"],
)
async def test_media_that_do_not_come_back_within_the_budget_are_refused(
    budget: dict[str, float], tries: str, made: list[MediaDecoders], tmp_path: Path
) -> None:
    assert (
        await reason_of(make(made, **budget), f"late:{tmp_path / 'tries'}") == "media_unavailable"
    )
    assert (tmp_path / "tries").read_text() == tries


async def test_header_that_inflates_to_gigabytes_is_refused_alone(
    made: list[MediaDecoders], tmp_path: Path
) -> None:
    def box(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body) + 8) + name + body

    inflated = struct.pack(">I", 1_900_000_000) + b"x\x9c" + bytes(50)
    index = box(b"moov", box(b"cmov", box(b"dcom", b"zlib") + box(b"cmvd", inflated)))
    (tmp_path / "bomb.mp4").write_bytes(box(b"ftyp", b"isom\0\0\2\0isom") + index)
    made.append(MediaDecoders(UploadSettings(media_roots=(str(tmp_path),), decoders=1)))
    assert await reason_of(made[0], str(tmp_path / "bomb.mp4")) == "media_too_much_memory"


async def test_signals_meant_for_the_worker_do_not_end_items_in_hand(
    made: list[MediaDecoders], tmp_path: Path
) -> None:
    decoders = make(made, decoders=1)
    slow = asyncio.create_task(decoders.load(f"slow:{tmp_path / 'pid'}"))
    pid = await written(tmp_path / "pid")
    os.kill(pid, signal.SIGTERM)
    os.kill(pid, signal.SIGINT)
    assert facts(await slow)["pid"] == pid


async def test_loads_are_cancelled_by_closing_and_nothing_is_left(
    made: list[MediaDecoders], tmp_path: Path
) -> None:
    decoders = make(made, decoders=1)
    loads = [asyncio.create_task(decoders.load(f"hang:{tmp_path / 'pid'}")) for _ in range(3)]
    pid = await written(tmp_path / "pid")
    decoders.close()
    results = await asyncio.gather(*loads, decoders.load("late"), return_exceptions=True)
    assert all(isinstance(result, asyncio.CancelledError) for result in results)
    assert not psutil.pid_exists(pid)


def test_decoders_die_with_a_worker_that_is_killed(tmp_path: Path) -> None:
    (tmp_path / "parent.py").write_text(HANGING_PARENT)
    paths = [tmp_path / "first", tmp_path / "second"]
    parent = subprocess.Popen(
        [sys.executable, str(tmp_path / "parent.py"), *map(str, paths)],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )
    children = [psutil.Process(wait_for_pid(path)) for path in paths]
    parent.kill()
    parent.wait()
    _, alive = psutil.wait_procs(children, timeout=60)
    for child in alive:
        child.kill()
    assert not alive
