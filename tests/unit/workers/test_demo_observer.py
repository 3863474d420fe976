"""What the demo makes of what it has seen, while it goes on seeing."""

from __future__ import annotations

import pytest
from pydantic import BaseModel

from streams.events import TWO_TOWER_CLUSTER, CheckpointPromoted, SwapReported, to_json
from streams.topics import CHECKPOINTS, SWAPS, Topic
from tests.sealed_shards import sealed_shard
from workers.demo_observer import Observations


def observations() -> Observations:
    """Return two watches of one shard that a served model has learned from."""
    shard = sealed_shard("s", (0, 0, 1), rows=1, watches=2)
    checkpoint = CheckpointPromoted(
        model_name="lrm",
        model_version=2,
        codebook_version=1,
        path="",
        sha256="",
        metrics={},
        shard_ids=("s",),
        promoted_time_ms=30,
    )
    swap = SwapReported(
        replica="r",
        model_name="lrm",
        model_version=2,
        previous_version=1,
        outcome="succeeded",
        sha256="",
        swapped_time_ms=40,
        load_s=0,
    )
    return Observations(
        watches={(0, 0): 1, (0, 1): 2},
        shards=[(20, shard)],
        checkpoints=[(30, checkpoint)],
        swaps=[swap],
    )


def test_stage_times_are_those_of_watches_that_came_all_the_way() -> None:
    seen = observations()
    seen.watches[0, 2] = 3  # in no shard yet
    assert list(seen.stage_times()) == [(1, 20, 30, 40), (2, 20, 30, 40)]


def test_records_that_arrive_while_stage_times_are_read_are_for_the_next_time() -> None:
    seen = observations()
    times = seen.stage_times()
    first = next(times)
    seen.watches[1, 0] = 9
    assert [first, *times] == [(1, 20, 30, 40), (2, 20, 30, 40)]


class Record:
    """A Kafka message, as far as observations look."""

    def __init__(self, event: BaseModel) -> None:
        self._event = event

    def partition(self) -> int:
        return 0

    def offset(self) -> int:
        return 0

    def timestamp(self) -> tuple[int, int]:
        return 1, 50

    def value(self) -> bytes:
        return to_json(self._event)


@pytest.mark.parametrize("topic", [CHECKPOINTS, SWAPS])
def test_checkpoints_and_swaps_of_other_models_are_passed_over(topic: Topic) -> None:
    [(_, checkpoint)], [swap] = observations().checkpoints, observations().swaps
    event: CheckpointPromoted | SwapReported = checkpoint if topic is CHECKPOINTS else swap
    seen = Observations()
    seen.take(topic, Record(event.model_copy(update={"model_name": TWO_TOWER_CLUSTER})))
    assert (seen.checkpoints, seen.swaps) == ([], [])
    seen.take(topic, Record(event))
    assert len(seen.checkpoints) + len(seen.swaps) == 1
