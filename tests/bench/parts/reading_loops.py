"""What the sealer is compared with on confluent-kafka: `python -m tests.bench.parts.reading_loops LOOP FOLDER EVENTS`.

`consume` reads with the sealer's consumer settings and does nothing. `plain` is the loop that one would write without
Freshet: an event at a time, decoded to a dict, a Parquet file every EVENTS of them, offsets committed by the client on
its own. It validates nothing, keeps no histories, announces nothing, and loses or repeats events when it is killed.
Each marks how far it is every EVENTS events, until it is killed.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from infra.settings import KafkaSettings, load_settings
from streams.client import consumer
from streams.topics import WATCHES
from tests.bench.parts.marks import mark_now, write_mark

POLL_RECORDS, POLL_S = 10_000, 0.1


def consume_only(kafka: KafkaSettings, folder: Path, mark_every: int) -> None:
    """Read for ever."""
    reader = consumer(kafka, group="bench-consume")
    reader.subscribe([WATCHES.in_cluster(kafka)])
    received = marked = 0
    while True:
        received += len(reader.consume(POLL_RECORDS, POLL_S))
        if received and (not marked or received - marked >= mark_every):
            write_mark(folder / "marks", mark_now(received))
            marked = received


def plain_loop(kafka: KafkaSettings, folder: Path, events: int) -> None:
    """Write file after file for ever."""
    reader = consumer(
        kafka,
        group="bench-plain",
        overrides={"enable.auto.commit": True, "enable.auto.offset.store": True},
    )
    reader.subscribe([WATCHES.in_cluster(kafka)])
    decode = msgspec.json.Decoder().decode
    rows: list[dict[str, Any]] = []
    files = 0
    while True:
        message = reader.poll(1)
        if message is None or message.error() is not None:
            continue
        if not rows and not files:
            write_mark(folder / "marks", mark_now())
        rows.append(decode(message.value()))
        if len(rows) == events:
            table = pa.Table.from_pylist(rows)
            pq.write_table(table, folder / f"{files:06d}.parquet", compression="zstd")
            files += 1
            rows = []
            write_mark(folder / "marks", mark_now(files * events))


LOOPS = {"consume": consume_only, "plain": plain_loop}

if __name__ == "__main__":
    LOOPS[sys.argv[1]](load_settings().kafka, Path(sys.argv[2]), int(sys.argv[3]))
