"""A user's bounded history."""

from __future__ import annotations

import base64
import json

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.events import SURFACES, to_json
from streams.history import History, decode_history, history_entry, percent_watched, user_history
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
    event_time_ms=st.integers(0, 8_000),
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
    expected: list[tuple[int, int, str]] = []  # second, arrival, video
    for arrival, each in enumerate(seen):
        second = each.event_time_ms // 1000
        new = (second, each.video_id) not in [(time_s, video) for time_s, _, video in expected]
        assert history.add(each, length=length) is new
        if new:
            expected = sorted([*expected, (second, arrival, each.video_id)])[-length:]
    assert [(entry.event_time_ms // 1000, entry.video_id) for entry in history.entries] == [
        (second, video) for second, _, video in expected
    ]


@settings(deadline=None)
@given(st.lists(watches, max_size=8))
def test_contract_event_reads_back_without_contexts(seen: list[Watch]) -> None:
    history = History()
    for each in seen:
        history.add(each, length=5)
    user_id, found = decode_history(to_json(user_history("u", history.entries, history.user)))
    assert (user_id, found.user) == ("u", history.user)
    assert found.entries == [
        msgspec.structs.replace(entry, context_video_id=None) for entry in history.entries
    ]


def test_contract_event_is_what_its_description_says() -> None:
    entry = history_entry(watch("a", at_ms=1_700_000_000_999))
    event = user_history("u", [entry])
    assert (event.video_ids, event.watches) == (("v-a",), "APFTZR4AMgAA")
    packed = base64.b64decode(event.watches)
    assert int.from_bytes(packed[:4], "little") == 1_700_000_000
    assert (int.from_bytes(packed[4:6], "little"), *packed[6:]) == (30, 50, 0, 0)


@pytest.mark.parametrize(
    ("watches", "reason"),
    [
        ("APFTZR4AMgAAAPFTZR4AMgAA", "1 videos and 24 characters"),
        ("APFTZR4AMg==", "base64"),
        ("APFTZR4AMgA!", "base64"),
        ("APFTZR4AMgUA", "surface is 5, at most 4"),
        ("APFTZR4AgAAA", "percent is 128, at most 127"),
    ],
)
def test_history_that_says_something_else_is_refused(watches: str, reason: str) -> None:
    event = {"user_id": "u", "video_ids": ["v"], "watches": watches}
    with pytest.raises(msgspec.DecodeError, match=reason):
        decode_history(json.dumps(event).encode())


def test_late_watch_takes_its_place_by_event_time() -> None:
    history = History()
    for event_id, at_ms in (("a", 10_000), ("b", 30_000), ("late", 20_900), ("same-time", 20_000)):
        history.add(watch(event_id, at_ms=at_ms), length=10)
    assert [entry.video_id for entry in history.entries] == ["v-a", "v-late", "v-same-time", "v-b"]


def test_watch_older_than_a_full_history_is_new_but_not_kept() -> None:
    history = History()
    for number in range(3):
        history.add(watch(f"e{number}", at_ms=1000 * (100 + number)), length=3)
    assert history.add(watch("ancient", at_ms=1), length=3)
    assert [entry.event_time_ms for entry in history.entries] == [100_000, 101_000, 102_000]


def test_features_are_the_last_that_an_event_carried() -> None:
    history = History()
    history.add(watch("a", user=UserFeatures(region="de")), length=5)
    history.add(watch("b"), length=5)
    assert history.user == UserFeatures(region="de")


@pytest.mark.parametrize(("watched_s", "percent"), [(0, 0), (30, 50), (60, 100), (1e6, 127)])
def test_percent_is_rounded_and_capped(watched_s: float, percent: int) -> None:
    assert percent_watched(watch("a", watched_s=watched_s)) == percent
