from __future__ import annotations

import itertools
from typing import Any

import pytest

from tests.unit.workers.freshness_events import (
    HOUR,
    add,
    assigned,
    counts,
    removed,
    servable,
    shown,
    shown_videos,
    uploaded,
)
from workers.freshness_figures import Figures
from workers.freshness_rules import FreshnessRules
from workers.freshness_videos import EARLY_MAX, Reach

T = 1_000 * HOUR
RULES = FreshnessRules(
    new_age_ms=48 * HOUR, window_ms=4 * HOUR, lateness_ms=HOUR, view_threshold=4,
    shares={"lrm": 0.5, "two_tower_hash": 0.5},
)  # fmt: skip


def figures_of(*events: Any, rules: FreshnessRules = RULES) -> dict[str, Any]:
    return counted(*events, rules=rules).report()


def counted(*events: Any, rules: FreshnessRules = RULES) -> Figures:
    figures = Figures(rules=rules)
    for event in events:
        add(figures, event)
    return figures


def arm_of(report: dict[str, Any], arm: str = "lrm") -> dict[str, Any]:
    found: dict[str, Any] = report["cold_start"]["arms"][arm]
    return found


def test_arm_without_anything_claims_no_numbers() -> None:
    arm = arm_of(figures_of())
    assert arm["coverage"] is arm["shown_share"] is arm["reached_share"] is None
    assert arm["clicks_per_impression"] is arm["effective_vocabulary"] is None
    assert arm["time_to_threshold_s"] == {"count": 0, "p50": None, "p90": None}
    assert (arm["share_of_users"], arm["view_threshold"], arm["hours"]) == (0.5, 2, [])


@pytest.mark.parametrize(("share", "expected"), [(1.0, 10), (0.25, 2), (0.31, 3), (0.001, 1)])
def test_view_threshold_of_an_arm_scales_with_its_share_of_users(
    share: float, expected: int
) -> None:
    assert FreshnessRules(shares={"lrm": share}).threshold_of("lrm") == expected


def test_new_videos_count_as_shown_in_the_arm_that_showed_them() -> None:
    report = figures_of(
        uploaded("a", T), uploaded("b", T), uploaded("c", T),
        shown_videos({"a": True, "b": True, "old": False}, at_ms=T + 1),
        shown_videos({"a": True}, arm="two_tower_hash", at_ms=T + 1),
    )  # fmt: skip
    lrm, other = arm_of(report), arm_of(report, "two_tower_hash")
    assert (lrm["new_videos"], lrm["new_videos_shown"]) == (3, 2)
    assert lrm["shown_share"] == pytest.approx(2 / 3)
    assert lrm["coverage"] == pytest.approx(2 / 3)
    assert (other["new_videos_shown"], other["coverage"]) == (1, 1)


def test_time_to_threshold_is_spread_over_the_window_in_which_it_was_reached() -> None:
    # Half an hour into the first window; both arms need 2 views.
    report = figures_of(
        uploaded("a", T + HOUR // 2), counts("a", T, 1), counts("a", T + HOUR, 4),
        shown(False, at_ms=T + 3 * HOUR),
    )  # fmt: skip
    # One by the end of the first window, the second of two a quarter into the next.
    assert arm_of(report)["time_to_threshold_s"] == {"count": 1, "p50": 2700.0, "p90": 2700.0}
    assert arm_of(report, "two_tower_hash")["reached"] == 0


def test_views_of_several_shards_and_surfaces_add_up_in_any_order() -> None:
    parts = [
        counts("a", T, 1), counts("a", T, 1, surface="search"), counts("a", T + HOUR, 9),
        uploaded("a", T), counts("a", T - HOUR, 0),
    ]  # fmt: skip
    found = {
        str(arm_of(figures_of(*order))["time_to_threshold_s"])
        for order in itertools.permutations(parts)
    }
    assert found == {str({"count": 1, "p50": 3600.0, "p90": 3600.0})}


def test_surface_has_the_videos_that_it_showed_itself_and_that_reached_the_threshold_there() -> (
    None
):
    report = figures_of(
        uploaded("a", T), uploaded("b", T), shown_videos({"a": True}, at_ms=T),
        shown_videos({"a": True, "b": True}, surface="search", at_ms=T),
        counts("a", T, 1), counts("a", T, 1, surface="search"), counts("b", T, 2, surface="search"),
        shown(False, at_ms=T + 9 * HOUR),
    )  # fmt: skip
    arm = arm_of(report)
    assert (arm["new_videos_shown"], arm["reached_share"]) == (2, 1)
    home, search = arm["surfaces"]["home"], arm["surfaces"]["search"]
    assert (home["new_videos_shown"], home["shown_share"], home["reached_share"]) == (1, 0.5, 0)
    assert (search["new_videos_shown"], search["shown_share"]) == (2, 1)
    assert (search["reached_share"], search["time_to_threshold_s"]["p90"]) == (0.5, 3600)
    hour = arm["hours"][0]["surfaces"]
    assert (hour["home"]["coverage"], hour["home"]["velocity"]) == (1, 0)
    assert (hour["search"]["new_videos_shown"], hour["search"]["velocity"]) == (2, 0.5)
    assert hour["search"]["time_to_threshold_p50_s"] == 3600


def test_watches_before_the_upload_by_the_clocks_count_as_watched_at_it() -> None:
    report = figures_of(uploaded("a", T + HOUR), counts("a", T - 5 * HOUR, 7))
    assert arm_of(report)["time_to_threshold_s"]["p50"] == 0


def test_share_that_reached_is_of_videos_whose_window_is_over_for_good() -> None:
    events = [uploaded("slow", T), uploaded("fast", T), counts("fast", T, 2)]
    running = arm_of(figures_of(*events, shown(False, at_ms=T + 5 * HOUR - 1)))
    assert (running["reached"], running["windows_over"], running["reached_share"]) == (1, 0, None)
    over = arm_of(figures_of(*events, shown(False, at_ms=T + 5 * HOUR)))
    assert (over["windows_over"], over["reached_share"]) == (2, 0.5)


def test_video_that_reaches_the_threshold_after_its_window_has_not_reached_it() -> None:
    report = figures_of(
        uploaded("a", T), counts("a", T + 10 * HOUR, 5), shown(False, at_ms=T + 12 * HOUR)
    )
    assert (arm_of(report)["reached"], arm_of(report)["reached_share"]) == (0, 0.0)


def test_late_counts_change_a_window_that_was_over() -> None:
    figures = counted(uploaded("a", T), shown(False, at_ms=T + 9 * HOUR))
    assert arm_of(figures.report())["reached_share"] == 0
    add(figures, counts("a", T + HOUR, 2))
    assert arm_of(figures.report())["reached_share"] == 1


def test_watches_that_name_no_arm_of_the_settings_are_nobodys() -> None:
    report = figures_of(
        uploaded("a", T), counts("a", T, 9, arm=""), counts("a", T, 9, arm="made up"),
        shown_videos({"a": True}, at_ms=T + 1),
    )  # fmt: skip
    assert set(report["cold_start"]["arms"]) == {"lrm", "two_tower_hash"}
    assert arm_of(report)["clicks_per_impression"] == arm_of(report)["reached"] == 0
    assert report["newest_uploads"][0]["first_watched_ms"] == T + HOUR


def test_clicks_and_likes_are_per_impression_of_the_arm_and_surface() -> None:
    report = figures_of(
        shown(False, False, at_ms=T), shown(False, False, surface="search", at_ms=T),
        counts("v0", T, 2, likes=1, watched_s=10.5), counts("v0", T, 1, surface="search"),
    )  # fmt: skip
    arm = arm_of(report)
    assert (arm["clicks_per_impression"], arm["likes_per_impression"]) == (0.75, 0.25)
    assert arm["watched_s_per_impression"] == pytest.approx(10.5 / 4)
    assert arm["surfaces"]["home"]["clicks_per_impression"] == 1
    assert arm["surfaces"]["search"]["clicks_per_impression"] == 0.5


def test_hour_is_final_once_the_clock_is_the_lateness_behind_its_end() -> None:
    figures = counted(shown(True, at_ms=T), shown(False, at_ms=T + 2 * HOUR - 1))
    hours = arm_of(figures.report())["hours"]
    assert [(hour["hour_start_ms"], hour["final"]) for hour in hours] == [
        (T, False), (T + HOUR, False),
    ]  # fmt: skip
    assert (hours[0]["coverage"], hours[1]["coverage"]) == (1, 0)
    add(figures, shown(False, at_ms=T + 2 * HOUR))
    assert [hour["final"] for hour in arm_of(figures.report())["hours"]] == [True, False, False]


def test_hours_that_are_kept_are_the_newest_whatever_comes_late() -> None:
    rules = FreshnessRules(hours=2)
    events = [shown(True, at_ms=T + n * HOUR) for n in range(4)]
    for order in itertools.permutations(events):
        hours = arm_of(figures_of(*order, rules=rules))["hours"]
        assert [hour["hour_start_ms"] for hour in hours] == [T + 2 * HOUR, T + 3 * HOUR]


def test_velocity_of_an_hour_is_that_of_the_videos_uploaded_in_it() -> None:
    report = figures_of(
        uploaded("a", T), uploaded("b", T + 1), uploaded("c", T + HOUR), counts("a", T, 2),
        shown_videos({"a": True}, at_ms=T + 9 * HOUR),
    )  # fmt: skip
    first, second, last = arm_of(report)["hours"]
    assert (first["new_videos"], first["velocity"], first["time_to_threshold_p50_s"]) == (
        2,
        0.5,
        3600,
    )
    assert (second["new_videos"], second["velocity"]) == (1, 0)
    assert (last["hour_start_ms"], last["new_impressions"], last["velocity"]) == (
        T + 9 * HOUR, 1, None,
    )  # fmt: skip


def test_effective_vocabulary_is_the_fewest_videos_with_95_percent_of_the_impressions() -> None:
    answers = [shown_videos({"hit": False}, at_ms=T)] * 94
    answers += [shown_videos({f"rare{n}": False}, at_ms=T) for n in range(6)]
    assert arm_of(figures_of(*answers))["effective_vocabulary"] == 2
    assert arm_of(figures_of(*answers[:5]))["effective_vocabulary"] == 1


def test_effective_vocabulary_beyond_what_is_counted_is_estimated_from_a_sample(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("workers.freshness_arms.VOCABULARY_MAX", 500)
    answers = [
        shown_videos({f"v{n}": False for n in range(first, first + 50)}, at_ms=T)
        for first in range(0, 4_000, 50)
    ]
    found, backwards = counted(*answers), counted(*answers[::-1])
    (vocabulary,) = next(iter(found.vocabularies.by_day.values())).values()
    assert 200 <= len(vocabulary.counts) <= 500
    assert found.vocabularies == backwards.vocabularies
    assert arm_of(found.report())["effective_vocabulary"] == pytest.approx(3_800, rel=0.15)


def test_video_is_followed_until_it_is_old_and_its_window_is_over() -> None:
    figures = counted(uploaded("a", T))
    add(figures, shown(False, at_ms=T + RULES.followed_ms))
    assert arm_of(figures.report())["new_videos"] == 1
    add(figures, shown(False, at_ms=T + RULES.followed_ms + 1))
    assert arm_of(figures.report())["new_videos"] == 0
    assert figures.videos.ways == {}


def test_oldest_uploads_are_dropped_first_where_there_are_too_many() -> None:
    rules = FreshnessRules(videos_max=3)
    figures = Figures(rules=rules)
    for number in (5, 1, 4, 2, 6, 3):
        add(figures, uploaded(f"v{number}", T + number))
    report = figures.report()
    assert arm_of(report)["new_videos"] == 3
    assert set(figures.videos.ways) == {"v4", "v5", "v6"}


def test_what_waits_for_an_upload_is_bounded() -> None:
    figures = Figures()
    for number in range(EARLY_MAX + 10):
        add(figures, counts(f"v{number}", T, 1))
    assert len(figures.videos.early) == EARLY_MAX
    assert "v9" not in figures.videos.early


def test_removed_video_is_left_out_and_what_comes_after_it_too() -> None:
    views = counts("a", T, 2)
    report = figures_of(uploaded("a", T), views, removed("a"), shown_videos({"a": True}, at_ms=T))
    assert (arm_of(report)["new_videos"], arm_of(report)["reached"]) == (0, 0)
    assert report["newest_uploads"] == []


def test_update_is_no_upload_and_an_upload_sent_again_keeps_its_first_time() -> None:
    figures = counted(
        uploaded("a", T), uploaded("a", T + HOUR, type="updated", title="New title"),
        uploaded("unheard of", T, type="updated"),
    )  # fmt: skip
    add(figures, uploaded("a", T), append_ms=T + 5)
    assert set(figures.videos.ways) == {"a"}
    (newest,) = figures.report()["newest_uploads"]
    assert (newest["upload_time_ms"], newest["uploaded_ms"]) == (T, T)


def test_upload_from_the_future_does_not_make_the_others_old() -> None:
    figures = counted(uploaded("a", T))
    add(figures, uploaded("wrong clock", 2_000 * HOUR), append_ms=T)
    add(figures, shown(True, at_ms=2_000 * HOUR), append_ms=T)
    add(figures, counts("a", 2_000 * HOUR, 3), append_ms=T)
    report = figures.report()
    assert report["event_time_ms"] == T
    assert arm_of(report)["new_videos"] == 1
    assert arm_of(report)["hours"][-1]["hour_start_ms"] == T
    assert report["impressions"] == 1  # of all so far


def test_newest_uploads_say_how_far_each_has_come() -> None:
    figures = Figures(rules=RULES)
    for number in range(25):
        add(figures, uploaded(f"v{number}", T + number))
    add(figures, assigned("v24", T + 24, upload_time_ms=T + 24), append_ms=T + 2_000)
    add(figures, servable("v24", T + 24, T + 3_000))
    assert add(figures, shown_videos({"v24": True}, at_ms=T + 60), append_ms=T + 4_024) == [
        ("upload_to_first_shown", 4.0)
    ]
    assert add(figures, counts("v24", T, 1), append_ms=T + 9_024) == [
        ("upload_to_first_watched", 9.0)
    ]
    assert add(figures, shown_videos({"v24": True}, at_ms=T + 60), append_ms=T + 5_000) == []
    report = figures.report()
    newest = report["newest_uploads"]
    assert [each["video_id"] for each in newest] == [f"v{n}" for n in range(24, 4, -1)]
    assert newest[0] == {
        "video_id": "v24", "title": "Film v24", "upload_time_ms": T + 24, "uploaded_ms": T + 24,
        "assigned_ms": T + 2_000, "servable_ms": T + 3_000, "first_shown_ms": T + 4_024,
        "first_watched_ms": T + 9_024,
    }  # fmt: skip
    assert newest[1]["assigned_ms"] is newest[1]["first_shown_ms"] is None
    delays = {"count": 1, "p50": 4.0, "p99": 4.0}
    assert report["delays_s"]["upload_to_first_shown"] == {**delays, "recent": delays}


def test_another_threshold_judges_the_videos_anew() -> None:
    figures = counted(uploaded("a", T), counts("a", T, 2), shown(False, at_ms=T + HOUR))
    assert arm_of(figures.report())["reached"] == 1
    figures.go_by(FreshnessRules(view_threshold=4, window_ms=4 * HOUR))
    assert arm_of(figures.report())["reached"] == 0


def test_windows_behind_the_threshold_are_not_kept() -> None:
    reach = Reach()
    for hour in range(50):
        reach.add(hour * HOUR, HOUR, 1, enough=4)
    assert sorted(reach.windows) == [0, HOUR, 2 * HOUR, 3 * HOUR]
    reach.add(0, HOUR, 5, enough=4)
    assert reach.windows == {0: (HOUR, 6)}
