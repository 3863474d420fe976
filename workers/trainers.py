"""Which actor trains which model, and what it is told of a video."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from streams.events import LRM_MODEL_NAME, SemanticIdAssigned
from workers.training_actor import LrmTrainerActor, Video
from workers.two_tower_state import TWO_TOWERS, Content
from workers.two_tower_trainer import TwoTowerTrainerActor


@dataclass(frozen=True)
class TrainerKind:
    """How models of a kind are trained.

    Attributes:
        actor: a Ray actor class that is a `workers.training_actor.Trainer`.
        video_of: from an assignment, what its `update_videos` takes; None for a video that it cannot use.
    """

    actor: Any
    video_of: Callable[[SemanticIdAssigned], Any]


TRAINERS: dict[str, TrainerKind] = {
    LRM_MODEL_NAME: TrainerKind(LrmTrainerActor, Video.of),
    **{name: TrainerKind(TwoTowerTrainerActor, Content.of) for name in TWO_TOWERS},
}
