from __future__ import annotations

import pytest

from infra import metrics
from infra.clock import now_ms
from infra.settings import KafkaSettings
from serve.reports import Reports
from serve.servable import ServableReports
from streams.events import ImpressionsShown, SemanticIdAssigned, VideoServable
from streams.topics import IMPRESSIONS, SERVABLE, Topic
from tests.tiny_serving import NOON_MS, assigned

NOBODY = KafkaSettings(bootstrap_servers="127.0.0.1:1")


class RememberedReports(Reports):
    """Keeps what it is given, and needs no broker."""

    def __init__(self) -> None:
        self.added: list[tuple[Topic, object]] = []

    def add(self, topic: Topic, key: str | None, event: object) -> None:
        self.added.append((topic, event))


def shown() -> ImpressionsShown:
    return ImpressionsShown(
        event_time_ms=NOON_MS,
        request_id="r",
        surface="home",
        arm="lrm",
        model_version=1,
        codebook_version=1,
        items=(),
    )


def lost() -> float:
    (family,) = metrics.IMPRESSIONS_LOST.collect()
    return next(one.value for one in family.samples if one.name.endswith("_total"))


def uploaded(number: int, *, hours_ago: float = 0) -> SemanticIdAssigned:
    return assigned(number, append_time_ms=now_ms() - round(hours_ago * 3_600_000))


@pytest.fixture
def reports() -> RememberedReports:
    return RememberedReports()


def said(reports: RememberedReports) -> list[str]:
    return [event.video_id for _, event in reports.added if isinstance(event, VideoServable)]


def test_impressions_that_no_broker_takes_are_counted_as_lost() -> None:
    before = lost()
    reports = Reports(NOBODY, queue_max=5)
    for _ in range(3):
        reports.add(IMPRESSIONS, None, shown())
    reports.close(timeout_s=0.5)
    assert lost() - before == 3


def test_full_queue_loses_what_is_added_and_blocks_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Reports, "_run", lambda self: None)
    before = lost()
    reports = Reports(NOBODY, queue_max=2)
    for _ in range(5):
        reports.add(IMPRESSIONS, "u", shown())
    reports.close(timeout_s=0)
    assert lost() - before == 3


def test_video_is_said_to_be_servable_once(reports: RememberedReports) -> None:
    servable = ServableReports(reports, replica="r")
    video = uploaded(1)
    servable.live(video)
    servable.live(video)
    assert said(reports) == ["v-1"]
    topic, event = reports.added[0]
    assert topic is SERVABLE
    assert isinstance(event, VideoServable)
    assert event.upload_append_time_ms == video.upload_append_time_ms


def test_video_of_the_bootstrap_or_long_ago_is_not_said_to_be_servable(
    reports: RememberedReports,
) -> None:
    servable = ServableReports(reports, replica="r")
    servable.live(uploaded(1).model_copy(update={"upload_position": -1}))
    servable.live(uploaded(2, hours_ago=8 * 24))
    assert said(reports) == []
