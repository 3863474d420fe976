"""Which videos have a row in the offline table, and which rows are computed again; plain rules, no topics, no Ray.

Head videos are the most viewed of the last 7 days of event time. Of those, a row is computed

- always, where the table before has none, or where its question is another one: its prompt (title, channel, language,
  the buckets of duration and age, semantic ID), how many related videos are wanted, or the search's width;
- always, where so many of its related videos were removed since that less than `kept_overlap` of them is left;
- all of them, where the model or the catalogue has moved enough to matter: a sample of the rows that could be kept is
  computed anew, and their first ten videos have on average less than `kept_overlap` in common with those of before.

What is left is kept as it is, without the videos that were removed.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

from models.offline_table import OfflineTable, TableRow
from models.related import Question, Related
from streams.events import VideoCounts

HEAD_DAYS = 7
DAY_MS = 86_400_000
SAMPLE_ROWS = 64
"""The mean over so many rows is known to about 0.03, as the overlap of single rows spreads by some 0.25."""
OVERLAP_AT = 10


class HeadViews:
    """Views by video in the last days before the newest window; earlier ones are forgotten on the way.

    Counts come in any order of windows. Which windows are the last is known when all have come.
    """

    def __init__(self) -> None:
        self._by_window: dict[int, Counter[str]] = {}
        self.newest_ms = 0
        """Start of the newest window; 0 before any."""

    def add(self, counts: VideoCounts) -> None:
        """Take in what one shard adds."""
        start_ms = counts.window_start_ms
        if start_ms <= self.newest_ms - HEAD_DAYS * DAY_MS:
            return
        self._by_window.setdefault(start_ms, Counter())[counts.video_id] += counts.views
        if start_ms > self.newest_ms:
            self.newest_ms = start_ms
            before_ms = start_ms - HEAD_DAYS * DAY_MS
            for old in [each for each in self._by_window if each <= before_ms]:
                del self._by_window[old]

    def top(self, k: int, *, now_ms: int, live: Container[str]) -> list[str]:
        """Return the k most viewed live videos of the 7 days before `now_ms`, ties by id."""
        views: Counter[str] = Counter()
        for start_ms, counted in self._by_window.items():
            if start_ms > now_ms - HEAD_DAYS * DAY_MS:
                views.update(counted)
        found = [video_id for video_id, count in views.items() if count > 0 and video_id in live]
        return sorted(found, key=lambda video_id: (-views[video_id], video_id))[:k]


@dataclass(frozen=True)
class BuildPlan:
    """What a build does.

    Attributes:
        computed: questions without a row that could be kept.
        sample: rows that could be kept, and are computed anew to see whether the others may.
        kept: the other rows that could be kept, without what was removed.
    """

    computed: list[Question]
    sample: list[TableRow]
    kept: list[TableRow]


def plan_build(
    questions: Mapping[str, Question],
    before: OfflineTable | None,
    *,
    live: Container[str],
    kept_overlap: float,
    seed: int,
) -> BuildPlan:
    """Return what is computed and what may be kept; the sample is drawn from the seed."""
    computed, could_stay = [], []
    for video_id, question in questions.items():
        row = before.row(video_id) if before is not None else None
        left = None if row is None else _without_removed(row, live)
        is_same = row is not None and row.fingerprint == question.fingerprint
        if (
            is_same
            and left is not None
            and len(left.related) >= kept_overlap * len(row.related if row else ())
        ):
            could_stay.append(left)
        else:
            computed.append(question)
    sample = random.Random(seed).sample(could_stay, min(SAMPLE_ROWS, len(could_stay)))
    sampled = {row.video_id for row in sample}
    return BuildPlan(computed, sample, [row for row in could_stay if row.video_id not in sampled])


def _without_removed(row: TableRow, live: Container[str]) -> TableRow:
    return row._replace(related=[entry for entry in row.related if entry[0] in live])


def mean_overlap(before: Sequence[TableRow], answers: Mapping[str, Related]) -> float:
    """Return how much of the rows' first ten videos is in the first ten of today's answers; 1 for no rows."""
    shares = [_overlap(row.related, answers[row.video_id]) for row in before]
    return sum(shares) / len(shares) if shares else 1.0


def _overlap(one: Sequence[tuple[str, float]], other: Sequence[tuple[str, float]]) -> float:
    first, second = ({video_id for video_id, _ in each[:OVERLAP_AT]} for each in (one, other))
    longer = max(len(first), len(second))
    return len(first & second) / longer if longer else 1.0
