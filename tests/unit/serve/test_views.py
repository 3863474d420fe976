from __future__ import annotations

import pytest

from infra.clock import now_ms
from models.trie_filters import Filters
from serve.follower import Record
from serve.views import CatalogueView, EventClock, HistoryView
from streams.events import SemanticIdAssigned, to_json
from streams.history import Entry, user_history
from streams.topics import HISTORIES, SEMANTIC_IDS
from tests.tiny_serving import (
    HOUR_MS,
    NOON_MS,
    SPACE,
    assigned,
    record_of,
    removal_of,
    watch,
    watch_record,
)


@pytest.fixture
def clock() -> EventClock:
    return EventClock()


@pytest.fixture
def live() -> list[str]:
    return []


@pytest.fixture
def catalogue(clock: EventClock, live: list[str]) -> CatalogueView:
    return CatalogueView(SPACE, clock, on_live=lambda video: live.append(video.video_id))


@pytest.fixture
def histories(clock: EventClock) -> HistoryView:
    return HistoryView(clock, length=3)


def sealed(user_id: str, *numbers: int) -> Record:
    entries = tuple(
        Entry(
            video_id=f"v-{number}",
            percent=100,
            watched_s=60,
            event_time_ms=NOON_MS + 60_000 * number,
            surface="home",
        )
        for number in numbers
    )
    return Record(HISTORIES, user_id.encode(), to_json(user_history(user_id, entries)))


def seen(user_id: str, number: int) -> Record:
    return watch_record(watch(user_id, f"v-{number}", event_id=f"e-{number}", minute=number))


def watched(histories: HistoryView, user_id: str = "u") -> list[str]:
    return [entry.video_id for entry in histories.of(user_id).watches]


def in_trie(catalogue: CatalogueView) -> set[str]:
    view = catalogue.trie.view
    return set(view.some_video_ids(len(view)))


def test_catalogue_takes_assigned_videos_and_drops_removed_ones(
    catalogue: CatalogueView, live: list[str]
) -> None:
    catalogue.take([record_of(assigned(number)) for number in range(3)])
    catalogue.take([removal_of("v-1"), removal_of("v-9")])
    assert in_trie(catalogue) == set(catalogue.catalogue.videos) == {"v-0", "v-2"}
    assert live == ["v-0", "v-1", "v-2"]


def test_catalogue_video_assigned_and_removed_in_one_batch_never_goes_live(
    catalogue: CatalogueView, live: list[str]
) -> None:
    catalogue.take([record_of(assigned(0)), removal_of("v-0")])
    assert in_trie(catalogue) == set()
    assert live == []


def test_catalogue_skips_what_is_no_assignment_and_takes_the_rest(
    catalogue: CatalogueView,
) -> None:
    catalogue.take(
        [
            Record(SEMANTIC_IDS, b"1:v-5", b"not json"),
            Record(SEMANTIC_IDS, b"no key", None),
            record_of(assigned(1)),
        ]
    )
    assert in_trie(catalogue) == {"v-1"}


def test_catalogue_keeps_a_video_out_whose_semantic_id_is_impossible(
    catalogue: CatalogueView, live: list[str]
) -> None:
    outside = assigned(1).model_copy(update={"codes": (999, 0)})
    short = assigned(2).model_copy(update={"codes": (1,)})
    doubled = assigned(3).model_copy(update={"video_id": "v-twin"})
    catalogue.take([record_of(video) for video in (outside, short, assigned(3), doubled)])
    assert in_trie(catalogue) == {"v-3"}
    assert live == ["v-3"]


def test_catalogue_moves_an_edited_video_to_its_new_semantic_id_and_channel(
    catalogue: CatalogueView,
) -> None:
    catalogue.take([record_of(assigned(0, channel="old"))])
    edited = assigned(1, channel="new").model_copy(update={"video_id": "v-0"})
    catalogue.take([record_of(edited)])
    assert catalogue.trie.semantic_id_of("v-0") == edited.semantic_id
    for channel, allowed in (("old", True), ("new", False)):
        view = catalogue.trie.view.filtered(Filters(excluded_channels=[channel]))
        assert view.allows("v-0") == allowed


def test_catalogue_passes_over_another_codebook(catalogue: CatalogueView) -> None:
    other: SemanticIdAssigned = assigned(0).model_copy(update={"codebook_version": 2})
    catalogue.take([record_of(other)])
    assert in_trie(catalogue) == set()


def test_history_grows_by_watches_as_they_happen(histories: HistoryView) -> None:
    histories.take([seen("u", 1), seen("u", 2), seen("other", 3)])
    assert watched(histories) == ["v-1", "v-2"]
    assert watched(histories, "nobody") == []


@pytest.mark.parametrize("sealed_first", [True, False])
def test_history_joins_sealed_and_unsealed_watches_in_either_order(
    histories: HistoryView, *, sealed_first: bool
) -> None:
    records = [sealed("u", 1, 2), seen("u", 2), seen("u", 3)]
    histories.take(records if sealed_first else records[1:] + records[:1])
    assert watched(histories) == ["v-1", "v-2", "v-3"]
    assert histories.most_watched() == ("v-1", "v-2", "v-3")


def test_history_that_is_sealed_later_loses_no_newer_watch(histories: HistoryView) -> None:
    histories.take([seen("u", 1), seen("u", 2), seen("u", 3), sealed("u", 1, 2)])
    assert watched(histories) == ["v-1", "v-2", "v-3"]


def test_history_keeps_the_newest(histories: HistoryView) -> None:
    histories.take([sealed("u", 1, 2, 3), seen("u", 4), sealed("u", 1, 2, 3)])
    assert watched(histories) == ["v-2", "v-3", "v-4"]


def test_history_of_a_forgotten_user_is_gone(histories: HistoryView) -> None:
    histories.take([sealed("u", 1), Record(HISTORIES, b"u", None)])
    assert watched(histories) == []


def test_history_takes_no_watch_that_the_sealer_refuses(histories: HistoryView) -> None:
    late = watch("u", "v-1", minute=2 * 24 * 60)
    histories.take(
        [
            Record(HISTORIES, b"u", b"{}"),
            watch_record(watch("u", "v-2"), key="somebody else"),
            watch_record(late)._replace(append_time_ms=NOON_MS),
            watch_record(watch("u", "v-3"))._replace(value=b"not json"),
        ]
    )
    assert watched(histories) == []


def test_most_watched_are_counted_once_however_often_records_come(histories: HistoryView) -> None:
    records = [watch_record(watch(f"u-{user}", "v-1")) for user in range(3)]
    records += [watch_record(watch(f"u-{user}", "v-2", minute=1)) for user in range(2)]
    histories.take([*records, *records])
    assert histories.most_watched() == ("v-1", "v-2")


def test_videos_watched_one_after_the_other_are_told_in_pairs(clock: EventClock) -> None:
    pairs: list[tuple[str, str]] = []
    histories = HistoryView(clock, on_followed=lambda before, after: pairs.append((before, after)))
    histories.take([sealed("u", 1, 2, 3), seen("u", 3), seen("u", 4), seen("other", 9)])
    assert pairs == [("v-1", "v-2"), ("v-2", "v-3"), ("v-3", "v-4")]


def test_clock_is_the_newest_event_of_any_view(
    clock: EventClock, catalogue: CatalogueView, histories: HistoryView
) -> None:
    catalogue.take([record_of(assigned(0))])
    assert clock.now_ms() == NOON_MS
    histories.take([seen("u", 60)])
    catalogue.take([record_of(assigned(1))])
    assert clock.now_ms() == NOON_MS + HOUR_MS


def test_clock_passes_over_a_time_far_in_the_future(clock: EventClock) -> None:
    clock.advance(NOON_MS)
    clock.advance(now_ms() + 1000 * HOUR_MS)
    assert clock.now_ms() == NOON_MS


def test_videos_that_had_enough_views_are_told_once_whether_sealed_or_not(
    clock: EventClock,
) -> None:
    histories = HistoryView(clock, length=3, enough_views=2)
    histories.take([seen("a", 1), seen("a", 2), sealed("b", 1, 3)])
    assert histories.had_enough() == ("v-1",)
    histories.take([seen("c", 1), seen("c", 3), sealed("a", 1, 2)])
    assert histories.had_enough() == ("v-1", "v-3")
