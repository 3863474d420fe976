"""The benchmark of the offline table: what is asked, what is counted, and that both ways answer."""

from __future__ import annotations

import random

import pytest

from infra.settings import Settings
from serve.schemas import RecommendationResponse
from serve.table_answers import TableAnswers
from streams.events import WatchEvent
from tests.bench import table
from tests.bench.parts.table_requests import Served
from tests.lrm_factories import tiny_lrm
from tests.quality_factories import NUM_ITEMS, STREAM
from tests.table_factories import some_table

CATALOGUE, LRM = STREAM.catalogue, tiny_lrm()
END_MS = 2000 * NUM_ITEMS


def watch(at: int, video_id: str, context: str | None = None) -> WatchEvent:
    return WatchEvent(
        event_id=f"e{at}", event_time_ms=END_MS + at, user_id=f"u{at % 3}", video_id=video_id,
        surface="watch_next" if context else "home", watched_s=60.0, duration_s=60.0,
        context_video_id=context,
    )  # fmt: skip


EARLIER = [watch(at, f"v{at % 7}") for at in range(70)] + [watch(70, "v0")]
LATER = [watch(71 + at, f"v{at % 9}", f"v{at % 4}") for at in range(36)]


def served() -> Served:
    videos = {one: table.assigned_of(CATALOGUE, one) for one in CATALOGUE.video_ids}
    computed = table.compute(LRM, CATALOGUE, ["v0", "v5"], now_ms=END_MS)
    view = CATALOGUE.view(NUM_ITEMS)
    return Served(LRM, computed, view, videos, END_MS, TableAnswers())


def test_both_ways_answer_the_same_request_and_the_policy_chooses() -> None:
    both = served()
    body = table._body(context_video_id="v5")
    for answer, source in ((both.by_table, "table"), (both.by_search, "lrm")):
        response = RecommendationResponse.model_validate_json(answer(body))
        assert len(response.items) == 10
        assert {item.source for item in response.items} == {source}
    by_policy = RecommendationResponse.model_validate_json(both.by_policy(body, ("no_user",)))
    assert {item.source for item in by_policy.items} == {"table"}
    with_user = table._body(context_video_id="v5", user_id="u")
    by_policy = RecommendationResponse.model_validate_json(both.by_policy(with_user, ("no_user",)))
    assert {item.source for item in by_policy.items} == {"lrm"}


def test_recall_is_of_what_followed_a_head_video() -> None:
    found = some_table({"v0": ["v1", "v2"], "v1": ["v0"]})
    later = [
        watch(1, "v2", "v0"),  # found
        watch(2, "v3", "v0"),  # not
        watch(3, "v5", "v1"),  # not
        watch(4, "v1", "v2"),  # no row
        watch(5, "v9", "v0"),  # not live
        watch(6, "v1"),  # follows nothing
    ]
    earlier = [watch(0, "v3"), watch(0, "v0")]
    live = {f"v{number}" for number in range(6)}
    by_name = {one.measure: one for one in table.quality(found, earlier, later, live)}
    assert by_name["table_targets"].value == 3
    assert by_name["table_recall_at_10"].value == pytest.approx(1 / 3)
    assert by_name["table_recall_at_10"].peer_value == pytest.approx(1 / 3)
    assert by_name["table_over_popularity"].value == pytest.approx(1)


def test_mix_has_its_share_of_nobodies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "SEARCHES", 10)
    bodies = table.mixed_requests(LATER, ["v0"], random.Random(0))
    assert len(bodies) == 10
    assert sum(b"user_id" not in body for body in bodies) == 3


def test_all_measures_come_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "LOOKUPS", 20)
    monkeypatch.setattr(table, "SEARCHES", 4)
    found = {one.measure: one for one in table.measures(LRM, CATALOGUE, EARLIER, LATER, Settings())}
    assert {"lookups_per_s_per_core", "cost_lrm_over_table", "table_over_popularity"} <= set(found)
    assert found["mixed_routed_share"].value == 0.25
    assert found["table_targets"].value == 36
