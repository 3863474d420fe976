"""What was measured every few seconds, and whether it stays within bounds; knows nothing of how it is measured.

Memory. Each life of a process is judged by itself, once it is warm: a line through its samples (Theil-Sen, which a
round's peak does not bend) must not have grown by more than an allowance in the time that was looked at. Two thirds of
a run hide nothing that way, and a restart nothing either. Caches, reservoirs and allocators fill up at first, hence the
warm-up, and slower afterwards, hence the allowance; a leak of 1 MB a minute exceeds it within half an hour. A JVM
fills the heap that it was given before it collects: the broker is judged by that heap.

Disk. Where records are forgotten, there must never be much more than what came in within the time for which they are
kept; how fast it comes in is counted where it can be (a shard grows with the histories in it), or else measured
before the first is forgotten. A part that keeps the newest few, as checkpoints
do, must not grow from the second third of the run to the last.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from tests.soak.processes import Process

MB = 1_000_000
GROWTH_ALLOWED_BYTES, GROWTH_ALLOWED_SHARE = 24 * MB, 0.10
WARM_UP_SHARE, WARM_UP_MIN_S = 0.1, 90.0
"""Of a run, and at least: what a life's beginning does not say anything about."""
WATCHED_SHARE = 0.15
"""Of a run: who lived shorter, warm, is not judged."""
POINTS = 60
BROKER_MAX_BYTES = 800 * MB
"""A heap of 512 MB, and what a JVM takes beside it."""
DISK_ALLOWED = 1.25
DISK_SLACK_BYTES = MB // 4
"""A few segments that were begun just now."""
Line = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Sample:
    """One look: `at_s` after the load began.

    Attributes:
        own_bytes: memory of each process.
        disk_bytes: by area.
        records: acknowledged so far.
        came_in_bytes: so far, by area, where it is counted.
    """

    at_s: float
    own_bytes: Mapping[Process, int]
    disk_bytes: Mapping[str, int]
    records: int
    came_in_bytes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Grown:
    """How the memory of one life went.

    Attributes:
        watched_s: how long it was looked at, warm.
        median_bytes, grown_bytes, allowed_bytes: of that time.
    """

    name: str
    pid: int
    watched_s: float
    median_bytes: float
    grown_bytes: float
    allowed_bytes: float

    @property
    def is_flat(self) -> bool:
        """Whether it grew no further than it may."""
        return self.grown_bytes <= self.allowed_bytes


def slope(points: Line) -> float:
    """Return the median slope between any two points: half of them may be anywhere (Theil and Sen)."""
    step = max(1, len(points) // POINTS)
    thinned = points[::step]
    slopes = [
        (y2 - y1) / (x2 - x1)
        for place, (x1, y1) in enumerate(thinned)
        for x2, y2 in thinned[place + 1 :]
        if x2 > x1
    ]
    return median(slopes) if slopes else 0.0


def grown(samples: Sequence[Sample], *, load_s: float) -> list[Grown]:
    """Return how the memory of every life went that lived long enough, warm."""
    lives: dict[Process, list[tuple[float, float]]] = defaultdict(list)
    for sample in samples:
        for process, own in sample.own_bytes.items():
            lives[process].append((sample.at_s, own))
    warm_up_s = max(WARM_UP_MIN_S, WARM_UP_SHARE * load_s)
    found = []
    for process, points in lives.items():
        warm = [(at_s, own) for at_s, own in points if at_s >= points[0][0] + warm_up_s]
        watched_s = warm[-1][0] - warm[0][0] if warm else 0.0
        if len(warm) < 5 or watched_s < WATCHED_SHARE * load_s:
            continue
        middle = median(own for _, own in warm)
        allowed = max(GROWTH_ALLOWED_BYTES, GROWTH_ALLOWED_SHARE * middle)
        if process.name == "kafka":
            allowed = max(0.0, BROKER_MAX_BYTES - warm[0][1])
        found.append(
            Grown(process.name, process.pid, watched_s, middle, slope(warm) * watched_s, allowed)
        )
    return sorted(found, key=lambda one: (one.name, one.pid))


def memory_problems(samples: Sequence[Sample], *, load_s: float) -> list[str]:
    """Return whose memory grew, in words."""
    found = grown(samples, load_s=load_s)
    problems = [
        f"memory of {one.name} ({one.pid}) grew by {one.grown_bytes / MB:.0f} MB in {one.watched_s:.0f} s, "
        f"{one.allowed_bytes / MB:.0f} MB are allowed"
        for one in found
        if not one.is_flat
    ]
    return problems if found else ["nobody's memory was looked at long enough"]


@dataclass(frozen=True)
class Bound:
    """For how long an area keeps what was written: `kept_s` at most, and all of it for `whole_s`."""

    area: str
    whole_s: float
    kept_s: float

    def is_judged(self, load_s: float) -> bool:
        """Return whether a run is long enough to tell."""
        return load_s >= 1.2 * DISK_ALLOWED * self.kept_s


def bound_problems(samples: Sequence[Sample], bound: Bound) -> list[str]:
    """Return where an area held more than what came in within the time that it keeps."""
    if all(bound.area in one.came_in_bytes for one in samples):
        return _counted_problems(samples, bound)
    area = [(one.at_s, float(one.disk_bytes[bound.area])) for one in samples]
    rate_per_s = slope([point for point in area if point[0] <= bound.whole_s])
    start = min((held for _, held in area), default=0.0)
    allowed = start + DISK_ALLOWED * rate_per_s * bound.kept_s + DISK_SLACK_BYTES
    held = max((held for at_s, held in area if at_s > bound.kept_s), default=0.0)
    if held <= allowed:
        return []
    return [
        f"{bound.area}: {held / MB:.1f} MB on disk, {allowed / MB:.1f} are allowed: {rate_per_s / 1000:.1f} kB come "
        f"in every second and are kept for {bound.kept_s:.0f} s"
    ]


def _counted_problems(samples: Sequence[Sample], bound: Bound) -> list[str]:
    """Return the worst moment at which an area held more than what had come in within the time that it keeps."""
    worst: tuple[float, str] = (0.0, "")
    first = 0
    for one in samples:
        while samples[first].at_s < one.at_s - bound.kept_s:
            first += 1
        held = one.disk_bytes[bound.area]
        came_in = (
            one.came_in_bytes[bound.area] - samples[max(0, first - 1)].came_in_bytes[bound.area]
        )
        allowed = DISK_ALLOWED * came_in + DISK_SLACK_BYTES
        if one.at_s > bound.kept_s and held - allowed > worst[0]:
            worst = (
                held - allowed,
                f"{bound.area}: {held / MB:.1f} MB on disk after {one.at_s:.0f} s, {allowed / MB:.1f} are allowed: "
                f"{came_in / MB:.1f} MB came in within {bound.kept_s:.0f} s",
            )
    return [worst[1]] if worst[1] else []


def thirds_problems(samples: Sequence[Sample], area: str, *, load_s: float) -> list[str]:
    """Return whether an area that keeps the newest few grew from the second third to the last.

    By the medians: one more that is written, before the oldest goes, bends them as little as a peak does memory's line.
    """

    def usual(from_s: float, until_s: float) -> float:
        found = [one.disk_bytes[area] for one in samples if from_s <= one.at_s <= until_s]
        return median(found) if found else 0.0

    second, last = usual(load_s / 3, 2 * load_s / 3), usual(2 * load_s / 3, load_s)
    allowed = DISK_ALLOWED * second
    if last <= allowed:
        return []
    return [
        f"{area}: {last / MB:.1f} MB on disk in the last third, {second / MB:.1f} MB in the second"
    ]
