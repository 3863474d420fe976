"""The closed loop's benchmark: its options, and how reports of several seeds add up."""

from __future__ import annotations

from typing import Any

import pytest

from infra.errors import FreshetError
from tests.bench import closed_loop as bench
from tests.bench.measure import Measure
from tests.command_line import accept


def report(seed: int, **lrm: float) -> dict[str, Any]:
    """Each arm's figures are 1, but for what is said of the LRM."""
    figures = (*bench.OWN_UNITS, *(figure for figure, _ in bench.QUOTIENTS.values()))

    def of(value: float) -> dict[str, float]:
        return {"value": value, "ci_low": 0.9 * value, "ci_high": 1.1 * value}

    arms = {arm: {name: of(1.0) for name in figures} for arm in bench.SHORT}
    arms["lrm"] |= {name: of(value) for name, value in lrm.items()}
    over = {arm: {name: of(7.0) for name in figures} for arm in bench.SHORT}
    return {
        "arms": arms,
        "over_baseline": over,
        "baseline": bench.HASH,
        "seed": seed,
        "refreshes": {"lrm": 10 + seed},
    }


def measured(*reports: dict[str, Any]) -> dict[str, Measure]:
    return {one.measure: one for one in bench.measures(reports)}


def test_every_promised_measure_is_reported_with_its_interval() -> None:
    found = measured(report(0), report(1))
    for name in (
        "coverage_cluster_ids_over_hash", "velocity_cluster_ids_over_hash", "coverage_lrm_over_hash",
        "velocity_lrm_over_hash", "coverage_lrm_fresh_over_hash", "velocity_lrm_fresh_over_hash",
        "watch_time_lrm_over_hash", "watch_time_lrm_fresh_over_hash", "watch_time_lrm_fresh_over_random_new",
        "clicks_lrm_over_hash", "likes_lrm_over_hash",
    ):  # fmt: skip
        assert {"value", "ci_low", "ci_high"} <= found[name].as_json().keys(), name
        assert found[name].value == 1


def test_quotients_are_taken_within_each_seed_and_averaged_as_quotients() -> None:
    found = measured(report(0, coverage=2.0), report(1, coverage=8.0))["coverage_lrm_over_hash"]
    assert found.value == pytest.approx(4)
    assert found.ci is not None
    low, high = found.ci
    assert low < 2 < 8 < high
    assert low * high == pytest.approx(16)  # symmetric as quotients


def test_seeds_that_agree_leave_no_doubt() -> None:
    found = measured(*(report(seed, coverage=1.5) for seed in range(4)))["coverage_lrm_over_hash"]
    assert found.ci == pytest.approx((1.5, 1.5))


def test_velocity_above_one_is_faster() -> None:
    seeds = [report(seed, time_to_threshold_s=0.5) for seed in range(2)]
    assert measured(*seeds)["velocity_lrm_over_hash"].value == pytest.approx(2)
    assert measured(*seeds)["lrm_time_to_threshold_s"].higher_is_better is False


def test_one_seed_has_the_interval_of_its_own_viewers() -> None:
    found = measured(report(0, coverage=7.0))
    assert found["coverage_lrm_over_hash"].ci == pytest.approx((6.3, 7.7))
    assert found["lrm_coverage"].ci == pytest.approx((6.3, 7.7))


def test_what_cannot_be_divided_is_named() -> None:
    with pytest.raises(FreshetError, match="coverage_lrm_over_hash, seed 3"):
        measured(report(2), report(3, coverage=0.0))


def test_interval_of_four_is_students() -> None:
    value, (low, high) = bench.geometric_mean([1.0, 1.0, 4.0, 4.0])
    assert value == pytest.approx(2)
    assert high / value == pytest.approx(value / low) == pytest.approx(3.574, abs=0.01)


def test_options_are_the_demos_at_any_scale() -> None:
    for scale in (1.0, 0.1, 0.01):
        options = bench.scaled(scale)
        accept(["demo", "--closed-loop", *(f"--{name}={value}" for name, value in options.items())])
        assert float(options["hours"]) >= 1.5 * float(options["window-h"])
    assert bench.scaled(1.0)["viewers"] == "90"
    assert bench.scaled(0.1)["viewers"] == "9"
