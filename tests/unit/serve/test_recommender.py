from __future__ import annotations

import math
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from infra.errors import Overloaded
from infra.settings import Settings, load_settings, with_values
from infra.storage import ObjectStore, sha256_of
from models.offline_table import DATA
from models.recommend import recommend
from serve.model_slots import ModelSlots
from serve.neighbours import Neighbours
from serve.recommender import Recommender, Search
from serve.schemas import RecommendationRequest, RecommendationResponse
from serve.search_queue import SearchQueue
from serve.views import CatalogueView, EventClock, HistoryView
from streams.events import TABLE_MODEL_NAME, CheckpointPromoted, ImpressionsShown
from tests.table_factories import save_table, some_table
from tests.tiny_serving import (
    NOON_MS,
    SPACE,
    assigned,
    record_of,
    removal_of,
    save_checkpoint,
    save_two_tower,
    watch,
    watch_record,
    with_content,
)

NUM_VIDEOS = 40


@dataclass
class Endpoint:
    """A recommender with the views behind it."""

    catalogue: CatalogueView
    histories: HistoryView
    models: ModelSlots
    clock: EventClock
    settings: Settings
    search: Search
    shown: list[ImpressionsShown] = field(default_factory=list)

    @property
    def recommender(self) -> Recommender:
        return Recommender(
            self.catalogue,
            self.histories,
            self.models,
            self.search,
            Neighbours(self.settings),  # nobody answers: there is no catalogue worker
            self.clock,
            self.settings,
            on_shown=self.shown.append,
        )

    def set(self, **values: Any) -> None:
        self.settings = with_values(self.settings, **values)

    def ask(self, **fields: Any) -> RecommendationResponse:
        return self.recommender.recommend(RecommendationRequest.model_validate(fields))

    def ids(self, **fields: Any) -> list[str]:
        return [item.video_id for item in self.ask(**fields).items]


@pytest.fixture(scope="module")
def store_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("store")
    save_checkpoint(root, 1)
    return root


@pytest.fixture
def cold(store_root: Path, tmp_path: Path) -> Iterator[Endpoint]:
    """Without a model; video n was uploaded n hours before noon, by one of four channels."""
    clock = EventClock()
    catalogue, histories = CatalogueView(SPACE, clock), HistoryView(clock)
    catalogue.take(
        [
            record_of(assigned(number, channel=f"c-{number % 4}", age_h=number))
            for number in range(NUM_VIDEOS)
        ]
    )
    models = ModelSlots(
        ObjectStore(str(store_root)),
        catalogue,
        replica="r",
        cache=store_root,
        beam_width=10,
    )
    search = SearchQueue(beam_width=10)
    settings = with_values(
        load_settings({"FRESHET_VAR_DIR": str(tmp_path)}), freshness__new_video_age_h=5.0
    )
    yield Endpoint(catalogue, histories, models, clock, settings, search)
    search.close()


@pytest.fixture
def endpoint(cold: Endpoint, store_root: Path) -> Endpoint:
    """With a model."""
    cold.models.follow([save_checkpoint(store_root, 1)])
    return cold


@pytest.fixture
def prompts(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the recommender asks the model."""
    asked: list[Any] = []

    def recording(lrm: Any, requests: Any, *rest: Any, **options: Any) -> Any:
        asked.extend(requests)
        return recommend(lrm, requests, *rest, **options)

    monkeypatch.setattr("serve.search_queue.recommend", recording)
    return asked


def seen(endpoint: Endpoint, user_id: str, *video_ids: str) -> None:
    endpoint.histories.take(
        [
            watch_record(watch(user_id, video_id, minute=minute - 60))
            for minute, video_id in enumerate(video_ids)
        ]
    )


def test_answer_has_k_different_live_videos_best_first(endpoint: Endpoint) -> None:
    answer = endpoint.ask(user_id="u", k=7)
    scores = [item.score for item in answer.items if item.score is not None]
    assert len({item.video_id for item in answer.items}) == len(scores) == 7
    assert scores == sorted(scores, reverse=True)
    assert all(math.isfinite(score) for score in scores)
    assert {item.source for item in answer.items} == {"lrm"}
    assert (answer.arm, answer.model_version, answer.codebook_version) == ("lrm", 1, 1)


def test_answer_says_of_each_video_what_is_known(endpoint: Endpoint) -> None:
    for item in endpoint.ask(k=5).items:
        number = int(item.video_id.removeprefix("v-"))
        assert item.title == f"Video {number}"
        assert item.semantic_id == f"A{number % 8} B{number // 8 % 4} C{number // 32}"
        assert item.age_s == number * 3600


def test_more_than_is_live_is_answered_with_all_that_is(endpoint: Endpoint) -> None:
    assert sorted(endpoint.ids(k=100)) == sorted(endpoint.catalogue.catalogue.videos)


def test_removed_video_is_not_recommended_any_more_and_a_new_one_is(endpoint: Endpoint) -> None:
    endpoint.catalogue.take([removal_of("v-3"), record_of(assigned(41))])
    answer = endpoint.ids(k=100)
    assert "v-3" not in answer
    assert "v-41" in answer


def test_watched_videos_are_left_out_unless_they_are_wanted(endpoint: Endpoint) -> None:
    seen(endpoint, "u", "v-1", "v-2")
    everything = set(endpoint.catalogue.catalogue.videos)
    assert set(endpoint.ids(user_id="u", k=100)) == everything - {"v-1", "v-2"}
    assert set(endpoint.ids(user_id="u", k=100, exclude={"watched": False})) == everything


def test_excluded_videos_and_channels_are_left_out(endpoint: Endpoint) -> None:
    answer = endpoint.ids(k=100, exclude={"video_ids": ["v-1", "unheard of"], "channels": ["c-2"]})
    left = {f"v-{number}" for number in range(NUM_VIDEOS) if number % 4 != 2} - {"v-1"}
    assert set(answer) == left


def test_only_videos_young_enough_are_answered_where_that_is_asked(endpoint: Endpoint) -> None:
    assert set(endpoint.ids(k=100, fresh={"max_age_h": 3})) == {"v-0", "v-1", "v-2", "v-3"}


def test_ages_are_on_the_clock_of_the_events(endpoint: Endpoint) -> None:
    endpoint.histories.take([watch_record(watch("u", "v-0", minute=120))])
    assert set(endpoint.ids(k=100, fresh={"max_age_h": 3})) == {"v-0", "v-1"}
    ages = {item.video_id: item.age_s for item in endpoint.ask(k=100).items}
    assert ages["v-5"] == 7 * 3600


def test_unknown_user_is_asked_about_without_a_history(
    endpoint: Endpoint, prompts: list[Any]
) -> None:
    assert len(endpoint.ids(user_id="nobody", k=5)) == 5
    assert prompts[0].viewer is None
    assert list(prompts[0].watches) == []


def test_history_is_read_up_to_the_last_watch(endpoint: Endpoint, prompts: list[Any]) -> None:
    seen(endpoint, "u", "v-1", "v-2")
    endpoint.ask(user_id="u")
    assert [entry.video_id for entry in prompts[0].watches] == ["v-1", "v-2"]


def test_history_that_the_caller_sends_stands_in_place_of_ours(
    endpoint: Endpoint, prompts: list[Any]
) -> None:
    seen(endpoint, "u", "v-1")
    answer = endpoint.ids(user_id="u", k=100, history=[{"video_id": "v-2", "surface": "search"}])
    assert [entry.video_id for entry in prompts[0].watches] == ["v-2"]
    assert "v-1" in answer
    assert "v-2" not in answer


def test_what_the_caller_says_reaches_the_prompt(endpoint: Endpoint, prompts: list[Any]) -> None:
    endpoint.ask(
        surface="search",
        query="women's sprint",
        intent="something short",
        context_video_id="v-9",
        user={"age": 24},
    )
    ask = prompts[0].ask
    assert (ask.surface, ask.query, ask.intent) == ("search", "women's sprint", "something short")
    assert ask.context_video_id == "v-9"
    assert prompts[0].viewer.age == 24


def test_other_words_give_another_answer(endpoint: Endpoint) -> None:
    scores = {
        tuple(item.score for item in endpoint.ask(k=3, **asked).items)
        for asked in ({}, {"intent": "60s"}, {"user": {"gender": "video"}}, {"surface": "music"})
    }
    assert len(scores) == 4


@pytest.mark.parametrize("context", ["v-9", "v-8", "never uploaded"])
def test_context_video_is_never_the_answer_whether_live_removed_or_unknown(
    endpoint: Endpoint, context: str
) -> None:
    endpoint.catalogue.take([removal_of("v-8")])
    answer = endpoint.ids(surface="watch_next", context_video_id=context, k=100)
    assert set(answer) == set(endpoint.catalogue.catalogue.videos) - {context}


def test_without_a_model_the_most_watched_are_answered(cold: Endpoint) -> None:
    seen(cold, "a", "v-1", "v-2", "v-3")
    seen(cold, "b", "v-2", "v-3")
    seen(cold, "c", "v-3")
    answer = cold.ask(user_id="c", k=5)
    assert [(item.video_id, item.source) for item in answer.items] == [
        ("v-2", "popularity"),
        ("v-1", "popularity"),
    ]
    assert answer.items[0].score is None
    assert answer.model_version == 0


def test_popular_videos_pass_the_same_filters(cold: Endpoint) -> None:
    seen(cold, "a", "v-1", "v-2", "v-30", "v-removed")
    assert cold.ids(fresh={"max_age_h": 5}, exclude={"video_ids": ["v-1"]}) == ["v-2"]


def test_nothing_live_is_an_empty_answer(endpoint: Endpoint) -> None:
    endpoint.catalogue.take([removal_of(one) for one in list(endpoint.catalogue.catalogue.videos)])
    seen(endpoint, "u", "v-1")
    assert endpoint.ids(k=3) == []


def test_each_answer_is_reported_with_what_is_new(endpoint: Endpoint) -> None:
    answer = endpoint.ask(user_id="u", surface="home", k=NUM_VIDEOS)
    (shown,) = endpoint.shown
    assert (shown.request_id, shown.user_id, shown.model_version) == (answer.request_id, "u", 1)
    assert shown.event_time_ms == NOON_MS
    assert [(item.position, item.video_id) for item in shown.items] == [
        (position, item.video_id) for position, item in enumerate(answer.items)
    ]
    assert {item.video_id for item in shown.items if item.new} == {f"v-{n}" for n in range(5)}


class BusySearch:
    """As many wait as may."""

    def search(self, *_: Any, **__: Any) -> Any:
        raise Overloaded("as many wait as may", 16)


def announced_table(root: Path, rows: Mapping[str, Sequence[str]]) -> CheckpointPromoted:
    path = f"tables/{uuid.uuid4().hex}"
    save_table(some_table(rows), root / path)
    return CheckpointPromoted(
        model_name=TABLE_MODEL_NAME,
        model_version=3,
        codebook_version=1,
        path=path,
        sha256=sha256_of(root / path / DATA),
        metrics={},
        promoted_time_ms=NOON_MS,
    )


def new_ones(answer: RecommendationResponse, max_age_h: float) -> list[str]:
    return [item.video_id for item in answer.items if item.age_s <= max_age_h * 3600]


def sources(answer: RecommendationResponse) -> list[tuple[str, str]]:
    return [(item.video_id, item.source) for item in answer.items]


def test_fresh_share_of_the_places_is_for_new_videos_where_the_request_asks(
    endpoint: Endpoint,
) -> None:
    by_itself = new_ones(endpoint.ask(k=5), 1)
    answer = endpoint.ask(k=5, fresh={"max_age_h": 1, "min_share": 0.4})
    assert len(answer.items) == 5
    assert len(new_ones(answer, 1)) == max(2, len(by_itself))
    assert {item.source for item in answer.items} <= {"lrm", "fresh_lane"}
    everything = endpoint.ask(k=40, fresh={"max_age_h": 1, "min_share": 0.9})
    assert len({item.video_id for item in everything.items}) == 40  # two are that new, no more


def test_arm_with_the_fresh_lane_shows_new_videos_by_its_settings(endpoint: Endpoint) -> None:
    endpoint.set(
        experiment__arms=("lrm_fresh",), serve__fresh_share=0.5, serve__fresh_max_age_h=3.0
    )
    answer = endpoint.ask(user_id="u", k=8)
    assert answer.arm == "lrm_fresh"
    assert len(new_ones(answer, 3)) >= 4
    assert {item.source for item in answer.items} == {"lrm", "fresh_lane"}


def test_lane_of_an_arm_leaves_out_what_had_its_views_and_that_of_a_request_does_not(
    endpoint: Endpoint,
) -> None:
    endpoint.set(
        experiment__arms=("lrm_fresh",), serve__fresh_share=1.0, serve__fresh_max_age_h=3.0
    )
    assert set(endpoint.ids(user_id="u", k=4)) == {"v-0", "v-1", "v-2", "v-3"}
    for number in range(10):
        seen(endpoint, f"viewer-{number}", "v-1")
    assert set(endpoint.ids(user_id="u", k=3)) == {"v-0", "v-2", "v-3"}
    asked = endpoint.ids(user_id="u", k=4, fresh={"max_age_h": 3})
    assert set(asked) == {"v-0", "v-1", "v-2", "v-3"}


def test_both_lanes_are_searched_in_one_call(endpoint: Endpoint, prompts: list[Any]) -> None:
    endpoint.ask(k=5, fresh={"max_age_h": 1, "min_share": 0.4})
    main, fresh = prompts
    assert (main.ask, main.watches, main.viewer) == (fresh.ask, fresh.watches, fresh.viewer)
    assert main.filters.uploaded_after_ms is None
    assert fresh.filters.uploaded_after_ms == NOON_MS - 3_600_000


def test_search_beside_a_lane_is_not_smoothed_and_the_lane_as_much_as_it_is_told(
    endpoint: Endpoint, prompts: list[Any]
) -> None:
    endpoint.set(serve__smoothing=0.6, serve__fresh_smoothing=0.8)
    endpoint.ask(k=5)
    endpoint.ask(k=5, fresh={"max_age_h": 1, "min_share": 0.4})
    endpoint.ask(k=5, fresh={"max_age_h": 1})
    assert [request.smoothing for request in prompts] == [0.6, 0.0, 0.8, 0.8]


def test_two_tower_arm_without_a_two_tower_answers_what_is_popular(endpoint: Endpoint) -> None:
    endpoint.set(experiment__arms=("two_tower_cluster",))
    seen(endpoint, "a", "v-1", "v-2")
    answer = endpoint.ask(user_id="u", k=5)
    assert (answer.arm, answer.model_version) == ("two_tower_cluster", 0)
    assert sources(answer) == [("v-1", "popularity"), ("v-2", "popularity")]


@pytest.mark.parametrize("arm", ["two_tower_cluster", "two_tower_hash"])
def test_two_tower_arm_ranks_what_is_live_by_the_history(
    endpoint: Endpoint, store_root: Path, arm: str
) -> None:
    endpoint.catalogue.take(
        [
            record_of(with_content(assigned(number, age_h=number), number))
            for number in range(NUM_VIDEOS)
        ]
    )
    endpoint.models.follow([save_two_tower(store_root, arm, 7)])
    endpoint.set(experiment__arms=(arm,))
    seen(endpoint, "u", "v-1", "v-2")
    endpoint.catalogue.take([removal_of("v-9")])
    answer = endpoint.ask(user_id="u", k=100)
    everything = {f"v-{number}" for number in range(NUM_VIDEOS)}  # also those it never learned
    assert {item.video_id for item in answer.items} == everything - {"v-1", "v-2", "v-9"}
    assert {item.source for item in answer.items} == {"two_tower"}
    assert answer.model_version == 7
    other = endpoint.ids(user_id="u", k=100, history=[{"video_id": "v-30"}])
    assert other != [item.video_id for item in answer.items]
    assert set(endpoint.ids(user_id="u", k=3, fresh={"max_age_h": 3})) == {"v-0", "v-3"}


def test_random_new_videos_take_the_places_of_the_fresh_lane_and_no_others(
    endpoint: Endpoint, store_root: Path
) -> None:
    endpoint.catalogue.take(
        [
            record_of(with_content(assigned(number, age_h=number), number))
            for number in range(NUM_VIDEOS)
        ]
    )
    endpoint.models.follow([save_two_tower(store_root, "two_tower_hash", 9)])
    lane = {"serve__fresh_share": 0.8, "serve__fresh_max_age_h": 9.0}
    endpoint.set(experiment__arms=("two_tower_hash",), **lane)
    history = [{"video_id": "v-30"}]
    by_hash = endpoint.ids(user_id="u", k=5, history=history)
    endpoint.set(experiment__arms=("two_tower_hash_random_new",), **lane)
    recommender, drawn = endpoint.recommender, set()
    asked = RecommendationRequest.model_validate({"user_id": "u", "k": 5, "history": history})
    for _ in range(200):
        answer = recommender.recommend(asked)
        assert (answer.arm, answer.model_version) == ("two_tower_hash_random_new", 9)
        random_new = {item.video_id for item in answer.items if item.source == "random_new"}
        ranked = [item.video_id for item in answer.items if item.source == "two_tower"]
        assert len(new_ones(answer, 9)) == max(
            4, sum(item.age_s <= 9 * 3600 for item in answer.items)
        )
        assert ranked == [one for one in by_hash if one in ranked]
        assert len(random_new) + len(ranked) == 5
        drawn |= random_new
    assert drawn == {f"v-{number}" for number in range(10)} - set(by_hash[:5]) | (
        drawn & set(by_hash)
    )


def test_two_tower_ranks_by_the_video_on_screen_for_who_has_watched_nothing(
    endpoint: Endpoint, store_root: Path
) -> None:
    endpoint.catalogue.take(
        [record_of(with_content(assigned(number), number)) for number in range(NUM_VIDEOS)]
    )
    endpoint.models.follow([save_two_tower(store_root, "two_tower_cluster", 8)])
    endpoint.set(experiment__arms=("two_tower_cluster",), table__route=())
    answers = [endpoint.ids(context_video_id=f"v-{number}", k=5) for number in (3, 30)]
    assert answers[0] != answers[1]


def test_languages_are_heeded(endpoint: Endpoint) -> None:
    endpoint.catalogue.take(
        [record_of(assigned(number).model_copy(update={"language": "de"})) for number in (3, 4)]
    )
    assert set(endpoint.ids(k=100, languages=["de", "fr"])) == {"v-3", "v-4"}


def test_too_many_that_wait_are_answered_from_the_table_then_popularity(
    endpoint: Endpoint, store_root: Path
) -> None:
    endpoint.models.follow([announced_table(store_root, {"v-0": ["v-5", "v-6", "v-0"]})])
    seen(endpoint, "a", "v-1", "v-5")
    endpoint.search = BusySearch()
    answer = endpoint.ask(user_id="u", user={"age": 30}, context_video_id="v-0", k=5)
    assert sources(answer) == [("v-5", "table"), ("v-6", "table"), ("v-1", "popularity")]
    assert answer.model_version == 3
    without_context = endpoint.ask(user_id="u", k=5)
    assert {item.source for item in without_context.items} == {"popularity"}
    assert without_context.model_version == 0


def test_nobody_with_a_video_of_the_table_on_screen_is_answered_by_lookup(
    endpoint: Endpoint, store_root: Path
) -> None:
    endpoint.models.follow([announced_table(store_root, {"v-0": ["v-5", "v-6", "v-7"]})])
    endpoint.search = BusySearch()
    answer = endpoint.ask(surface="watch_next", context_video_id="v-0", k=2)
    assert sources(answer) == [("v-5", "table"), ("v-6", "table")]
    endpoint.catalogue.take([removal_of("v-5")])
    assert endpoint.ids(surface="watch_next", context_video_id="v-0", k=3) == ["v-6", "v-7"]


def test_related_videos_are_the_tables_and_the_same_for_everybody(
    endpoint: Endpoint, store_root: Path
) -> None:
    endpoint.models.follow([announced_table(store_root, {"v-0": ["v-5", "v-6"]})])
    related = endpoint.recommender.related("v-0", 5)
    assert related is not None
    assert [item.video_id for item in related.items] == ["v-5", "v-6"]
    assert related.model_version == 3
    assert endpoint.shown[-1].arm == "table"
    without_row = endpoint.recommender.related("v-1", 5)
    assert without_row is not None
    assert (without_row.items, without_row.model_version) == ((), 0)
    endpoint.catalogue.take([removal_of("v-0")])
    assert endpoint.recommender.related("v-0", 5) is None
