"""The sealer's work as a Faust agent would do it: `python -m tests.bench.parts.faust_sealer FOLDER EVENTS`.

The agent validates each watch with the contract's pydantic model, groups by user, keeps the last 100 watches of each in
a dict, writes Parquet with pyarrow every EVENTS events and announces the file. It has Faust's own delivery settings:
what is not written when it dies is lost. A mark at its first event and at every announcement, until it is killed.
"""

from __future__ import annotations

import logging
import sys
from collections import defaultdict, deque
from pathlib import Path
from typing import Any

import faust
import pyarrow as pa
import pyarrow.parquet as pq

from infra.settings import Settings, load_settings
from streams.events import WatchEvent
from streams.topics import SWAPS, WATCHES
from tests.bench.parts.marks import mark_now, write_mark

HISTORY_LENGTH = 100
ANNOUNCED = SWAPS  # any topic of one partition that nobody else writes to here


class FaustSealer:
    """What the agent keeps between two files."""

    def __init__(self, folder: Path, events: int) -> None:
        self._folder = folder
        self._events = events
        self._histories: dict[str, deque[dict[str, Any]]] = defaultdict(
            lambda: deque(maxlen=HISTORY_LENGTH)
        )
        self._before: dict[str, list[dict[str, Any]]] = {}
        self._new: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self._pending = self._files = 0

    def add(self, value: bytes) -> str | None:
        """Take in an event; return the name of the file that it has completed, if it has."""
        if not self._pending and not self._files:
            write_mark(self._folder / "marks", mark_now())
        watch = WatchEvent.model_validate_json(value)
        user_id = watch.user_id
        history = self._histories[user_id]
        if user_id not in self._before:
            self._before[user_id] = list(history)
        entry = watch.model_dump(exclude={"user", "user_id", "schema_version"})
        history.append(entry)
        self._new[user_id].append(entry)
        self._pending += 1
        return self._write() if self._pending == self._events else None

    def _write(self) -> str:
        rows = [
            {"user_id": user_id, "history": self._before[user_id], "watches": new}
            for user_id, new in self._new.items()
        ]
        path = self._folder / f"{self._files:06d}.parquet"
        pq.write_table(pa.Table.from_pylist(rows), path, compression="zstd")
        self._before.clear()
        self._new.clear()
        self._pending = 0
        self._files += 1
        return path.name

    def announced(self) -> None:
        """Mark what is announced by now."""
        write_mark(self._folder / "marks", mark_now(self._files * self._events))


def create_app(settings: Settings, sealer: FaustSealer) -> faust.App:
    """Return the app with its one agent."""
    kafka = settings.kafka
    app = faust.App(
        "bench-faust",
        broker=[f"kafka://{server}" for server in kafka.bootstrap_servers.split(",")],
        topic_disable_leader=True,
        topic_partitions=kafka.partitions,
        topic_replication_factor=1,
        web_enabled=False,
        datadir=str(settings.var_dir / "faust"),
        worker_redirect_stdouts=False,
    )
    raw = {
        "key_type": bytes, "value_type": bytes, "key_serializer": "raw", "value_serializer": "raw",
    }  # fmt: skip
    watches = app.topic(WATCHES.in_cluster(kafka), **raw)
    announcements = app.topic(ANNOUNCED.in_cluster(kafka), partitions=1, **raw)

    @app.agent(watches)
    async def seal(stream: Any) -> None:
        async for value in stream:
            name = sealer.add(value)
            if name is not None:
                await (await announcements.send(value=name.encode()))
                sealer.announced()

    return app


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    app = create_app(load_settings(), FaustSealer(Path(sys.argv[1]), int(sys.argv[2])))
    faust.Worker(app, quiet=True, override_logging=False).execute_from_commandline()
