"""Which arm of the experiment answers a user: a function of the user's id and the settings, and of nothing else.

So every stage computes it alone, and a user keeps the arm through restarts, replicas and models. An arm whose weight
grows takes users from its neighbours in the list only. Knows of an arm which model answers it and whether it
has places for new videos, not how they are filled.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from itertools import accumulate
from typing import Final

from infra.errors import ConfigError
from infra.settings import ExperimentSettings
from streams.events import LRM_MODEL_NAME, TWO_TOWER_CLUSTER, TWO_TOWER_HASH

LRM, LRM_FRESH = "lrm", "lrm_fresh"
TWO_TOWER_HASH_RANDOM_NEW = "two_tower_hash_random_new"
"""Hashed ids, and new videos drawn at random in the places of the fresh lane: what such places do by themselves."""
ARMS: Final = (LRM, LRM_FRESH, TWO_TOWER_CLUSTER, TWO_TOWER_HASH, TWO_TOWER_HASH_RANDOM_NEW)
MODEL_OF: Final[Mapping[str, str]] = {
    LRM: LRM_MODEL_NAME,
    LRM_FRESH: LRM_MODEL_NAME,
    TWO_TOWER_CLUSTER: TWO_TOWER_CLUSTER,
    TWO_TOWER_HASH: TWO_TOWER_HASH,
    TWO_TOWER_HASH_RANDOM_NEW: TWO_TOWER_HASH,
}
"""The `model_name` whose checkpoints answer each arm."""
WITH_FRESH_LANE: Final = frozenset({LRM_FRESH, TWO_TOWER_HASH_RANDOM_NEW})
_BUCKETS: Final = 2**64


@lru_cache(maxsize=64)
def shares(experiment: ExperimentSettings) -> Mapping[str, float]:
    """Return each arm's share of the users, in the order of the settings; the shares sum to 1.

    Raises:
        ConfigError: an arm is unknown or there twice, or a weight is no positive number.
    """
    weights: dict[str, float] = {}
    for entry in experiment.arms:
        name, _, weight = entry.partition(":")
        if name not in ARMS:
            raise ConfigError(
                f"FRESHET_EXPERIMENT__ARMS names {name!r}; expected some of {', '.join(ARMS)}"
            )
        if name in weights:
            raise ConfigError(f"FRESHET_EXPERIMENT__ARMS names {name} twice; give it a weight")
        weights[name] = _weight(entry, weight)
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()}


def _weight(entry: str, weight: str) -> float:
    try:
        found = float(weight or 1)
    except ValueError:
        found = 0.0
    if not 0 < found < 1e6:
        raise ConfigError(
            f"FRESHET_EXPERIMENT__ARMS has {entry!r}; behind the colon stands a weight, such as 2 or 0.5"
        )
    return found


def arm_of(user_id: str | None, experiment: ExperimentSettings) -> str:
    """Return the user's arm; the first one for who has no id.

    Raises:
        ConfigError: the settings are wrong.
    """
    by_arm = shares(experiment)
    if user_id is None:
        return next(iter(by_arm))
    digest = hashlib.blake2b(
        user_id.encode(), digest_size=8, key=experiment.salt.encode()[:64]
    ).digest()
    place = int.from_bytes(digest, "little") / _BUCKETS
    for arm, end in zip(by_arm, accumulate(by_arm.values()), strict=True):
        if place < end:
            return arm
    return arm  # the shares summed to a hair below 1
