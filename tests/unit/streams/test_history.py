"""A user's bounded history."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.codec import decode
from streams.events import SURFACES, UserHistory
from streams.history import History, decode_history, encode_history, event_hash, percent_watched
from streams.watches import UserFeatures, Watch


def watch(
    event_id: str, *, at_ms: int = 0, watched_s: float = 30, user: UserFeatures | None = None
) -> Watch:
    return Watch(
        event_id=event_id,
        event_time_ms=at_ms,
        user_id="u",
        video_id=f"v-{event_id}",
        surface="home",
        watched_s=watched_s,
        duration_s=60,
        user=user,
    )


watches = st.builds(
    Watch,
    event_id=st.sampled_from([f"e{number}" for number in range(12)]),
    event_time_ms=st.integers(0, 8),
    user_id=st.just("u"),
    video_id=st.text(min_size=1, max_size=3),
    surface=st.sampled_from(SURFACES),
    watched_s=st.floats(0, 1e6),
    duration_s=st.floats(1e-3, 1e6),
    context_video_id=st.none() | st.text(min_size=1, max_size=2),
    user=st.none() | st.builds(UserFeatures, region=st.none() | st.text(max_size=3)),
)


@settings(deadline=None)
@given(st.lists(watches, max_size=30), st.integers(1, 6))
def test_history_equals_the_obvious_one(seen: list[Watch], length: int) -> None:
    history = History()
    expected: list[tuple[int, int, str]] = []  # time, arrival, event_id
    for arrival, each in enumerate(seen):
        new = each.event_id not in [event_id for _, _, event_id in expected]
        assert history.add(each, length=length) is new
        if new:
            expected = sorted([*expected, (each.event_time_ms, arrival, each.event_id)])[-length:]
    assert [entry.event_hash for entry in history.entries] == [
        event_hash(event_id) for _, _, event_id in expected
    ]


@settings(deadline=None)
@given(st.lists(watches, max_size=30), st.integers(0, 30), st.integers(1, 6))
def test_history_restored_midway_ends_as_one_never_interrupted(
    seen: list[Watch], stop: int, length: int
) -> None:
    uninterrupted, before = History(), History()
    for each in seen:
        uninterrupted.add(each, length=length)
    for each in seen[:stop]:
        before.add(each, length=length)
    _, restored = decode_history(encode_history("u", before))
    for each in seen[stop:]:
        restored.add(each, length=length)
    assert encode_history("u", restored) == encode_history("u", uninterrupted)


@settings(deadline=None)
@given(st.lists(watches, max_size=8))
def test_encoded_history_is_the_contract_event(seen: list[Watch]) -> None:
    history = History()
    for each in seen:
        history.add(each, length=5)
    event = decode(UserHistory, encode_history("u", history))
    assert event.user_id == "u"
    assert [entry.model_dump() for entry in event.entries] == [
        msgspec.structs.asdict(entry) for entry in history.entries
    ]
    features = None if event.user is None else event.user.model_dump()
    assert features == (None if history.user is None else msgspec.structs.asdict(history.user))


def test_late_watch_takes_its_place_by_event_time() -> None:
    history = History()
    for event_id, at_ms in (("a", 10), ("b", 30), ("late", 20), ("same-time", 20)):
        history.add(watch(event_id, at_ms=at_ms), length=10)
    assert [entry.video_id for entry in history.entries] == ["v-a", "v-late", "v-same-time", "v-b"]


def test_watch_older_than_a_full_history_is_new_but_not_kept() -> None:
    history = History()
    for number in range(3):
        history.add(watch(f"e{number}", at_ms=100 + number), length=3)
    assert history.add(watch("ancient", at_ms=1), length=3)
    assert [entry.event_time_ms for entry in history.entries] == [100, 101, 102]


def test_features_are_the_last_that_an_event_carried() -> None:
    history = History()
    history.add(watch("a", user=UserFeatures(region="de")), length=5)
    history.add(watch("b"), length=5)
    assert history.user == UserFeatures(region="de")


@pytest.mark.parametrize(("watched_s", "percent"), [(0, 0), (30, 50), (60, 100), (1e6, 1000)])
def test_percent_is_rounded_and_capped(watched_s: float, percent: int) -> None:
    assert percent_watched(watch("a", watched_s=watched_s)) == percent
