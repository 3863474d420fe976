from __future__ import annotations

from collections import Counter

import pytest

from infra.errors import ConfigError
from infra.settings import ExperimentSettings
from streams.arms import ARMS, MODEL_OF, WITH_FRESH_LANE, arm_of, shares

USERS = [f"user-{number}" for number in range(20_000)]


def test_every_user_has_the_same_arm_whenever_it_is_asked_for() -> None:
    first = [arm_of(user, ExperimentSettings(arms=ARMS)) for user in USERS]
    assert first == [arm_of(user, ExperimentSettings(arms=ARMS)) for user in USERS]


def test_arms_get_users_by_their_weights() -> None:
    experiment = ExperimentSettings(arms=("lrm:2", "lrm_fresh", "two_tower_hash:1"))
    assert list(shares(experiment).values()) == [0.5, 0.25, 0.25]
    counted = Counter(arm_of(user, experiment) for user in USERS)
    for arm, share in shares(experiment).items():
        assert counted[arm] / len(USERS) == pytest.approx(share, abs=0.02)


def test_user_without_an_id_gets_the_first_arm() -> None:
    assert arm_of(None, ExperimentSettings(arms=("lrm_fresh", "lrm"))) == "lrm_fresh"


def test_another_salt_deals_users_independently() -> None:
    one, other = (ExperimentSettings(arms=("lrm", "lrm_fresh"), salt=salt) for salt in ("a", "b"))
    both = sum(arm_of(user, one) == arm_of(user, other) for user in USERS)
    assert both / len(USERS) == pytest.approx(0.5, abs=0.02)


def test_growing_last_arm_takes_users_and_gives_none_away() -> None:
    before = ExperimentSettings(arms=("lrm:9", "lrm_fresh:1"))
    after = ExperimentSettings(arms=("lrm:5", "lrm_fresh:5"))
    moved = Counter((arm_of(user, before), arm_of(user, after)) for user in USERS)
    assert moved["lrm_fresh", "lrm"] == 0
    assert moved["lrm", "lrm_fresh"] > 0


@pytest.mark.parametrize("arms", [("lmr",), ("lrm", "lrm"), ("lrm:0",), ("lrm:x",), ("lrm:nan",)])
def test_wrong_arms_are_refused_by_name(arms: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="FRESHET_EXPERIMENT__ARMS"):
        arm_of("u", ExperimentSettings(arms=arms))


def test_control_of_the_fresh_lane_is_answered_by_the_model_of_the_hash_arm() -> None:
    assert set(MODEL_OF) == set(ARMS)
    assert MODEL_OF["two_tower_hash_random_new"] == MODEL_OF["two_tower_hash"] == "two_tower_hash"
    assert {"lrm_fresh", "two_tower_hash_random_new"} == WITH_FRESH_LANE
