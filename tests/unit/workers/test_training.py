"""Loops of several models in one process, without Kafka: how they end."""

from __future__ import annotations

import threading
from typing import Any, get_args

import pytest

from infra import metrics
from infra.settings import Settings, TrainingSettings
from streams.client import wait_until
from workers.trainers import TRAINERS
from workers.training import run_loops


class WaitingLoop:
    """Runs until told to stop."""

    def __init__(self, model_name: str) -> None:
        self.model_name = model_name
        self.ended = False

    def run(self, stopping: threading.Event) -> None:
        assert stopping.wait(60)
        self.ended = True


class FailingLoop:
    def __init__(self, model_name: str) -> None:
        self.model_name = model_name
        self.failed = threading.Event()

    def run(self, stopping: threading.Event) -> None:
        self.failed.set()
        raise RuntimeError("no store")


@pytest.mark.parametrize(
    ("failing", "other"), [("lrm", "two_tower_hash"), ("two_tower_hash", "two_tower_cluster")]
)
def test_error_of_the_lrm_or_where_there_is_none_stops_the_others_and_is_raised(
    failing: str, other: str
) -> None:
    waiting = WaitingLoop(other)
    loops: list[Any] = [waiting, FailingLoop(failing)]
    with pytest.raises(RuntimeError, match="no store"):
        run_loops(loops, threading.Event())
    assert waiting.ended


def test_error_of_a_two_tower_leaves_the_lrm_learning() -> None:
    waiting, failing, stopping = (
        WaitingLoop("lrm"),
        FailingLoop("two_tower_hash"),
        threading.Event(),
    )
    loops: list[Any] = [failing, waiting]
    given_up = metrics.ROUNDS.labels("two_tower_hash", "given_up")
    before = given_up._value.get()
    thread = threading.Thread(target=run_loops, args=(loops, stopping))
    thread.start()
    wait_until(
        lambda: given_up._value.get() > before, timeout_s=60, what="the end of the two-tower"
    )
    assert not stopping.is_set()
    assert thread.is_alive()
    stopping.set()
    thread.join(60)
    assert waiting.ended


def test_every_model_that_can_be_set_has_a_trainer() -> None:
    annotation: Any = TrainingSettings.model_fields["models"].annotation
    assert set(get_args(get_args(annotation)[0])) == set(TRAINERS)
    assert set(Settings().training.models) == set(TRAINERS)
