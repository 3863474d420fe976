"""The sealer interrupted anywhere, on a real broker: nothing missing, nothing twice, whatever happens in between."""

from __future__ import annotations

import os
import random
import signal
import threading
from pathlib import Path

import pytest

from infra.clock import Deadline
from infra.errors import TransientError
from infra.kafka.broker import LocalBroker
from streams.events import ShardSealed
from streams.shards import verify_shards
from tests.integration.sealer_process import MOMENTS
from tests.integration.sealer_stage import (
    TIMEOUT_S,
    Outcome,
    Stage,
    assert_same,
    traffic,
    uninterrupted_outcome,
)
from workers.orphans import collect_orphans
from workers.sealing import SealStep
from workers.watches import Sealer

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def uninterrupted(broker: LocalBroker, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """What the traffic becomes when nothing goes wrong."""
    return uninterrupted_outcome(broker, tmp_path_factory.mktemp("uninterrupted"))


KILLS = [(moment, count) for moment in MOMENTS for count in (1, 2, 4)]
SAMPLE = random.Random(5).sample(KILLS, 2)


@pytest.mark.parametrize(
    ("moment", "count"),
    [
        pytest.param(*kill, marks=[] if kill in SAMPLE else pytest.mark.long, id=f"{kill[0]}-{kill[1]}")
        for kill in KILLS
    ],
)  # fmt: skip
def test_sealer_killed_at_any_step_leaves_nothing_missing_and_nothing_twice(
    broker: LocalBroker, tmp_path: Path, uninterrupted: Outcome, moment: str, count: int
) -> None:
    stage = Stage(broker, tmp_path)
    stage.produce(traffic())
    killed = stage.process("SIGKILL", moment, count)
    assert killed.wait(TIMEOUT_S) == -signal.SIGKILL
    with stage.sealer() as sealer:
        stage.drain(sealer)
    assert_same(stage.outcome(), uninterrupted)
    announced = {shard.path for shard in stage.outcome().shards}
    assert collect_orphans(stage.kafka, stage.store, grace_s=3_600) == []  # too young
    collect_orphans(stage.kafka, stage.store, grace_s=0)
    left = stage.store.unchanged_for(f"{stage.kafka.topic_prefix}shards", 0)
    assert set(left) == announced


def next_offsets(shards: list[ShardSealed]) -> dict[int, int]:
    return {at.partition: at.last_offset + 1 for shard in shards for at in shard.ranges}


def test_sealer_that_is_stopped_seals_what_it_has(broker: LocalBroker, tmp_path: Path) -> None:
    stage = Stage(broker, tmp_path, shard_max_rows=1000, shard_max_age_s=3600)
    stage.produce(traffic())
    stopping = threading.Event()
    with stage.sealer() as sealer:
        deadline = Deadline(TIMEOUT_S)
        while sealer._builder is None or sealer._builder.records < 400:
            assert not deadline.expired()
            sealer.step()
        stopping.set()
        sealer.run(stopping)
    [shard] = stage.outcome().shards
    assert stage.committed_offsets() == next_offsets([shard])


def test_sigterm_while_sealing_finishes_the_shard(broker: LocalBroker, tmp_path: Path) -> None:
    stage = Stage(broker, tmp_path)
    stage.produce(traffic())
    process = stage.process("SIGTERM", SealStep.OFFSETS_SENT.name, 2)
    assert process.wait(TIMEOUT_S) == 0
    outcome = stage.outcome()
    assert len(outcome.shards) in (
        2,
        3,
    )  # the next one was being filled meanwhile, and is sealed too
    assert verify_shards(outcome.shards) == []
    committed = {number: offset for number, offset in stage.committed_offsets().items() if offset}
    assert committed == next_offsets(outcome.shards)


def test_second_member_joining_mid_shard_shares_the_work(
    broker: LocalBroker, tmp_path: Path, uninterrupted: Outcome
) -> None:
    stage = Stage(broker, tmp_path, shard_max_age_s=1.0)
    records = traffic()
    stage.produce(records[:30])
    with stage.sealer() as first:
        deadline = Deadline(TIMEOUT_S)
        while first._builder is None or not first._builder.records:
            assert not deadline.expired()
            first.step()
        with stage.sealer() as second:
            while len(first._assigned) != 1 or len(second._assigned) != 1:
                assert not deadline.expired()
                first.step()
                second.step()
            stage.produce(records[30:])
            stage.drain(first, second)
    outcome = stage.outcome()
    assert_same(outcome, uninterrupted)
    assert len({shard.shard_id.split("-")[2] for shard in outcome.shards}) == 2  # writers


@pytest.mark.parametrize(
    "moment",
    [
        "FILE_WRITTEN",
        *(
            pytest.param(each, marks=pytest.mark.long)  # 60 s each, until the broker ends a transaction
            for each in ("TRANSACTION_BEGUN", "RESULTS_PRODUCED", "OFFSETS_SENT")
        ),
    ],
)  # fmt: skip
def test_zombie_that_wakes_up_commits_nothing(
    broker: LocalBroker, tmp_path: Path, uninterrupted: Outcome, moment: str
) -> None:
    stage = Stage(broker, tmp_path)
    stage.produce(traffic())
    zombie = stage.process("SIGSTOP", moment, 2)
    try:
        _, status = os.waitpid(zombie.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        with stage.sealer() as sealer:
            stage.drain(sealer)
            before = stage.outcome()
            zombie.send_signal(signal.SIGCONT)
            zombie.send_signal(signal.SIGTERM)
            deadline = Deadline(TIMEOUT_S)
            while zombie.poll() is None:
                assert not deadline.expired()
                sealer.step()
    finally:
        zombie.kill()
    assert_same(before, uninterrupted)
    assert stage.outcome() == before


def test_idle_sealer_that_was_put_out_of_its_group_ends(
    broker: LocalBroker, tmp_path: Path
) -> None:
    stage = Stage(broker, tmp_path)
    stage.produce(traffic())
    idle = Sealer(stage.settings, member="same", store=stage.store)
    stage.drain(idle)
    other = Sealer(stage.settings, member="same", store=stage.store)
    deadline = Deadline(TIMEOUT_S)

    def step_both() -> None:
        while not deadline.expired():
            other.step()
            idle.step()

    try:
        with pytest.raises(TransientError, match="put out of its group"):
            step_both()
    finally:
        idle.close()
        other.close()
