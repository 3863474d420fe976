"""What answers over HTTP say of who answered, and how long it took; knows nothing of who asked, and how often."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import numpy as np

from tests.bench.parts.http_load import Answer

MODEL = "lrm"
TOO_MANY = 429


def content(answer: Answer) -> dict[str, Any]:
    """Return what a recommendation says."""
    found: dict[str, Any] = msgspec.json.decode(answer.body)
    return found


def is_answered(answer: Answer) -> bool:
    """Return whether there are recommendations, whoever made them."""
    return answer.code == 200


def is_failed(answer: Answer) -> bool:
    """Return whether nothing came, or a server's error."""
    return answer.code == 0 or answer.code >= 500


def is_by_model(answer: Answer) -> bool:
    """Return whether all that is recommended is the model's own."""
    if not is_answered(answer):
        return False
    items = content(answer)["items"]
    return bool(items) and all(item["source"] == MODEL for item in items)


def latency_s(answers: Iterable[Answer], percentile: float = 99.0) -> float:
    """Return a percentile of how long the answers took; infinite where there is none."""
    found = [answer.latency_s for answer in answers]
    return float(np.percentile(found, percentile)) if found else float("inf")


def described(answers: Sequence[Answer]) -> str:
    """Return a line for whoever waits."""
    good = [answer for answer in answers if is_answered(answer)]
    own = sum(map(is_by_model, good))
    refused = sum(answer.code == TOO_MANY for answer in answers)
    failed = sum(map(is_failed, answers))
    times = ", ".join(f"p{p} {1000 * latency_s(good, p):.0f} ms" for p in (50, 99))
    return (
        f"{len(answers)} requests: {own} by the model, {len(good) - own} without it, {refused} refused, "
        f"{failed} failed; {times}"
    )
