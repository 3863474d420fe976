"""The figures of the freshness worker in the object store, for whoever shows them; knows nothing of what they mean."""

from __future__ import annotations

import json
from typing import Any

from infra.errors import TransientError
from infra.storage import ObjectStore

FIGURES_KEY = "freshness/figures.json"


def write_figures(store: ObjectStore, figures: dict[str, Any]) -> None:
    """Put the figures in place of the last ones."""
    store.put_bytes(FIGURES_KEY, json.dumps(figures).encode())


def read_figures(store: ObjectStore) -> dict[str, Any]:
    """Return the last figures; empty where there are none, or none that can be read."""
    try:
        found = json.loads(store.get_bytes(FIGURES_KEY))
    except (OSError, ValueError, TransientError):
        return {}
    return found if isinstance(found, dict) else {}
