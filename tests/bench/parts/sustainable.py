"""The highest rate that is answered as it should be, found by trying; knows nothing of how a rate is tried."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from infra.errors import FreshetError
from tests.bench.parts.http_answers import described, is_by_model, latency_s
from tests.bench.parts.http_load import Answer
from tests.bench.parts.marks import say

P99_MAX_S = 0.5
GROWTH, HALVINGS, LOWEST_PER_S = 1.5, 2, 0.25
STEP_DOWN = 0.9
Send = Callable[[float, float], Sequence[Answer]]
"""Sends at a rate for a duration."""


class Sustainable(NamedTuple):
    """The rate, and how it was answered while it was held."""

    rate_per_s: float
    p99_s: float


def is_sustained(answers: Sequence[Answer]) -> bool:
    """Return whether the model answered every request itself, and nearly all of them soon."""
    return bool(answers) and all(map(is_by_model, answers)) and latency_s(answers) <= P99_MAX_S


def find_sustainable(
    send: Send, *, first_per_s: float = 4.0, step_s: float, hold_s: float
) -> Sustainable:
    """Return the highest rate that is sustained for `hold_s`, to within a tenth or so.

    Rates grow until one is not sustained, the last step is halved, and the result is held, a little lower if need be.

    Raises:
        FreshetError: not even the lowest rate is sustained.
    """

    def holds(rate_per_s: float, duration_s: float) -> bool:
        answers = send(rate_per_s, duration_s)
        say(f"{rate_per_s:.1f} requests/s for {duration_s:.0f} s: {described(answers)}")
        return is_sustained(answers)

    good, bad = 0.0, first_per_s
    while holds(bad, step_s):
        good, bad = bad, bad * GROWTH
    while not good and bad > LOWEST_PER_S:
        good, bad = (bad / 2, bad) if holds(bad / 2, step_s) else (0.0, bad / 2)
    for _ in range(HALVINGS if good else 0):
        middle = (good * bad) ** 0.5
        good, bad = (middle, bad) if holds(middle, step_s) else (good, middle)
    while good > LOWEST_PER_S:
        answers = send(good, hold_s)
        say(f"held {good:.1f} requests/s for {hold_s:.0f} s: {described(answers)}")
        if is_sustained(answers):
            return Sustainable(good, latency_s(answers))
        good *= STEP_DOWN
    raise FreshetError(
        f"not even {max(good, LOWEST_PER_S):.2f} requests/s are all answered by the model, 99 of 100 within "
        f"{1000 * P99_MAX_S:.0f} ms: this machine is too slow or too busy for this benchmark"
    )
