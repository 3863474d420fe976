"""Who is killed when, from a seed; and how it is found. `kill -9`, so that nobody can leave in order.

Not killed: `freshet up` itself, which is the supervisor (all of the rest dies with it), and those of Ray's own
processes without which nothing of ours stops.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import psutil

from tests.soak.processes import Process
from workers.stack import PROCESSES

RAY_WORKERS = ("replica", "serve controller", "lrm trainer", "two-tower trainer")
RAY_PARTS = ("raylet", "gcs_server", "ray head")
"""With each of them all of Ray goes, and everything that runs on it: a short soak kills one of them."""
JITTER = 0.6
"""Of its part of the time, where a kill may be: two that are on time are never closer than the rest of it."""


@dataclass(frozen=True)
class Kill:
    """One that is planned: `at_s` seconds after the load began."""

    at_s: float
    victim: str


@dataclass
class Killed:
    """One that was done.

    Attributes:
        at_s, back_s: on the wall clock; None while there is no other process in its place.
        there: who was of that name then.
    """

    victim: str
    pid: int
    at_s: float
    there: frozenset[Process] = frozenset()
    back_s: float | None = None


def victims(seed: int, *, whole_ray: bool) -> list[str]:
    """Return who is to be killed: one of each; of the parts of Ray all, or one by the seed.

    There are two two-tower trainers, and twice the older one is killed.
    """
    parts = RAY_PARTS if whole_ray else (random.Random(seed).choice(RAY_PARTS),)
    return [*PROCESSES, *RAY_WORKERS, "two-tower trainer", "decoder", "kafka", *parts]


def plan_kills(names: Sequence[str], *, seed: int, from_s: float, until_s: float) -> list[Kill]:
    """Return a kill of each, in a seeded order, at a seeded moment of one of as many equal parts of the time.

    Raises:
        ValueError: there is no time.
    """
    if not 0 <= from_s < until_s:
        raise ValueError(f"kills from {from_s} s until {until_s} s; expected 0 <= from < until")
    rng = random.Random(f"kills {seed}")
    shuffled = rng.sample(names, len(names))
    part_s = (until_s - from_s) / len(shuffled)
    return [
        Kill(round(from_s + part_s * (place + JITTER * rng.random()), 1), name)
        for place, name in enumerate(shuffled)
    ]


class Killer:
    """Does what is planned, and notes when another process is in the place of each."""

    def __init__(
        self,
        plan: Sequence[Kill],
        processes: Callable[[], list[Process]],
        *,
        gap_s: float = 0.0,
    ) -> None:
        """Kill as planned, but no two within `gap_s`: one that is late does not come on top of others."""
        self._plan, self._processes, self._gap_s = list(plan), processes, gap_s
        self._next_s = 0.0
        self.killed: list[Killed] = []

    @property
    def left(self) -> list[str]:
        """Who is still to be killed."""
        return [kill.victim for kill in self._plan]

    def kill_due(self, elapsed_s: float) -> Killed | None:
        """Kill one whose time has come, the oldest of that name; one that is just being started is left for later."""
        due = [kill for kill in self._plan if kill.at_s <= elapsed_s]
        if not due or elapsed_s < self._next_s:
            return None
        there = self._processes()
        for kill in due:
            found = [one for one in there if one.name == kill.victim]
            for one in sorted(found, key=lambda one: one.created_s):
                killed = Killed(kill.victim, one.pid, time.time(), frozenset(found))
                with suppress(psutil.NoSuchProcess):
                    psutil.Process(one.pid).kill()
                    self._plan.remove(kill)
                    self._next_s = elapsed_s + self._gap_s
                    self.killed.append(killed)
                    return killed
        return None

    def look(self) -> None:
        """Note who is back: one of that name that was not there at the kill, or had another name, as Ray's have."""
        waiting = [one for one in self.killed if one.back_s is None]
        if not waiting:
            return
        found = self._processes()
        for killed in waiting:
            if any(one.name == killed.victim and one not in killed.there for one in found):
                killed.back_s = time.time()
