"""Training that ends when its CPU-seconds are spent, so that models of different kinds are given the same.

CPU-seconds are those of this process: what else the machine does costs a run time, and no model its turn.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count

import torch

from models.examples import Block
from models.lrm import Lrm
from models.next_item import NextItemModel, NextItemTraining, Window, train_pass
from models.training import TrainingConfig, initial_learning_rate, train_on

_STEPS_BETWEEN_LOOKS = 8
_SCHEDULE_STEPS = 10_000


@dataclass
class CpuBudget:
    """CPU-seconds to spend; only what happens within `spending` counts.

    Attributes:
        total_s: to spend; 0 is spent from the start.
    """

    total_s: float
    spent_s: float = 0.0
    _since_s: float | None = field(default=None, repr=False)

    @property
    def share(self) -> float:
        """The share that is spent, at most 1."""
        running = 0.0 if self._since_s is None else time.process_time() - self._since_s
        return min(1.0, (self.spent_s + running) / self.total_s) if self.total_s else 1.0

    def __enter__(self) -> CpuBudget:
        self._since_s = time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._since_s is not None
        self.spent_s += time.process_time() - self._since_s
        self._since_s = None


def train_next_item(
    model: NextItemModel,
    optimizer: torch.optim.Adam,
    windows: Sequence[Window],
    training: NextItemTraining,
    budget: CpuBudget,
    *,
    rng: random.Random,
    until_share: float = 1.0,
) -> None:
    """Pass over the windows until that share of the budget is spent, its learning rate following the share."""
    with budget:
        while budget.share < until_share:
            train_pass(
                model,
                optimizer,
                windows,
                training,
                rng=rng,
                learning_rate=lambda _: training.learning_rate(budget.share),
                is_over=lambda: budget.share >= until_share,
            )


def train_lrm(
    lrm: Lrm,
    optimizer: torch.optim.AdamW,
    blocks: Iterator[list[Block]],
    config: TrainingConfig,
    budget: CpuBudget,
    *,
    until_share: float = 1.0,
) -> None:
    """Train on epochs of blocks until that share of the budget is spent; `blocks` goes on where it stopped."""
    rate, seeds = _rate_by_share(config, budget), count(round(_SCHEDULE_STEPS * budget.share))
    with budget:
        while budget.share < until_share:
            train_on(lrm, optimizer, next(blocks), config, learning_rate=rate, seed=next(seeds))


def in_steps(epochs: Iterator[list[Block]], config: TrainingConfig) -> Iterator[list[Block]]:
    """Cut epochs into so few steps each that a budget is looked at often."""
    size = _STEPS_BETWEEN_LOOKS * config.blocks_per_step
    for blocks in epochs:
        for start in range(0, len(blocks), size):
            yield blocks[start : start + size]


def _rate_by_share(config: TrainingConfig, budget: CpuBudget) -> Callable[[int, int], float]:
    """Return the first fit's schedule, told by the share of the budget instead of by the step."""
    return lambda _step, _steps: initial_learning_rate(
        config, round(budget.share * _SCHEDULE_STEPS), _SCHEDULE_STEPS
    )
