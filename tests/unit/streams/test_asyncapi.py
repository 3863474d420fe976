from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from infra.settings import KafkaSettings
from streams.asyncapi import CHECKED_IN, as_json, document
from streams.topics import ALL


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for value in node.values():
            yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


def resolve(root: Any, reference: str) -> Any:
    assert reference.startswith("#/"), reference
    for part in reference.removeprefix("#/").split("/"):
        root = root[part]
    return root


def test_checked_in_document_is_the_generated_one() -> None:
    assert CHECKED_IN.read_text(encoding="utf-8") == as_json(KafkaSettings()), (
        "the contract changed: write as_json(KafkaSettings()) to streams/asyncapi.json"
    )


def test_every_reference_resolves() -> None:
    contract = document(KafkaSettings())
    found = set(references(contract))
    assert "#/components/schemas/WatchEvent" in found
    assert all(isinstance(resolve(contract, reference), dict) for reference in found)


@pytest.mark.parametrize("topic", ALL, ids=lambda topic: topic.name)
def test_topic_has_a_channel_with_its_address_partitions_and_cleanup(topic: Any) -> None:
    settings = KafkaSettings(topic_prefix="blue.", partitions=6, replication=3)
    channel = document(settings)["channels"][topic.name]
    binding = channel["bindings"]["kafka"]
    assert channel["address"] == binding["topic"] == f"blue.{topic.name}"
    assert binding["partitions"] == (topic.partitions or 6)
    assert binding["replicas"] == 3
    assert binding["topicConfiguration"]["cleanup.policy"] == [topic.cleanup.value]
    assert set(channel["messages"]) == {model.__name__ for model in topic.models}


def test_producers_feed_uploads_and_watches_and_internal_topics_are_nobodys_business() -> None:
    operations = document(KafkaSettings())["operations"]
    received = {name for name, each in operations.items() if each["action"] == "receive"}
    assert received == {"receive.video.uploads", "receive.watch.events"}
    assert not [name for name in operations if "video.codes" in name or "allocations" in name]


def test_servers_are_those_of_the_settings() -> None:
    settings = KafkaSettings(bootstrap_servers="a:9092,b:9092", security_protocol="SASL_SSL")
    assert document(settings)["servers"] == {
        "kafka-1": {"host": "a:9092", "protocol": "kafka-secure"},
        "kafka-2": {"host": "b:9092", "protocol": "kafka-secure"},
    }
    assert "servers" not in document(KafkaSettings())
