"""What a replica's follower hands to its views of a record, from a real broker."""

from __future__ import annotations

import uuid

import pytest

from infra.kafka.broker import LocalBroker
from infra.settings import KafkaSettings
from serve.follower import Follower
from serve.views import CatalogueView, EventClock
from streams.admin import create_topics
from streams.catalogue import semantic_id_key
from streams.client import flush, producer
from streams.events import to_json
from streams.topics import SEMANTIC_IDS
from tests.tiny_serving import SPACE, assigned

pytestmark = pytest.mark.integration


def test_videos_that_are_read_from_the_beginning_are_those_not_removed(
    broker: LocalBroker,
) -> None:
    kafka = KafkaSettings(
        bootstrap_servers=broker.bootstrap_servers, topic_prefix=f"t{uuid.uuid4().hex[:8]}."
    )
    create_topics(kafka)
    client = producer(kafka)
    topic, removed, live = SEMANTIC_IDS.in_cluster(kafka), assigned(1), assigned(2)
    for video in (removed, live):
        client.produce(topic, key=semantic_id_key(video.video_id, 1), value=to_json(video))
    client.produce(topic, key=semantic_id_key(removed.video_id, 1), value=None)
    flush(client)

    view = CatalogueView(SPACE, EventClock())
    follower = Follower("catalogue", kafka, [SEMANTIC_IDS], view.take, interval_s=0.1)
    try:
        assert follower.caught_up.wait(60)
    finally:
        follower.close()
    assert set(view.catalogue.videos) == {live.video_id}
