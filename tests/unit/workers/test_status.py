"""Reports and sweeps over topics that hold records which are none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import pytest

from infra.settings import KafkaSettings, Settings
from infra.storage import ObjectStore
from streams.events import CheckpointPromoted, SwapReported, to_json
from streams.topics import CHECKPOINTS, SHARDS, SWAPS, Topic
from workers.status import status

PROMOTED = CheckpointPromoted(
    model_name="lrm", model_version=3, codebook_version=1, path="p", sha256="s", metrics={},
    promoted_time_ms=1,
)  # fmt: skip
SWAPPED = SwapReported(
    replica="r", model_name="lrm", model_version=3, previous_version=2, outcome="succeeded",
    reason="", sha256="s", swapped_time_ms=2, load_s=0.1,
)  # fmt: skip
