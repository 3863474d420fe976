from __future__ import annotations

import itertools
import math
import random

import msgspec
import pytest

from tests.unit.workers.freshness_events import (
    HOUR,
    add,
    assigned,
    promoted,
    sealed,
    servable,
    shown,
    shown_videos,
    swap,
    uploaded,
)
from workers.freshness_delays import (
    CHECKPOINT_TO_SERVING,
    SHARD_TO_CHECKPOINT,
    UPLOAD_TO_FIRST_SHOWN,
    UPLOAD_TO_SERVABLE,
    UPLOAD_TO_SID,
    WATCH_TO_SERVING,
    WATCH_TO_SHARD,
    DelayHistogram,
)
from workers.freshness_figures import RECENT_VIDEOS, Figures


def test_coverage_is_the_share_of_new_videos_by_arm_and_surface() -> None:
    figures = Figures()
    for event in (shown(True, False), shown(False, False), shown(True, arm="b", surface="search")):
        add(figures, event)
    report = figures.report()
    assert (report["impressions"], report["new_impressions"]) == (5, 2)
    assert report["coverage"] == pytest.approx(0.4)
    assert report["by_arm"]["lrm"]["home"]["coverage"] == pytest.approx(0.25)
    assert report["by_arm"]["b"]["search"]["coverage"] == 1


def test_report_of_nothing_claims_no_numbers() -> None:
    report = Figures().report()
    assert report["coverage"] is None
    assert report["model_version"] is None
    nothing = {"count": 0, "p50": None, "p99": None}
    assert report["delays_s"][UPLOAD_TO_SID] == {**nothing, "recent": nothing}


@pytest.mark.parametrize("share", [0.001, 0.5, 0.9, 0.99, 1.0])
def test_quantile_is_within_one_percent_of_the_sorted_delays(share: float) -> None:
    generator = random.Random(7)
    delays = sorted(max(0.001, generator.lognormvariate(1, 2)) for _ in range(1001))
    histogram = DelayHistogram()
    for delay in delays:
        histogram.add(delay)
    expected = delays[math.ceil(share * len(delays)) - 1]
    assert histogram.quantile_s(share) == pytest.approx(expected, rel=0.011)


def test_delay_below_nothing_counts_as_the_shortest() -> None:
    histogram = DelayHistogram()
    histogram.add(-5)
    assert (histogram.count, histogram.quantile_s(0.5)) == (1, 0.001)


def test_servable_before_or_after_its_assignment_makes_the_same_delays() -> None:
    halves = [assigned("v", 1000), servable("v", 1000, 4000)]
    for order in (halves, halves[::-1]):
        figures = Figures()
        delays = [delay for event in order for delay in add(figures, event)]
        assert sorted(delays) == [(UPLOAD_TO_SERVABLE, 3.0), (UPLOAD_TO_SID, 2.0)]


def test_recent_delays_are_those_that_ended_in_the_newest_hours() -> None:
    events = [
        one
        for number, seconds in enumerate((100, 100, 1, 2))
        for one in (
            uploaded(f"v{number}", number * HOUR),
            assigned(f"v{number}", number * HOUR, upload_time_ms=number * HOUR),
            servable(f"v{number}", number * HOUR, number * HOUR + 1_000 * seconds),
            shown_videos({f"v{number}": True}, at_ms=number * HOUR + 1_000 * seconds),
        )
    ]
    for order in (events, events[::-1]):
        figures = Figures()
        for event in order:
            add(figures, event)
        for stage in (UPLOAD_TO_SERVABLE, UPLOAD_TO_FIRST_SHOWN):
            delays = figures.report()["delays_s"][stage]
            assert (delays["count"], delays["recent"]["count"]) == (4, 2)
            assert delays["p99"] == pytest.approx(100, rel=0.011)
            assert delays["recent"]["p99"] == pytest.approx(2, rel=0.011)


def test_another_replica_and_a_repeated_assignment_add_no_delay() -> None:
    figures = Figures()
    add(figures, assigned("v", 1000))
    add(figures, servable("v", 1000, 4000))
    assert add(figures, servable("v", 1000, 9000, "two")) == []
    assert add(figures, assigned("v", 1000)) == []
    assert figures.delays[UPLOAD_TO_SERVABLE].count == 1


def test_edited_video_is_measured_from_its_edit() -> None:
    figures = Figures()
    for event in (assigned("v", 1000), servable("v", 1000, 2000), assigned("v", 60_000)):
        add(figures, event)
    assert add(figures, servable("v", 60_000, 61_000)) == [(UPLOAD_TO_SERVABLE, 1.0)]


def test_video_of_the_bootstrap_has_no_delay() -> None:
    figures = Figures()
    assert add(figures, assigned("v", 1000, upload_position=-1)) == []
    assert add(figures, servable("v", 1000, 90_000)) == []


def test_uploads_that_are_waited_for_are_bounded() -> None:
    figures = Figures()
    for number in range(RECENT_VIDEOS + 10):
        add(figures, servable(f"v{number}", 1, 2))
    assert len(figures.uploads) == RECENT_VIDEOS


def test_swaps_answer_promotions_in_whatever_order_the_topics_are_read() -> None:
    promotions = [promoted(1, 1_000), promoted(2, 20_000), promoted(3, 30_000)]
    swaps = [swap(1, 5_000, 0), swap(2, 21_000, 1), swap(3, 33_000, 2)]
    orders = [
        [*promotions, *swaps],
        [*swaps, *promotions],
        [*itertools.chain(*zip(promotions, swaps, strict=True))],
        [swaps[0], promotions[0], swaps[1], swaps[2], promotions[1], promotions[2]],
    ]
    for order in orders:
        figures = Figures()
        delays = [delay for event in order for delay in add(figures, event)]
        assert sorted(delays) == [(CHECKPOINT_TO_SERVING, 1.0), (CHECKPOINT_TO_SERVING, 3.0)]
        assert figures.report()["model_version"] == 3
        assert figures.report()["swaps"] == 3


def test_replica_that_was_first_sets_the_delay_however_late_its_swap_is_read() -> None:
    events = [
        sealed("a", 1_000), promoted(2, 9_000, shard_ids=("a",)),
        swap(2, 12_000, 1, replica="two"), swap(2, 11_000, 1, replica="one"),
    ]  # fmt: skip
    for order in itertools.permutations(events):
        figures = Figures()
        delays = [delay for event in order for delay in add(figures, event)]
        assert [stage for stage, _ in delays].count(CHECKPOINT_TO_SERVING) == 1
        found = figures.report()["delays_s"]
        for stage, seconds in ((CHECKPOINT_TO_SERVING, 2.0), (WATCH_TO_SERVING, 10.0)):
            assert found[stage]["count"] == 1
            assert found[stage]["p50"] == pytest.approx(seconds, rel=0.011)


def test_delays_until_serving_outlast_the_promotions_and_shards_that_are_remembered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("RECENT_PROMOTIONS", "RECENT_SHARDS"):
        monkeypatch.setattr(f"workers.freshness_models.{name}", 3)
    figures = Figures()
    for number in range(2, 12):
        for event in (
            sealed(f"s{number}", 1_000 * number),
            promoted(number, 1_000 * number + 200, shard_ids=(f"s{number}",)),
            swap(number, 1_000 * number + 300, number - 1),
        ):
            add(figures, event)
    assert len(figures.models.models["lrm"].promotions) == len(figures.models.shards) == 3
    found = figures.report()["delays_s"]
    assert found[CHECKPOINT_TO_SERVING]["count"] == found[WATCH_TO_SERVING]["count"] == 10


def test_skipped_version_is_answered_by_the_next() -> None:
    figures = Figures()
    for event in (swap(1, 500, 0), promoted(2, 1_000), promoted(3, 5_000)):
        add(figures, event)
    assert sorted(add(figures, swap(3, 6_000, 1))) == [
        (CHECKPOINT_TO_SERVING, 1.0),
        (CHECKPOINT_TO_SERVING, 5.0),
    ]


def test_rollback_is_measured_from_when_it_was_announced() -> None:
    figures = Figures()
    for event in (promoted(3, 1_000), swap(3, 2_000, 2), promoted(4, 3_000), swap(4, 4_000, 3)):
        add(figures, event)
    assert add(figures, promoted(3, 90_000)) == []
    assert add(figures, swap(3, 91_000, 4)) == [(CHECKPOINT_TO_SERVING, 1.0)]
    assert figures.report()["model_version"] == 3


def test_promotion_announced_again_waits_for_nobody() -> None:
    figures = Figures()
    for event in (promoted(2, 1_000), swap(2, 2_000, 1), promoted(2, 50_000)):
        add(figures, event)
    assert add(figures, swap(2, 90_000, 1)) == []


def test_refused_swap_counts_and_changes_no_version() -> None:
    figures = Figures()
    for event in (swap(1, 1_000, 0), promoted(2, 2_000), swap(2, 3_000, 1, "rejected")):
        add(figures, event)
    report = figures.report()
    assert (report["model_version"], report["swaps"], report["swaps_rejected"]) == (1, 1, 1)


def test_figures_that_were_saved_in_between_end_as_uninterrupted_ones() -> None:
    events = [
        event
        for number in range(20)
        for event in (
            shown(number % 3 == 0, False, arm=f"arm{number % 2}"),
            assigned(f"v{number}", 1000 * number),
            promoted(number + 1, 1000 * number),
            servable(f"v{number}", 1000 * number, 1000 * number + 50 * number),
            swap(number + 1, 1000 * number + 70, number),
        )
    ]
    random.Random(3).shuffle(events)
    whole, resumed = Figures(), Figures()
    for event in events:
        add(whole, event)
        add(resumed, event)
        resumed = msgspec.msgpack.decode(msgspec.msgpack.encode(resumed), type=Figures)
    assert resumed == whole
    assert resumed.report() == whole.report()
    assert whole.delays[UPLOAD_TO_SERVABLE].count == 20


def test_shard_is_timed_until_a_replica_serves_what_was_learned_from_it_in_any_order() -> None:
    events = [sealed("a", 1_000), promoted(2, 9_000, shard_ids=("a",)), swap(2, 11_000, 1)]
    for order in itertools.permutations(events):
        figures = Figures()
        delays = [delay for event in order for delay in add(figures, event)]
        assert sorted(delays) == [
            (CHECKPOINT_TO_SERVING, 2.0),
            (SHARD_TO_CHECKPOINT, 7.99),
            (WATCH_TO_SERVING, 10.0),
            (WATCH_TO_SHARD, 0.01),
        ]


def test_shard_counts_once_however_often_it_and_its_checkpoint_are_announced() -> None:
    figures = Figures()
    events = [sealed("a", 1_000), promoted(2, 9_000, shard_ids=("a",)), swap(2, 11_000, 1)]
    for event in events:
        add(figures, event)
    assert add(figures, sealed("a", 1_000)) == []
    assert add(figures, promoted(2, 50_000, shard_ids=("a",))) == []


def test_model_is_as_old_as_the_newest_watch_that_the_version_which_serves_has_learned() -> None:
    figures = Figures()
    for event in (
        promoted(2, 1_000, newest_event_time_ms=40_000),
        swap(2, 2_000, 1),
        promoted(3, 3_000, newest_event_time_ms=90_000),
        shown(True, at_ms=100_000),
    ):
        add(figures, event)
    report = figures.report()
    assert report["trained_until_ms"] == {"lrm": 40_000}
    assert report["model_age_s"] == {"lrm": 60.0}
    add(figures, swap(3, 4_000, 2))
    assert figures.report()["model_age_s"] == {"lrm": 10.0}


def test_prequential_recall_is_that_of_each_promotion_once_oldest_first() -> None:
    figures = Figures()
    metrics = {
        "prequential_recall_at_10": 0.25,
        "prequential_recall_at_10_watched_0": 0.125,
        "loss": 3.0,
    }
    for event in (promoted(2, 1_000, metrics=metrics), promoted(3, 2_000), promoted(2, 9_000)):
        add(figures, event)
    assert figures.report()["prequential"] == [
        {
            "model_name": "lrm", "model_version": 2, "time_ms": 1_000, "recall_at_10": 0.25,
            "by_earlier_watches": {"0": 0.125},
        }
    ]  # fmt: skip


def test_swaps_are_named_newest_first_with_the_reason_of_a_refusal() -> None:
    figures = Figures()
    for version in range(1, 30):
        add(figures, swap(version, 1_000 * version, version - 1))
    add(figures, swap(30, 30_000, 29, "rejected"))
    newest = figures.report()["swaps_newest"]
    assert [each["model_version"] for each in newest] == list(range(30, 10, -1))
    assert newest[0]["outcome"] == "rejected"


def test_codebook_is_healthy_by_the_semantic_ids_of_its_newest_version() -> None:
    figures = Figures()
    for number, (codes, place, version) in enumerate(
        [((1, 1), 0, 2), ((9, 9), 0, 1), ((1, 2), 0, 2), ((1, 2), 1, 2), ((2, 3), 0, 2)]
    ):
        event = assigned(
            f"v{number}", 1_000, codes=codes, disambiguation_code=place, codebook_version=version
        )
        add(figures, event)
        add(figures, event)
    report = figures.report()["codebook"]
    assert (report["codebook_version"], report["videos"]) == (2, 4)
    assert report["unique_share"] == 0.75
    assert [level["codes_used"] for level in report["usage"]] == [2, 3]
    assert report["usage"][0]["perplexity"] == pytest.approx(1.75, abs=0.01)
