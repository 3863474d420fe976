"""Films in time order, round by round: what is asked of the models, then what they may learn.

Every target is a watch of the round, asked for before anything of the round is learned, among the items that were
uploaded by then and that the user has not watched. As many targets are drawn of each stratum of how often the item had
been watched, four times as many of the last; each carries a weight, so that a weighted mean is one over all watches.
Knows nothing of models.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from models.trie import TrieView
from streams.shards import NewWatch, PastWatch, ShardRow
from streams.timeline import Timeline
from tests.bench.parts.quality_data import Catalogue, watches_by_user
from workers.bootstrap import rows_of

HISTORY_IN_ROW = 100  # as the sealer gives a shard's row
WATCHED_STRATA = ("0", "1-4", "5-10", "more")
FREQUENT_TARGETS = 4  # times as many of the last stratum, which most watches are in
HISTORY_STRATA = ("0", "1-5", "more")


@dataclass(frozen=True)
class Target:
    """A watch that is asked for.

    Attributes:
        index: of the watch among its user's; what came before is the history.
        number: of the watched item.
        num_live: items that were uploaded by the time of the watch.
        earlier_watches: of this item, by anyone.
        event: its place among all watches.
        weight: watches it stands for.
    """

    user_id: str
    index: int
    number: int
    num_live: int
    earlier_watches: int
    event: int
    weight: float = 1.0

    @property
    def watched_stratum(self) -> str:
        """How often the item had been watched."""
        bounds = (0, 4, 10)
        return WATCHED_STRATA[sum(self.earlier_watches > bound for bound in bounds)]

    @property
    def history_stratum(self) -> str:
        """How many watches of the user there were before."""
        return HISTORY_STRATA[sum(self.index > bound for bound in (0, 5))]


@dataclass(frozen=True)
class Stream:
    """All watches of a timeline, by user and in order.

    Attributes:
        order: (user, index among the user's watches) of every watch, in time order.
        num_first: how many of them come before the rounds; first_rows are those as shard rows.
    """

    catalogue: Catalogue
    by_user: dict[str, list[NewWatch]]
    order: Sequence[tuple[str, int]]
    num_first: int
    first_rows: list[ShardRow]

    @cached_property
    def numbers(self) -> dict[str, list[int]]:
        """The items that each user watched, by number, in time order."""
        number_of = self.catalogue.number_of
        return {
            user: [number_of[watch.video_id] for watch in watches]
            for user, watches in self.by_user.items()
        }

    def watched_at_ms(self, event: int) -> int:
        """Return when a watch happened."""
        user, index = self.order[event]
        return self.by_user[user][index].event_time_ms


@dataclass(frozen=True)
class Round:
    """What is asked, and then learned.

    Attributes:
        num_known: items that were uploaded by the round's last watch.
        rows: the round's watches as a shard would hold them.
        view: the trie of the known items.
    """

    targets: Sequence[Target]
    rows: Sequence[ShardRow]
    num_known: int
    view: TrieView


def stream_of(catalogue: Catalogue, timeline: Timeline, num_first: int) -> Stream:
    """Return the timeline's watches, of which the first are for the first fit."""
    watches = timeline.watches()
    seen: Counter[str] = Counter()
    order = []
    for watch in watches:
        order.append((watch.user_id, seen[watch.user_id]))
        seen[watch.user_id] += 1
    first_rows = list(rows_of(watches[:num_first], catalogue.space.codebook_version))
    return Stream(catalogue, watches_by_user(watches), order, num_first, first_rows)


def rounds(
    stream: Stream, *, start: int, end: int, size: int, per_stratum: int, seed: int
) -> Iterator[Round]:
    """Yield the watches from `start` to `end` in rounds of `size`; the targets are drawn from the seed."""
    rng = random.Random(seed)
    counts = Counter(stream.numbers[user][index] for user, index in stream.order[:start])
    for first in range(start, end, size):
        last = min(first + size, end)
        targets = list(_targets(stream, range(first, last), counts))
        num_known = targets[-1].num_live
        yield Round(
            _drawn(targets, per_stratum, rng),
            _rows(stream, range(first, last)),
            num_known,
            stream.catalogue.view(num_known),
        )


def _targets(stream: Stream, events: range, counts: Counter[int]) -> Iterator[Target]:
    for event in events:
        user, index = stream.order[event]
        number = stream.numbers[user][index]
        num_live = stream.catalogue.num_live(stream.watched_at_ms(event))
        yield Target(user, index, number, num_live, counts[number], event)
        counts[number] += 1


def _drawn(targets: Sequence[Target], per_stratum: int, rng: random.Random) -> list[Target]:
    by_stratum: dict[str, list[Target]] = defaultdict(list)
    for target in targets:
        by_stratum[target.watched_stratum].append(target)
    drawn = []
    for stratum in sorted(by_stratum):
        members = by_stratum[stratum]
        wanted = per_stratum * (FREQUENT_TARGETS if stratum == WATCHED_STRATA[-1] else 1)
        chosen = rng.sample(members, min(wanted, len(members)))
        weight = len(members) / len(chosen)
        drawn += [replace(one, weight=weight) for one in chosen]
    return drawn


def _rows(stream: Stream, events: range) -> list[ShardRow]:
    indices: dict[str, list[int]] = defaultdict(list)
    for user, index in (stream.order[event] for event in events):
        indices[user].append(index)
    rows = []
    for user, found in indices.items():
        watches, first = stream.by_user[user], found[0]
        history: list[PastWatch] = [*watches[max(0, first - HISTORY_IN_ROW) : first]]
        new = watches[first : found[-1] + 1]
        rows.append(ShardRow(user, None, None, None, None, None, history, new, 1))
    return rows
