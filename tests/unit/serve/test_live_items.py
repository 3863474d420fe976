from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from models.live_retriever import live_retriever
from serve.live_items import REFRESH_SHARE, KnownItems, LiveItems
from serve.views import CatalogueView, EventClock
from streams.events import TWO_TOWER_CLUSTER
from tests.tiny_serving import SPACE, assigned, record_of, removal_of, tiny_retriever, with_content


class Clock:
    """Stands still, or goes on by `step_s` each time it is read."""

    def __init__(self, step_s: float = 0.0) -> None:
        self.at_s, self.step_s = 0.0, step_s

    def __call__(self) -> float:
        self.at_s += self.step_s
        return self.at_s


def some_catalogue(count: int = 5) -> CatalogueView:
    catalogue = CatalogueView(SPACE, EventClock())
    numbers = range(count)
    catalogue.take([record_of(with_content(assigned(number), number)) for number in numbers])
    return catalogue


def test_items_are_due_once_for_what_changed() -> None:
    catalogue = some_catalogue()
    items, retriever = (
        LiveItems(catalogue, now_s=Clock(), worked_s=Clock()),
        live_retriever(tiny_retriever(TWO_TOWER_CLUSTER)),
    )
    assert items.due(KnownItems())
    retriever, known = items.brought_up_to_date(retriever, KnownItems())
    assert not items.due(known)
    catalogue.take([removal_of("v-99")])  # never was there
    assert not items.due(known)
    catalogue.take([removal_of("v-1")])
    assert items.due(known)
    retriever, known = items.brought_up_to_date(retriever, known)
    assert list(retriever.item_ids) == ["v-0", "v-2", "v-3", "v-4"]
    assert not items.due(known)


def test_refresh_that_takes_long_is_made_the_more_seldom() -> None:
    catalogue, now_s = some_catalogue(), Clock()
    items = LiveItems(catalogue, now_s=now_s, worked_s=Clock(step_s=1.0))
    retriever = live_retriever(tiny_retriever(TWO_TOWER_CLUSTER))
    _, known = items.brought_up_to_date(retriever, KnownItems())
    catalogue.take([removal_of("v-1")])
    now_s.at_s = 1 / REFRESH_SHARE - 0.01
    assert not items.due(known)
    now_s.at_s += 0.02
    assert items.due(known)


@settings(max_examples=30, deadline=None)
@given(
    steps=st.lists(
        st.lists(st.tuples(st.integers(0, 9), st.sampled_from(["content", "none", "removed"]))),
        max_size=6,
    )
)
def test_items_are_the_live_videos_with_content_whatever_came_and_went(
    steps: list[list[tuple[int, str]]],
) -> None:
    catalogue = CatalogueView(SPACE, EventClock())
    items, known = LiveItems(catalogue, now_s=Clock(), worked_s=Clock()), KnownItems()
    retriever = live_retriever(tiny_retriever(TWO_TOWER_CLUSTER))
    expected: dict[int, str] = {}
    for step in steps:
        for number, what in step:
            if what == "removed":
                catalogue.take([removal_of(f"v-{number}")])
            else:
                video = assigned(number)
                catalogue.take([record_of(with_content(video, number) if what == "content" else video)])  # fmt: skip
            expected[number] = what
        retriever, known = items.brought_up_to_date(retriever, known)
        wanted = sorted(f"v-{one}" for one, what in expected.items() if what == "content")
        assert sorted(retriever.item_ids) == wanted
        assert retriever.vectors_ND.shape == (len(wanted), 8)
