"""The Ray actor that owns a two-tower in training; as `workers.training_actor`, and given the same tasks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import ray

from infra.settings import Settings
from workers.adapter_rounds import AdapterRecord
from workers.training_actor import RoundTask, Trainer
from workers.training_round import RoundResult
from workers.two_tower_round import run_two_tower_round
from workers.two_tower_state import TwoTowerState, load_two_tower, save_two_tower

BEHIND_THE_LRM = (
    15  # niceness: where cores are few, answers go first, and then the model that answers
)


class TwoTowerTrainer(Trainer):
    """The state of a two-tower, moved forward by rounds."""

    _state: TwoTowerState

    def _load(self, version: int, cache: Path) -> TwoTowerState:
        return load_two_tower(self._store, self._model_name, version, cache=cache)

    def _learn(self, task: RoundTask) -> tuple[RoundResult, dict[str, AdapterRecord]]:
        result = run_two_tower_round(
            self._state,
            task.rows,
            self._videos,
            erased_users=task.erased_users,
            evaluate_max=self._settings.training.evaluate_max,
            reward_share=self._settings.training.reward_share,
        )
        return result, {}

    def _write(self, scratch: Path, record: dict[str, Any]) -> str:
        return save_two_tower(
            self._state, self._store, self._model_name, scratch=scratch, record=record
        )


@ray.remote(num_cpus=0, max_restarts=0)
class TwoTowerTrainerActor(TwoTowerTrainer):
    """The same in a process of its own."""

    def __init__(self, settings: Settings, model_name: str) -> None:
        os.nice(BEHIND_THE_LRM)
        super().__init__(settings, model_name)
