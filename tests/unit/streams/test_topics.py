from __future__ import annotations

import re
from collections import defaultdict

from infra.settings import KafkaSettings
from streams import topics
from streams.topics import ALL, DEAD_LETTERS, Cleanup


def test_names_are_unique_and_valid_in_kafka() -> None:
    names = [topic.name for topic in ALL]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z][a-z_.]{0,200}", name) for name in names)
    # Kafka's metric names confuse "." and "_": no two topics may differ in them alone.
    assert len({name.replace(".", "_") for name in names}) == len(names)


def test_every_topic_of_the_module_is_in_all() -> None:
    defined = [value for value in vars(topics).values() if isinstance(value, topics.Topic)]
    assert {topic.name for topic in defined} <= {topic.name for topic in ALL}
    assert len(ALL) == len(defined) + len(DEAD_LETTERS)


def test_topics_with_the_same_key_have_the_same_number_of_partitions() -> None:
    partitions = defaultdict(set)
    for topic in ALL:
        partitions[topic.key.removeprefix("as ")].add(
            topic.num_partitions(KafkaSettings(partitions=7))
        )
    assert all(len(numbers) == 1 for numbers in partitions.values())
    assert partitions["user_id"] == partitions["video_id"] == {7}


def test_every_topic_that_strangers_or_other_stages_feed_has_dead_letters() -> None:
    for name in ("video.uploads", "watch.events", "video.semantic_ids", "training.shards"):
        letters = DEAD_LETTERS[name]
        assert letters in ALL
        assert letters.name == f"{name}.dead_letters"
        source = next(topic for topic in ALL if topic.name == name)
        assert letters.num_partitions(KafkaSettings()) == source.num_partitions(KafkaSettings())


def test_every_topic_keeps_append_times_and_its_own_cleanup() -> None:
    for topic in ALL:
        config = topic.topic_config()
        assert config["message.timestamp.type"] == "LogAppendTime"
        assert config["cleanup.policy"] == topic.cleanup.value
        assert ("retention.ms" in config) == (topic.cleanup is Cleanup.DELETE)


def test_prefix_is_put_before_every_name() -> None:
    settings = KafkaSettings(topic_prefix="blue.")
    assert topics.WATCHES.in_cluster(settings) == "blue.watch.events"
