"""The contract as an AsyncAPI 3.0 document with Kafka bindings, generated from the topics and the event models.

`asyncapi.json` beside this module is the document under default settings; a test fails when it drifts.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from infra.settings import KafkaSettings
from streams.events import SCHEMA_VERSION, json_schema
from streams.topics import ALL, UPLOADS, WATCHES, Topic

CHECKED_IN = Path(__file__).with_name("asyncapi.json")
BINDING_VERSION = "0.5.0"
INPUTS = (UPLOADS, WATCHES)
"""What other systems produce and Freshet consumes; all other topics go the other way, or stay inside."""


def document(settings: KafkaSettings) -> dict[str, Any]:
    """Return the AsyncAPI document of all topics as these settings name and size them."""
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Freshet",
            "version": f"{SCHEMA_VERSION}.0.0",
            "description": "Uploads and watches in; semantic IDs, shards, checkpoints and measurements out. Values are "
            "JSON. Consumers ignore unknown fields; within a schema version fields are only added.",
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        **_servers(settings),
        "channels": {topic.name: _channel(topic, settings) for topic in ALL},
        "operations": {
            _operation_name(topic): _operation(topic) for topic in ALL if not topic.internal
        },
        "components": {"schemas": _schemas()},
    }


def as_json(settings: KafkaSettings) -> str:
    """Return the document as the text that is checked in."""
    return json.dumps(document(settings), indent=2, ensure_ascii=False) + "\n"


def _servers(settings: KafkaSettings) -> dict[str, Any]:
    if not settings.bootstrap_servers:
        return {}
    protocol = "kafka" if settings.security_protocol == "PLAINTEXT" else "kafka-secure"
    hosts = settings.bootstrap_servers.split(",")
    return {
        "servers": {
            f"kafka-{number}": {"host": host.strip(), "protocol": protocol}
            for number, host in enumerate(hosts, start=1)
        }
    }


def _channel(topic: Topic, settings: KafkaSettings) -> dict[str, Any]:
    configuration: dict[str, Any] = {
        name: int(value) if value.isdigit() else value
        for name, value in topic.topic_config().items()
    }
    configuration["cleanup.policy"] = [topic.cleanup.value]
    return {
        "address": topic.in_cluster(settings),
        "description": topic.description,
        "messages": {
            model.__name__: {
                "name": model.__name__,
                "summary": (model.__doc__ or "").strip().splitlines()[0],
                "payload": {"$ref": f"#/components/schemas/{model.__name__}"},
                "bindings": {
                    "kafka": {
                        "key": {"type": "string", "description": topic.key},
                        "bindingVersion": BINDING_VERSION,
                    }
                },
            }
            for model in topic.models
        },
        "bindings": {
            "kafka": {
                "topic": topic.in_cluster(settings),
                "partitions": topic.num_partitions(settings),
                "replicas": settings.replication,
                "topicConfiguration": configuration,
                "bindingVersion": BINDING_VERSION,
            }
        },
        "x-internal": topic.internal,
    }


def _operation_name(topic: Topic) -> str:
    return f"{'receive' if topic in INPUTS else 'send'}.{topic.name}"


def _operation(topic: Topic) -> dict[str, Any]:
    return {
        "action": "receive" if topic in INPUTS else "send",
        "channel": {"$ref": f"#/channels/{topic.name}"},
        "summary": topic.description,
    }


def _schemas() -> dict[str, Any]:
    schemas: dict[str, Any] = {}
    for topic in ALL:
        for model in topic.models:
            schema = json_schema(model)
            schemas |= schema.pop("$defs", {})
            schemas[model.__name__] = schema
    return dict(sorted(schemas.items()))
