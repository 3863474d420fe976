"""A build of the offline table, in a process of its own, that stops for good at one of its steps.

Run as `python -m tests.integration.table_process NAME`: once a file of that name is to be written, it says so on stdout
and waits to be killed. The settings come from the environment.
"""

from __future__ import annotations

import sys
import threading

from infra.log import configure
from infra.ray_cluster import ensure_ray
from infra.settings import load_settings
from infra.storage import ObjectStore
from workers.table_build import build


def main(name: str) -> None:
    """Build up to the file called `name`, or, for "announcement", up to what comes after the last one."""
    put_bytes = ObjectStore.put_bytes

    def put_or_stop(store: ObjectStore, key: str, data: bytes) -> str:
        if not key.endswith(f"/{name}"):
            sha256 = put_bytes(store, key, data)
            if name != "announcement" or not key.endswith("/table.json"):
                return sha256
        print("stopped", flush=True)
        threading.Event().wait()
        raise AssertionError

    ObjectStore.put_bytes = put_or_stop  # type: ignore[assignment, method-assign]
    settings = load_settings()
    configure("table", level=settings.log.level, format=settings.log.format)  # to stderr
    with ensure_ray(settings):
        build(settings)


if __name__ == "__main__":
    main(sys.argv[1])
