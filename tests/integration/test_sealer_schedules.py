"""The sealer under generated histories of faults, on a real broker: kills, zombies, comings and goings."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from infra.clock import Deadline
from infra.kafka.broker import LocalBroker, start_broker
from infra.settings import load_settings
from tests.integration.sealer_process import MOMENTS
from tests.integration.sealer_stage import (
    TIMEOUT_S,
    Outcome,
    Stage,
    assert_same,
    erasure,
    traffic,
    uninterrupted_outcome,
    watch_event,
)

pytestmark = pytest.mark.integration

FAULTS = ("killed", "stopped", "beside", "zombie")
CHUNKS = 4
SCHEDULES = range(24)
SAMPLE = random.Random(7).sample(SCHEDULES, 2)


@pytest.fixture(scope="module")
def uninterrupted(broker: LocalBroker, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """What the traffic becomes when nothing goes wrong."""
    return uninterrupted_outcome(broker, tmp_path_factory.mktemp("uninterrupted"))


class Faults:
    """Sealer processes of a stage, and what befalls them."""

    def __init__(self, stage: Stage, chance: random.Random) -> None:
        self._stage = stage
        self._chance = chance
        self._running: list[subprocess.Popen[bytes]] = []

    def killed(self) -> None:
        """A process is killed somewhere within a commit."""
        self._run("SIGKILL")

    def stopped(self) -> None:
        """A process is asked to end somewhere within a commit, and finishes it."""
        self._run("SIGTERM")

    def beside(self) -> None:
        """Two processes share the partitions, until one of them is killed and the other asked to end."""
        other = self._start("SIGKILL", "COMMITTED", 1_000)
        self._run("SIGKILL")
        other.send_signal(signal.SIGTERM)
        other.wait(TIMEOUT_S)

    def zombie(self) -> None:
        """A process stands still while another takes over, and wakes up in its midst."""
        asleep = self._start("SIGSTOP", self._chance.choice(MOMENTS), 1)
        self._wait(lambda: _is_stopped(asleep) or self._stage.is_covered())
        other = self._start("SIGKILL", "COMMITTED", 1_000)
        self._wait(self._stage.is_covered)
        asleep.send_signal(signal.SIGCONT)
        asleep.send_signal(signal.SIGTERM)
        asleep.wait(TIMEOUT_S)
        other.send_signal(signal.SIGTERM)
        other.wait(TIMEOUT_S)

    def _run(self, signal_name: str) -> None:
        count = self._chance.choice((1, 1, 2))
        process = self._start(signal_name, self._chance.choice(MOMENTS), count)
        # It may have sealed everything before the moment came.
        self._wait(lambda: process.poll() is not None or self._stage.is_covered())
        process.kill()
        process.wait()

    def _start(self, signal_name: str, moment: str, count: int) -> subprocess.Popen[bytes]:
        process = self._stage.process(signal_name, moment, count)
        self._running.append(process)
        return process

    def _wait(self, condition: Callable[[], bool]) -> None:
        deadline = Deadline(TIMEOUT_S)
        while not condition():
            assert not deadline.expired()

    def close(self) -> None:
        """Leave nothing running."""
        for process in self._running:
            process.kill()
            process.wait()


def _is_stopped(process: subprocess.Popen[bytes]) -> bool:
    status = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]
    return status == "T" or process.poll() is not None


@pytest.mark.parametrize(
    "seed",
    [pytest.param(seed, marks=[] if seed in SAMPLE else pytest.mark.long) for seed in SCHEDULES],
)
def test_no_schedule_of_faults_loses_or_repeats_anything(
    broker: LocalBroker, tmp_path: Path, uninterrupted: Outcome, seed: int
) -> None:
    chance = random.Random(seed)
    stage, records = Stage(broker, tmp_path), traffic()
    cuts = sorted(chance.sample(range(1, len(records)), CHUNKS - 1))
    faults = Faults(stage, chance)
    try:
        for first, end in zip([0, *cuts], [*cuts, len(records)], strict=True):
            stage.produce(records[first:end])
            getattr(faults, chance.choice(FAULTS if seed % 3 == 0 else FAULTS[:3]))()
        with stage.sealer() as sealer:
            stage.drain(sealer)
    finally:
        faults.close()
    assert_same(stage.outcome(), uninterrupted)


@pytest.mark.parametrize(
    "moment",
    [
        "FILE_WRITTEN",
        # 40 s each: librdkafka may wait for ever for the coordinator, until the sealer ends itself.
        pytest.param("TRANSACTION_BEGUN", marks=pytest.mark.long),
        pytest.param("RESULTS_PRODUCED", marks=pytest.mark.long),
        pytest.param("OFFSETS_SENT", marks=pytest.mark.long),
    ],
)
def test_broker_that_is_killed_under_load_and_comes_back_costs_nothing(
    tmp_path: Path, uninterrupted: Outcome, moment: str
) -> None:
    jars_dir = load_settings().kafka.jars_dir
    records = traffic()
    with start_broker(tmp_path / "kafka", jars_dir=jars_dir) as first:
        stage = Stage(first, tmp_path / "stage")
        stage.produce(records[:200])
        paused = stage.process("SIGSTOP", moment, 2)
        try:
            os.waitpid(paused.pid, os.WUNTRACED)
            first.kill()
            paused.send_signal(signal.SIGCONT)
            with start_broker(tmp_path / "kafka", jars_dir=jars_dir):
                stage.produce(records[200:])
                deadline = Deadline(TIMEOUT_S)
                while paused.poll() is None and not stage.is_covered():
                    assert not deadline.expired()
                paused.kill()
                paused.wait()
                with stage.sealer() as sealer:
                    stage.drain(sealer)
                assert_same(stage.outcome(), uninterrupted)
        finally:
            paused.kill()
            paused.wait()


@pytest.mark.parametrize(
    "moment",
    [
        pytest.param("FILE_WRITTEN", marks=pytest.mark.long),
        "RESULTS_PRODUCED",
        pytest.param("COMMITTED", marks=pytest.mark.long),
    ],
)
def test_erasure_counts_once_however_often_its_sealer_dies(
    broker: LocalBroker, tmp_path: Path, moment: str
) -> None:
    stage = Stage(broker, tmp_path, shard_max_rows=1000, shard_max_age_s=0.2)

    def watched(event_id: str, user_id: str) -> tuple[str, bytes]:
        return user_id, json.dumps(watch_event(event_id, user_id=user_id)).encode()

    stage.produce(
        [watched("e1", "u0"), watched("e2", "u1"), erasure("x", "u0"), watched("e3", "u0")]
    )
    killed = stage.process("SIGKILL", moment, 1)
    assert killed.wait(TIMEOUT_S) == -signal.SIGKILL
    with stage.sealer() as sealer:
        stage.drain(sealer)
    outcome = stage.outcome()
    assert sorted(each.event_id for each in outcome.watches) == ["e2", "e3"]
    assert [len(outcome.histories[user].video_ids) for user in ("u0", "u1")] == [1, 1]
    assert sum(shard.erased for shard in outcome.shards) == 2


def test_disk_that_takes_no_file_is_waited_for(
    broker: LocalBroker, tmp_path: Path, uninterrupted: Outcome
) -> None:
    stage = Stage(broker, tmp_path)
    stage.produce(traffic())
    # A limit on the size of files fails a write in its midst, as a full disk does.
    process = stage.process("SIGTERM", "COMMITTED", 3, file_bytes_max=6_000)
    try:
        deadline = Deadline(TIMEOUT_S)
        log = tmp_path / "sealer.log"
        while not (log.exists() and "shard_not_stored" in log.read_text()):
            assert not deadline.expired()
            assert process.poll() is None
        assert stage.outcome().shards == []
        stage.lift_limit(process)
        assert process.wait(TIMEOUT_S) == 0
    finally:
        process.kill()
        process.wait()
    assert len(stage.outcome().shards) >= 3
    with stage.sealer() as sealer:
        stage.drain(sealer)
    assert_same(stage.outcome(), uninterrupted)
