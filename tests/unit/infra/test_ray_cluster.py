"""Ray's own limit on its start cannot be reached at will, so `ray.init` is a fake."""

from __future__ import annotations

import re
from typing import Any

import pytest
import ray

from infra.ray_cluster import STARTS, ensure_ray
from infra.settings import Settings

TOO_LATE = "The current node timed out during startup. This could happen because ..."


@pytest.mark.parametrize(
    ("faults", "starts"),
    [([TOO_LATE], 2), ([TOO_LATE] * STARTS, STARTS), (["no such directory"], 1)],
)
def test_start_that_took_too_long_is_tried_again_and_no_other(
    faults: list[str], starts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    left, started = iter(faults), []

    def init(**_: Any) -> None:
        started.append(True)
        if (fault := next(left, None)) is not None:
            raise Exception(fault)
        raise KeyboardInterrupt("it came up")  # there is no cluster to go on with

    monkeypatch.setattr(ray, "init", init)
    came_up = len(faults) < starts
    said = "it came up" if came_up else faults[0]
    with (
        pytest.raises(KeyboardInterrupt if came_up else Exception, match=re.escape(said)),
        ensure_ray(Settings()),
    ):
        pass
    assert len(started) == starts
