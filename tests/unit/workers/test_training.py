"""Loops of several models in one process, without Kafka: how they end."""

from __future__ import annotations

import threading
from typing import Any, get_args

import pytest

from infra.settings import Settings, TrainingSettings
from workers.trainers import TRAINERS
from workers.training import run_loops


class WaitingLoop:
    """Runs until told to stop."""

    ended = False

    def run(self, stopping: threading.Event) -> None:
        assert stopping.wait(60)
        self.ended = True


class FailingLoop:
    def run(self, stopping: threading.Event) -> None:
        raise RuntimeError("no store")


def test_error_in_one_loop_stops_the_others_and_is_raised() -> None:
    waiting, loops = WaitingLoop(), []
    loops = [waiting, FailingLoop()]
    with pytest.raises(RuntimeError, match="no store"):
        run_loops(loops, threading.Event())  # type: ignore[arg-type]
    assert waiting.ended


def test_every_model_that_can_be_set_has_a_trainer() -> None:
    annotation: Any = TrainingSettings.model_fields["models"].annotation
    assert set(get_args(get_args(annotation)[0])) == set(TRAINERS)
    assert set(Settings().training.models) == set(TRAINERS)
