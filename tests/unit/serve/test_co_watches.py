from __future__ import annotations

import threading
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.co_watches import CoWatches

PAIRS = st.lists(st.tuples(st.sampled_from("abcdefgh"), st.sampled_from("abcdefgh")), max_size=80)


def counted(pairs: list[tuple[str, str]]) -> dict[str, Counter[str]]:
    """The exact counts of what came right before each video."""
    counts: dict[str, Counter[str]] = {each: Counter() for each in "abcdefgh"}
    for previous, video in pairs:
        if previous != video:
            counts[video][previous] += 1
    return counts


def filled(co_watches: CoWatches, pairs: list[tuple[str, str]]) -> CoWatches:
    for previous, video in pairs:
        co_watches.add(previous, video)
    return co_watches


@given(PAIRS)
def test_counts_are_exact_while_there_is_room(pairs: list[tuple[str, str]]) -> None:
    co_watches, exact = filled(CoWatches(), pairs), counted(pairs)
    for video, counts in exact.items():
        expected = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
        assert co_watches.before(video) == expected
        assert co_watches.before(video, 2) == expected[:2]
    assert len(co_watches) == sum(map(len, exact.values()))


@given(PAIRS, st.integers(1, 4))
def test_full_video_tells_of_no_more_than_there_were_and_misses_little(
    pairs: list[tuple[str, str]], places: int
) -> None:
    co_watches, exact = filled(CoWatches(predecessors_max=places), pairs), counted(pairs)
    for video, counts in exact.items():
        told, missed_max = dict(co_watches.before(video)), counts.total() / places
        assert len(told) <= places
        for previous, count in counts.items():
            assert count - missed_max <= told.get(previous, 0) <= count


@given(PAIRS, st.integers(3, 12))
def test_pairs_never_outnumber_their_room_and_the_newest_stays(
    pairs: list[tuple[str, str]], room: int
) -> None:
    co_watches, exact = CoWatches(predecessors_max=3, pairs_max=room), counted(pairs)
    for previous, video in pairs:
        co_watches.add(previous, video)
        assert len(co_watches) <= room
        if previous != video:
            assert previous in dict(co_watches.before(video))
    for video, counts in exact.items():
        assert all(count <= counts[each] for each, count in co_watches.before(video))


@given(PAIRS, st.sampled_from("abcdefgh"), PAIRS)
def test_removed_video_is_forgotten_on_either_side_and_can_come_back(
    pairs: list[tuple[str, str]], removed: str, later: list[tuple[str, str]]
) -> None:
    co_watches = filled(CoWatches(), pairs)
    co_watches.remove(removed)
    kept = [pair for pair in pairs if removed not in pair]
    for video, counts in counted(kept).items():
        assert dict(co_watches.before(video)) == dict(counts)
    filled(co_watches, later)
    for video, counts in counted(kept + later).items():
        assert dict(co_watches.before(video)) == dict(counts)
    for each in "abcdefgh":
        co_watches.remove(each)
    assert len(co_watches) == 0
    assert not co_watches._before
    assert not co_watches._after


def test_frequent_predecessor_is_found_though_it_comes_late() -> None:
    co_watches = CoWatches(predecessors_max=4)
    for number in range(40):
        co_watches.add(f"rare-{number}", "video")
    for _ in range(30):
        co_watches.add("late", "video")
    assert co_watches.before("video", 1) == [("late", 30)]


def test_unknown_video_has_no_predecessors() -> None:
    co_watches = CoWatches()
    co_watches.remove("nobody")
    assert co_watches.before("nobody") == []


def test_counts_are_right_when_many_threads_add() -> None:
    co_watches = CoWatches()

    def add() -> None:
        for number in range(500):
            co_watches.add(f"v{number % 5}", "video")
            co_watches.before("video")

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert co_watches.before("video") == [(f"v{number}", 400) for number in range(5)]


@pytest.mark.parametrize(("places", "room"), [(0, 4), (5, 4)])
def test_no_room_for_one_video_is_refused(places: int, room: int) -> None:
    with pytest.raises(ValueError, match="predecessors_max"):
        CoWatches(predecessors_max=places, pairs_max=room)
