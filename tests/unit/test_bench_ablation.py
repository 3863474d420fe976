"""The ablation of rounds: what a variant changes, and what is said of it."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest

from tests.bench import ablation
from tests.bench.ablation import CHOSEN, Outcome, Variant, measures, page, run_variant
from tests.bench.parts.quality_budget import BUDGETS
from tests.bench.parts.quality_figures import Figure
from tests.quality_factories import STREAM, some_state

BUDGET = replace(BUDGETS["cpu"], round_watches=12, targets_per_stratum=3)


def outcome(variant: Variant) -> Outcome:
    return run_variant(variant, STREAM, 60, copy.deepcopy(some_state()), BUDGET, seed=0)


def test_variants_begin_alike_and_differ_by_what_they_name() -> None:
    first, again, other = map(
        outcome, (Variant("a"), Variant("b"), Variant("c", {"round_learning_rate": 2e-3}))
    )
    assert first.nats == again.nats
    assert first.nats != other.nats
    assert first.recall.targets == other.recall.targets > 0


def test_rounds_without_learning_do_worse() -> None:
    chosen = outcome(Variant(CHOSEN, {"round_learning_rate": 2e-3}))
    still = outcome(Variant("still", {"round_learning_rate": 1e-12}))
    assert chosen.nats < still.nats


def test_average_that_moves_slowly_lags_behind() -> None:
    chosen = outcome(Variant(CHOSEN, {"round_learning_rate": 2e-3}))
    averaged = outcome(Variant("averaged", {"round_learning_rate": 2e-3}, average=0.999))
    assert averaged.nats > chosen.nats


def test_page_and_measures_tell_the_best_from_the_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        ablation,
        "provenance",
        lambda: {"hardware": {"cores": 2, "cpu": "A"}, "versions": {}, "commit": "c0ffee"},
    )
    found = [
        Outcome(Variant(CHOSEN), 9.0, Figure(0.05, 0.01, 10), 3.0),
        Outcome(Variant("other"), 8.0, Figure(0.06, 0.01, 10), 4.0),
    ]
    assert "| other | 8.000 | 0.0600 ±0.0100 | 4 |" in page(found, STREAM, 60, BUDGET)
    nats, _, _ = measures(found)
    assert (nats.value, nats.peer, nats.peer_value) == (9.0, "the best variant: other", 8.0)
