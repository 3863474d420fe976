from __future__ import annotations

from prometheus_client import REGISTRY

from tests.unit.workers.freshness_events import HOUR, add, counts, shown_videos, uploaded
from workers.freshness_figures import Figures
from workers.freshness_gauges import expose_report
from workers.freshness_rules import FreshnessRules

T = 1_000 * HOUR
ARM = "arm of the gauges"
RULES = FreshnessRules(
    new_age_ms=6 * HOUR, window_ms=3 * HOUR, lateness_ms=HOUR, view_threshold=2, shares={ARM: 1.0}
)


def gauge(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(f"freshet_freshness_{name}", {"arm": ARM, **labels})


def test_gauges_are_the_figures_and_what_is_no_longer_known_is_taken_away() -> None:
    figures = Figures(rules=RULES)
    for event in (
        uploaded("a", T), uploaded("b", T), counts("a", T, 2, arm=ARM),
        shown_videos({"a": True}, arm=ARM, at_ms=T + 5 * HOUR),
    ):  # fmt: skip
        add(figures, event)
    expose_report(figures.report())
    assert gauge("coverage_ratio", surface="home") == 1
    assert gauge("new_videos_shown_ratio") == gauge("threshold_reached_ratio") == 0.5
    assert gauge("time_to_threshold_seconds", quantile="0.9") == 3600
    assert gauge("clicks_per_impression") == 2

    add(figures, shown_videos({"old": False}, arm=ARM, at_ms=T + 20 * HOUR))  # nothing is new now
    expose_report(figures.report())
    assert gauge("coverage_ratio", surface="home") == 0.5
    for name in ("new_videos_shown_ratio", "threshold_reached_ratio"):
        assert gauge(name) is None
    assert gauge("time_to_threshold_seconds", quantile="0.9") is None


def test_arm_that_has_shown_nothing_has_no_share_of_it() -> None:
    figures = Figures(rules=RULES)
    add(figures, shown_videos({}, arm=ARM, surface="music", at_ms=T))
    expose_report(figures.report())
    assert gauge("coverage_ratio", surface="music") is None
