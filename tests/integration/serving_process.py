"""The endpoint as `freshet serve` starts it, and the topics around it, for the tests that ask it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
from pydantic import BaseModel

from infra.kafka.broker import LocalBroker
from infra.settings import Settings, as_environment, load_settings
from streams.admin import create_topics
from streams.client import TopicReader, flush, producer, send, wait_until
from streams.codec import decode
from streams.events import CheckpointPromoted
from streams.topics import CHECKPOINTS, Topic
from tests.tiny_serving import save_checkpoint

RUN = "from infra.settings import load_settings; from serve.app import run; run(load_settings())"
START_S, REACT_S = 240, 60
M = TypeVar("M", bound=BaseModel)


@dataclass
class Endpoint:
    """The running process, and the topics around it."""

    settings: Settings
    folder: Path
    process: subprocess.Popen[bytes]
    http: httpx.Client

    def publish(self, topic: Topic, key: str, event: BaseModel | None) -> None:
        client = producer(self.settings.kafka)
        send(client, self.settings.kafka, topic, key, event)
        flush(client)

    def promote(self, promoted: CheckpointPromoted) -> None:
        self.publish(CHECKPOINTS, promoted.model_name, promoted)

    def checkpoint(self, version: int) -> CheckpointPromoted:
        return save_checkpoint(self.folder / "store", version)

    def ask(self, **fields: Any) -> dict[str, Any]:
        response = self.http.post("/v1/recommendations", json=fields)
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer

    def ids(self, **fields: Any) -> list[str]:
        return [item["video_id"] for item in self.ask(**fields)["items"]]

    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = self.http.get("/v1/status").json()
        return status

    def read(self, topic: Topic, model: type[M]) -> list[M]:
        with TopicReader(self.settings.kafka, [topic]) as reader:
            return [decode(model, message.value()) for _, message in reader.read_to_end()]

    def until(self, condition: Callable[[], bool], what: str) -> None:
        wait_until(condition, timeout_s=REACT_S, what=what)


def new_settings(broker: LocalBroker, **more: str) -> Settings:
    """Return settings with topics of their own, which are created; `more` names variables without their prefix."""
    settings = load_settings(
        {
            "FRESHET_KAFKA__BOOTSTRAP_SERVERS": broker.bootstrap_servers,
            "FRESHET_KAFKA__TOPIC_PREFIX": f"t{uuid.uuid4().hex[:8]}.",
            "FRESHET_KAFKA__PARTITIONS": "2",
            "FRESHET_STORAGE__ROOT": "store",
            "FRESHET_VAR_DIR": "var",
            "FRESHET_SERVE__PORT": "0",
        }
        | {f"FRESHET_{name}": value for name, value in more.items()}
    )
    create_topics(settings.kafka)
    return settings


def start(settings: Settings, folder: Path) -> Endpoint:
    """Start the process in `folder`, where the relative paths of the settings are, and wait until it listens."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("FRESHET_")
    }
    with (folder / "serve.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", RUN],
            cwd=folder,
            env=environment | as_environment(settings),
            stdout=log,
            stderr=log,
        )
    discovery = folder / settings.var_dir / "serve.json"
    try:
        wait_until(
            lambda: discovery.exists() or process.poll() is not None,
            timeout_s=START_S,
            what="the start of the endpoint",
        )
        url = json.loads(discovery.read_text())["url"]
    except Exception:
        process.terminate()
        print((folder / "serve.log").read_text(errors="replace")[-5000:])
        raise
    return Endpoint(settings, folder, process, httpx.Client(base_url=url, timeout=REACT_S))
