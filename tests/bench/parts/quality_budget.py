"""How much the quality benchmark may spend: its two budgets, and a share of one for a quick try."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

BudgetName = Literal["cpu", "full"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """Sizes of a run."""

    name: BudgetName
    data_share: float = 1.0
    """Of the films' events, the earliest, and of Beauty's users, the first."""
    quantizer_steps: int = 1000
    """Of the codebooks' fits."""
    epochs: int = 12
    """Of the LRM's first fit on films; all others get the CPU-seconds that this took."""
    round_watches: int = 2000
    """Watches of films between two refreshes."""
    targets_per_stratum: int = 60
    """Targets scored per round and stratum of how often they had been watched; four times as many of the last."""
    beauty_cpu_s: float = 900.0
    """CPU-seconds of training for each model on Beauty."""
    beauty_checks: int = 6
    """How often a model on Beauty is tried on the validation items; the best of these is tested."""
    beauty_validation: int = 1000
    """Users whose validation item is ranked at each check."""
    beauty_targets: int = 6000
    """Users whose test item is ranked, drawn at random; the same for all models. 0: all."""


BUDGETS: dict[BudgetName, Budget] = {
    "cpu": Budget(name="cpu"),
    "full": Budget(
        name="full",
        epochs=40,
        round_watches=1000,
        targets_per_stratum=200,
        beauty_cpu_s=6 * 3600.0,
        beauty_checks=12,
        beauty_validation=2000,
        beauty_targets=0,
    ),
}


def budget_of(name: BudgetName, scale: float) -> Budget:
    """Return a budget, or about `scale` of it: less data and less time, so that nothing it says is comparable."""
    budget = BUDGETS[name]
    if scale == 1:
        return budget
    return replace(
        budget,
        data_share=scale,
        quantizer_steps=max(50, round(scale * budget.quantizer_steps)),
        round_watches=max(200, round(scale * budget.round_watches)),
        beauty_cpu_s=scale * budget.beauty_cpu_s,
        beauty_validation=max(50, round(scale * budget.beauty_validation)),
        beauty_targets=max(100, round(scale * budget.beauty_targets)),
    )
