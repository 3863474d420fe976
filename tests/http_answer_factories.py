"""Answers over HTTP as the load generator hands them over, with defaults for what a test does not care about."""

from __future__ import annotations

import json
from typing import Any

from tests.bench.parts.http_load import Answer


def answer(
    sent_s: float = 0.0,
    latency_s: float = 0.05,
    *,
    code: int = 200,
    version: int = 1,
    sources: tuple[str, ...] = ("lrm", "lrm"),
    number: int = 0,
) -> Answer:
    """An answer to request `number`, by the model unless `sources` says otherwise."""
    items = [{"video_id": f"v-{at}", "source": source} for at, source in enumerate(sources)]
    body: dict[str, Any] = {"model_version": version, "items": items}
    return Answer(number, sent_s, latency_s, code, json.dumps(body if code == 200 else {}).encode())


def answers(
    count: int, latency_s: float = 0.05, *, from_s: float = 0.0, every_s: float = 0.1
) -> list[Answer]:
    """Answers of the model at a constant rate."""
    return [answer(from_s + every_s * at, latency_s) for at in range(count)]
