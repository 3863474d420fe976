"""Which requests the table may answer, and what it answers."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.settings import TableRoute
from models.offline_table import OfflineTable
from models.trie import LiveTrie
from models.trie_filters import NO_FILTERS, Filters
from serve.schemas import RecommendationRequest, RecommendationResponse
from serve.table_answers import TableAnswers, routes_to_table
from streams.events import SemanticIdAssigned
from tests.table_factories import some_table
from tests.tiny_serving import HOUR_MS, NOON_MS, SPACE, assigned

TABLE = some_table({"v-0": ["v-1", "v-2", "v-3", "v-4"], "v-1": ["v-0"]})
VIDEOS = {video.video_id: video for video in (assigned(n, age_h=n) for n in range(6))}
ALL: tuple[TableRoute, ...] = ("no_user", "watch_next_head")


def routed(*policy: TableRoute, **asked: Any) -> bool:
    request = RecommendationRequest.model_validate({"context_video_id": "v-0", "k": 4} | asked)
    return routes_to_table(request, TABLE, policy)


def test_default_policy_takes_who_is_nobody_on_any_surface() -> None:
    assert routed("no_user")
    assert routed("no_user", surface="watch_next")
    assert not routed("no_user", user_id="u", surface="watch_next")
    assert not routed("no_user", user={"age": 30})


def test_head_policy_takes_anybody_who_watches_one() -> None:
    assert routed("watch_next_head", surface="watch_next", user_id="u", user={"age": 30})
    assert not routed("watch_next_head", surface="home", user_id="u")
    assert not routed("watch_next_head", surface="home")
    assert routed(*ALL, surface="home")


def test_no_policy_takes_nothing_and_no_table_has_nothing() -> None:
    assert not routed(surface="watch_next")
    asked = RecommendationRequest(context_video_id="v-0", surface="watch_next", k=1)
    assert routes_to_table(asked, TABLE, ALL)
    assert not routes_to_table(asked, None, ALL)


@pytest.mark.parametrize(
    "asked",
    [
        {"context_video_id": None},
        {"context_video_id": "v-2"},  # has no row
        {"k": 5},  # more than the row has
        {"query": "films"},
        {"intent": "something short"},
        {"history": [{"video_id": "v-1"}]},
        {"fresh": {"max_age_h": 1}},
    ],
)
def test_what_the_table_cannot_heed_goes_to_the_model(asked: dict[str, Any]) -> None:
    assert not routed(*ALL, surface="watch_next", **asked)


def answered(
    context: str = "v-0",
    *,
    k: int = 10,
    videos: dict[str, SemanticIdAssigned] = VIDEOS,
    filters: Filters = NO_FILTERS,
    table: OfflineTable = TABLE,
    answers: TableAnswers | None = None,
    now_ms: int = NOON_MS,
) -> list[str]:
    items = (answers or TableAnswers()).items(
        table,
        context,
        k=k,
        videos=videos,
        filters=filters,
        now_ms=now_ms,
    )
    return [item.video_id for item in items]


def test_row_comes_in_its_order_up_to_k() -> None:
    assert answered() == ["v-1", "v-2", "v-3", "v-4"]
    assert answered(k=2) == ["v-1", "v-2"]
    assert answered("v-2") == []


def test_removed_and_excluded_videos_are_left_out_and_others_move_up() -> None:
    left = {one: video for one, video in VIDEOS.items() if one != "v-1"}
    assert answered(k=2, videos=left) == ["v-2", "v-3"]
    assert answered(k=2, videos=left, filters=Filters(excluded_video_ids=("v-2",))) == [
        "v-3",
        "v-4",
    ]
    assert answered(table=some_table({"v-0": ["v-0", "v-1"]})) == ["v-1"]


SPOKEN = {
    video_id: video.model_copy(update={"language": language, "channel": f"c-{video_id}"})
    for (video_id, video), language in zip(
        VIDEOS.items(), ("en", "de", "", "en", "fr", ""), strict=True
    )
}
FILTERS = st.builds(
    Filters,
    uploaded_after_ms=st.none() | st.sampled_from([NOON_MS - n * HOUR_MS for n in range(6)]),
    excluded_video_ids=st.sets(st.sampled_from(list(VIDEOS))) | st.just(("v-3",)),
    excluded_channels=st.sets(st.sampled_from([f"c-{one}" for one in VIDEOS])),
    languages=st.lists(st.sampled_from(["en", "de", "xx", ""]), max_size=2),
)


@settings(deadline=None)
@given(FILTERS)
def test_filters_let_through_what_the_trie_of_a_search_would(filters: Filters) -> None:
    trie = LiveTrie(SPACE)
    found = list(SPOKEN.values())
    trie.insert_many(
        [video.semantic_id for video in found],
        list(SPOKEN),
        [video.upload_time_ms for video in found],
        channels=[video.channel for video in found],
        languages=[video.language for video in found],
    )
    view = trie.view.filtered(filters)
    expected = [one for one in ("v-1", "v-2", "v-3", "v-4") if view.allows(one)]
    assert answered(videos=SPOKEN, filters=filters) == expected


def test_item_says_what_the_catalogue_says_now() -> None:
    answers = TableAnswers()

    def first(videos: dict[str, SemanticIdAssigned], now_ms: int) -> Any:
        return answers.items(TABLE, "v-0", k=1, videos=videos, now_ms=now_ms)[0]

    found = first(VIDEOS, NOON_MS)
    assert asdict(found) == {
        "video_id": "v-1", "semantic_id": "A1 B0 C0", "score": -0.5, "title": "Video 1",
        "age_s": 3600.0, "source": "table",
    }  # fmt: skip
    assert first(VIDEOS, NOON_MS + 1500).age_s == 3601.5
    assert first(VIDEOS, 0).age_s == 0
    edited = VIDEOS["v-1"].model_copy(update={"title": "Edited", "codes": (2, 0)})
    found = first(VIDEOS | {"v-1": edited}, NOON_MS)
    assert (found.title, found.semantic_id) == ("Edited", "A2 B0 C0")
    assert first(VIDEOS, NOON_MS).title == "Video 1"


def test_items_are_those_of_a_response() -> None:
    items = TableAnswers().items(TABLE, "v-0", k=3, videos=VIDEOS, now_ms=NOON_MS)
    response = RecommendationResponse(
        request_id="r", arm="lrm", model_version=1, codebook_version=1, items=items
    )
    assert RecommendationResponse.model_validate_json(response.model_dump_json()) == response
