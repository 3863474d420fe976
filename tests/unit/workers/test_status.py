from __future__ import annotations

from pathlib import Path

import pytest

from infra.settings import Settings
from streams.events import CheckpointPromoted, SwapReported, to_json
from streams.topics import CHECKPOINTS, SWAPS
from tests.kept_topics import keep
from workers.status import status

PROMOTED = CheckpointPromoted(
    model_name="lrm", model_version=3, codebook_version=1, path="p", sha256="s", metrics={},
    promoted_time_ms=1,
)  # fmt: skip
SWAPPED = SwapReported(
    replica="r", model_name="lrm", model_version=3, previous_version=2, outcome="succeeded",
    reason="", sha256="s", swapped_time_ms=2, load_s=0.1,
)  # fmt: skip


def test_records_that_cannot_be_read_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(
        monkeypatch,
        "workers.status",
        (CHECKPOINTS, [b"{poison", to_json(PROMOTED), None]),
        (SWAPS, [None, to_json(SWAPPED), b"{}"]),
    )
    found = status(Settings(var_dir=tmp_path))
    assert found["topics"][CHECKPOINTS.name] == 3
    assert found["checkpoints"]["lrm"]["model_version"] == 3
    assert found["replicas"]["r"]["outcome"] == "succeeded"
