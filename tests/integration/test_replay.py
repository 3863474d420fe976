from __future__ import annotations

import math
import uuid
from collections import Counter, defaultdict

import pytest

from infra.kafka.broker import LocalBroker
from infra.settings import KafkaSettings
from streams.admin import create_topics
from streams.client import TopicReader
from streams.clips import with_clips
from streams.codec import decode, decode_upload
from streams.events import VideoRemoved, VideoUploaded, WatchEvent
from streams.movielens import load_timeline
from streams.replay import ReplayClock, replay
from streams.timeline import Timeline, TimelineEvent
from streams.topics import UPLOADS, WATCHES

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def settings(broker: LocalBroker) -> KafkaSettings:
    """Return settings with topics of the module's own."""
    settings = KafkaSettings(
        bootstrap_servers=broker.bootstrap_servers, topic_prefix=f"t{uuid.uuid4().hex[:8]}."
    )
    create_topics(settings)
    return settings


@pytest.fixture(scope="module")
def timeline() -> Timeline:
    return with_clips(Timeline(load_timeline().events[:4000]), num_uploads=4)


def test_replayed_timeline_is_in_its_topics_in_order_and_under_its_keys(
    settings: KafkaSettings, timeline: Timeline
) -> None:
    clock = ReplayClock()
    due: list[TimelineEvent] = []
    progress: list[int] = []

    def before(event: TimelineEvent) -> None:
        assert clock.now_ms() <= event.event_time_ms
        due.append(event)

    sent = replay(
        settings,
        timeline.events,
        events_per_s=math.inf,
        clock=clock,
        before=before,
        on_progress=lambda counts: progress.append(counts.total()),
    )
    assert sent == timeline.counts()
    assert tuple(due) == timeline.events
    assert progress == list(range(1, len(timeline.events) + 1))
    assert clock.now_ms() == timeline.events[-1].event_time_ms

    found: dict[tuple[str, str], list[VideoUploaded | VideoRemoved | WatchEvent]] = defaultdict(
        list
    )
    partitions: dict[tuple[str, str], set[int]] = defaultdict(set)
    with TopicReader(settings, [UPLOADS, WATCHES]) as reader:
        for topic, message in reader.read_to_end():
            is_watch = topic is WATCHES
            read = (
                decode(WatchEvent, message.value()) if is_watch else decode_upload(message.value())
            )
            key = read.user_id if isinstance(read, WatchEvent) else read.video_id
            assert message.key() == key.encode()
            found[topic.name, key].append(read)
            partitions[topic.name, key].add(message.partition())
    expected: dict[tuple[str, str], list[VideoUploaded | WatchEvent]] = defaultdict(list)
    for each in timeline.events:
        expected[each.topic.name, each.key].append(each.event)
    assert found == expected
    assert all(len(of_key) == 1 for of_key in partitions.values())
    assert Counter(type(event).__name__ for events in found.values() for event in events) == {
        "VideoUploaded": sent["uploaded"] + sent["updated"],
        "WatchEvent": sent["watched"],
    }
