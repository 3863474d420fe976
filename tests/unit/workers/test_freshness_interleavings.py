"""However the topics are interleaved, and wherever the worker is killed and restored, the figures end the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.workers.freshness_events import (
    HOUR,
    add,
    assigned,
    counts,
    promoted,
    removed,
    sealed,
    servable,
    shown_videos,
    swap,
    uploaded,
)
from workers.freshness_figures import Figures
from workers.freshness_rules import FreshnessRules

T = 1_000 * HOUR
ARMS = ("lrm", "two_tower_hash", "")
RULES = FreshnessRules(
    new_age_ms=6 * HOUR, window_ms=3 * HOUR, lateness_ms=HOUR, view_threshold=4, hours=3,
    videos_max=4, shares={"lrm": 0.5, "two_tower_hash": 0.5},
)  # fmt: skip
VIDEOS = tuple(f"v{n}" for n in range(6))

videos = st.sampled_from(VIDEOS)
hours = st.integers(0, 12).map(lambda hour: T + hour * HOUR)
arms = st.sampled_from(ARMS)
surfaces = st.sampled_from(("home", "search"))


class Record(NamedTuple):
    event: Any
    append_ms: int


@st.composite
def partitions(draw: st.DrawFn) -> list[list[Record]]:
    """The topics' partitions, each in its order; the uploads of a video are all in one of them."""
    found: list[list[Record]] = []
    for video_id in VIDEOS:
        at_ms = draw(hours) + draw(st.integers(0, HOUR))
        steps: list[Any] = [uploaded(video_id, at_ms)]
        if draw(st.booleans()):
            steps.append(uploaded(video_id, at_ms + 5, type="updated", upload_time_ms=at_ms))
        if draw(st.integers(0, 3)) == 0:
            steps.append(removed(video_id, at_ms + 9))
        found.append([Record(step, at_ms + n) for n, step in enumerate(steps)])
        if draw(st.booleans()):
            found.append([Record(assigned(video_id, at_ms, upload_time_ms=at_ms), at_ms + 900)])
            found.append([Record(servable(video_id, at_ms, at_ms + 2_000), 0)])
    answers = st.builds(
        lambda chosen, arm, at_ms, surface: shown_videos(
            dict.fromkeys(sorted(chosen), True), arm=arm or "lrm", at_ms=at_ms, surface=surface
        ),
        st.sets(videos, min_size=1),
        arms,
        hours,
        surfaces,
    )
    watched = st.builds(
        lambda video_id, at_ms, views, arm, surface: counts(
            video_id, at_ms, views, arm=arm, surface=surface, likes=1, watched_s=0.1 * views
        ),
        videos,
        hours,
        st.integers(0, 3),
        arms,
        surfaces,
    )
    for kind in (answers, watched):
        for _ in range(2):
            each = draw(st.lists(kind, max_size=6))
            found.append([Record(one, T + 20 * HOUR + n) for n, one in enumerate(each)])
    return [*found, *models(draw)]


def models(draw: st.DrawFn) -> list[list[Record]]:
    """Three shards, the promotions of two models, and the swaps of two replicas, each in a partition of its own."""
    found = [[Record(sealed(f"s{n}", T + n * 100), T + n * 100 + 7) for n in range(3)]]
    recall = {"prequential_recall_at_10": 0.5}
    for model_name in ("lrm", "two_tower_hash"):
        found.append(
            [
                Record(
                    promoted(
                        n + 2, T + n * 1_000, model_name=model_name, shard_ids=(f"s{n}",),
                        newest_event_time_ms=T + n, metrics=recall,
                    ),
                    0,
                )
                for n in range(3)
            ]
        )  # fmt: skip
    for replica in ("one", "two"):
        delays_ms = [draw(st.integers(1, 2_000)) for _ in range(3)]
        found.append(
            [
                Record(swap(n + 2, T + n * 1_000 + delay_ms, n + 1, replica=replica), 0)
                for n, delay_ms in enumerate(delays_ms)
            ]
        )
    return found


def interleaved(partitions: Sequence[Sequence[Record]], data: st.DataObject) -> list[Record]:
    """Draw an order that keeps that of each partition."""
    places = [at for at, records in enumerate(partitions) for _ in records]
    order = data.draw(st.permutations(places))
    following = [iter(records) for records in partitions]
    return [next(following[at]) for at in order]


@given(partitions(), st.data())
@settings(max_examples=150, deadline=None)
def test_any_interleaving_and_any_restart_gives_the_same_report(
    found: list[list[Record]], data: st.DataObject
) -> None:
    whole = Figures(rules=RULES)
    for record in (record for records in found for record in records):
        add(whole, record.event, record.append_ms)

    order = interleaved(found, data)
    restored_at = data.draw(st.sets(st.integers(0, len(order))))
    other = Figures(rules=RULES)
    for at, record in enumerate(order):
        if at in restored_at:
            if data.draw(st.booleans()):
                other.report()  # it drops what is no longer followed
            other = msgspec.msgpack.decode(msgspec.msgpack.encode(other), type=Figures)
        add(other, record.event, record.append_ms)
    assert other.report() == whole.report()
