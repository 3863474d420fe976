"""Every expression that comes with Freshet: the rules', the alerts' and the dashboard's; and the metrics in them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from infra import dashboard

FOLDER = Path(__file__).resolve().parents[1] / "infra" / "prometheus"
GROUPS: list[dict[str, Any]] = [
    group
    for name in ("objectives.yml", "alerts.yml")
    for group in yaml.safe_load((FOLDER / name).read_text())["groups"]
]
RULES = [rule for group in GROUPS for rule in group["rules"]]
OF_PROCESSES = {"up", "process_resident_memory_bytes", "process_cpu_seconds_total"}
_NAME = re.compile(r"\b(?:freshet_\w+|slo:[\w:]+|process_\w+|up)\b(?!\s*\()")


def expressions() -> Iterator[str]:
    """Yield all of them."""
    yield from dashboard.queries()
    yield from (rule["expr"] for rule in RULES)


def metrics_in(expression: str) -> set[str]:
    """Return the names of the series that an expression asks for."""
    return set(_NAME.findall(re.sub(r'"[^"]*"', '""', expression)))
