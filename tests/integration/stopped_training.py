"""The training loop of a model as a process that dies in its first round.

`python -m tests.integration.stopped_training METHOD MODEL`: it dies where METHOD of the loop would begin. `_round` is
when the plan is written, `_conclude` after the checkpoint.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import Any
from unittest.mock import patch

from infra.ray_cluster import ensure_ray
from infra.settings import load_settings
from workers.training import TrainingLoop


def main(method: str, model_name: str) -> None:
    """Begin a round and die."""

    def die(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    settings = load_settings()
    with ensure_ray(settings), patch.object(TrainingLoop, method, die):
        TrainingLoop(settings, model_name=model_name).run(threading.Event())


if __name__ == "__main__":
    main(*sys.argv[1:])
