from __future__ import annotations

import itertools
import math
import random
from typing import Any

import pytest

from streams.events import (
    CheckpointPromoted,
    ImpressionItem,
    ImpressionsShown,
    SemanticIdAssigned,
    SwapReported,
    VideoServable,
)
from workers.freshness_figures import (
    CHECKPOINT_TO_SERVING,
    RECENT_VIDEOS,
    UPLOAD_TO_SERVABLE,
    UPLOAD_TO_SID,
    DelayHistogram,
    Figures,
)


def shown(*new: bool, arm: str = "lrm", surface: str = "home") -> ImpressionsShown:
    items = tuple(
        ImpressionItem(video_id=f"v{n}", position=n, source="lrm", age_s=1.0, new=each)
        for n, each in enumerate(new)
    )
    return ImpressionsShown.model_validate(
        {
            "event_time_ms": 1, "request_id": "r", "surface": surface, "arm": arm,
            "model_version": 1, "codebook_version": 1, "items": items,
        }
    )  # fmt: skip


def assigned(video_id: str, uploaded_ms: int, **fields: Any) -> SemanticIdAssigned:
    return SemanticIdAssigned.model_validate(
        {
            "video_id": video_id, "title": video_id, "codes": (1,), "disambiguation_code": 0,
            "codebook_version": 1, "embedding_f16": "", "upload_time_ms": 1,
            "upload_append_time_ms": uploaded_ms, "upload_position": 3,
            "assigned_time_ms": uploaded_ms + 1, **fields,
        }
    )  # fmt: skip


def servable(video_id: str, uploaded_ms: int, at_ms: int, replica: str = "one") -> VideoServable:
    return VideoServable(
        video_id=video_id,
        codebook_version=1,
        semantic_id=(1, 0),
        replica=replica,
        servable_time_ms=at_ms,
        upload_append_time_ms=uploaded_ms,
    )


def promoted(version: int, at_ms: int) -> CheckpointPromoted:
    return CheckpointPromoted(
        model_name="lrm",
        model_version=version,
        codebook_version=1,
        path="p",
        sha256="s",
        metrics={},
        promoted_time_ms=at_ms,
    )


def swap(version: int, at_ms: int, previous: int, outcome: Any = "succeeded") -> SwapReported:
    return SwapReported(
        replica="one",
        model_name="lrm",
        model_version=version,
        previous_version=previous,
        outcome=outcome,
        sha256="s",
        swapped_time_ms=at_ms,
        load_s=0.1,
    )


def add(figures: Figures, event: Any) -> list[tuple[str, float]]:
    """Count an event; a semantic ID is appended 2 s after its upload."""
    match event:
        case SemanticIdAssigned():
            return [*figures.count_assigned(event, event.upload_append_time_ms + 2000)]
        case VideoServable():
            return [*figures.count_servable(event)]
        case CheckpointPromoted():
            return [*figures.count_promoted(event)]
        case SwapReported():
            return [*figures.count_swap(event)]
    figures.count_impressions(event)
    return []


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
    assert report["delays_s"][UPLOAD_TO_SID] == {"count": 0, "p50": None, "p99": None}


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
        resumed = Figures.model_validate_json(resumed.model_dump_json())
    assert resumed == whole
    assert resumed.report() == whole.report()
    assert whole.delays[UPLOAD_TO_SERVABLE].count == 20
