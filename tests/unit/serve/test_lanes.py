from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from serve.lanes import FreshLane, Pick, merged


def picks(*numbers: int, lane: bool = False) -> list[Pick]:
    return [Pick(f"v-{number}", 0.0, "fresh_lane" if lane else "lrm") for number in numbers]


def answer(main: list[int], fresh: list[int], *, k: int, places: int, new: set[int]) -> list[str]:
    found = merged(
        picks(*main),
        picks(*fresh, lane=True),
        is_new=[number in new for number in main],
        k=k,
        places=places,
    )
    return [pick.video_id for pick in found]


def test_new_videos_are_spread_and_the_last_others_give_way() -> None:
    found = answer([1, 2, 3, 4, 5, 6], [91, 92], k=6, places=2, new={91, 92})
    assert found == ["v-1", "v-2", "v-91", "v-3", "v-92", "v-4"]


def test_new_videos_that_the_model_proposes_by_itself_count() -> None:
    assert answer([1, 91, 3], [92, 93], k=3, places=1, new={91}) == ["v-1", "v-91", "v-3"]
    assert answer([1, 91, 3], [91, 92], k=3, places=2, new={91}) == ["v-1", "v-92", "v-91"]


def test_too_few_new_videos_leave_their_places_to_the_others() -> None:
    assert answer([1, 2, 3], [], k=3, places=2, new=set()) == ["v-1", "v-2", "v-3"]


def test_lane_has_at_least_one_place_and_no_more_than_its_share_rounded_up() -> None:
    assert [FreshLane(0, 0.2).places(k) for k in (1, 5, 6, 10)] == [1, 1, 2, 2]


@given(
    st.lists(st.integers(0, 40), unique=True, max_size=20),
    st.lists(st.integers(30, 60), unique=True, max_size=20),
    st.integers(1, 20),
    st.data(),
)
def test_answer_has_as_many_new_videos_as_there_can_be(
    main: list[int], fresh: list[int], k: int, data: st.DataObject
) -> None:
    places = data.draw(st.integers(1, k))
    new = {number for number in {*main, *fresh} if number >= 30}
    found = answer(main, fresh, k=k, places=places, new=new)
    assert len(found) == len(set(found)) == min(k, len(found))
    by_model = [number for number in main[:k] if number in new]
    others = [number for number in fresh if number not in main[:k]]
    expected = max(len(by_model), min(places, len(by_model) + len(others)))
    assert sum(int(one.removeprefix("v-")) in new for one in found) == expected
    assert len(found) == min(k, len(main[:k]) + expected - len(by_model))
    kept = [one for one in found if int(one.removeprefix("v-")) in main[:k]]
    assert kept == [f"v-{number}" for number in main[:k] if f"v-{number}" in kept]  # in their order
