"""Shard files and what proves that nothing is missing."""

from __future__ import annotations

import random
import subprocess
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.errors import DecodeError
from streams import shards
from streams.events import OffsetRange, ShardSealed
from streams.shards import (
    NewWatch,
    PastWatch,
    ShardRow,
    read_erased_users,
    read_ranges,
    read_shard,
    verify_shards,
    write_shard,
)
from tests.sealed_shards import sealed_shard

texts = st.text(max_size=5)
past_fields: dict[str, Any] = {
    "video_id": texts,
    "semantic_id": st.none() | st.lists(st.integers(0, 2**31 - 1), max_size=4).map(tuple),
    "channel": st.none() | texts,
    "percent": st.integers(0, 1000),
    "watched_s": st.floats(0, 1e6, width=32),
    "event_time_ms": st.integers(0, 2**50),
    "surface": texts,
    "context_video_id": st.none() | texts,
}
new_fields: dict[str, Any] = past_fields | {
    "event_id": texts,
    "partition": st.integers(0, 2**31 - 1),
    "offset": st.integers(0, 2**62),
    "duration_s": st.floats(0, 1e6, width=32),
    "liked": st.booleans(),
    "query": st.none() | texts,
    "append_time_ms": st.integers(0, 2**50),
    "late": st.booleans(),
}
rows = st.builds(
    ShardRow,
    user_id=texts,
    region=st.none() | texts,
    age=st.none() | st.integers(0, 130),
    gender=st.none() | texts,
    device=st.none() | texts,
    language=st.none() | texts,
    history=st.lists(st.builds(PastWatch, **past_fields), max_size=3),
    watches=st.lists(st.builds(NewWatch, **new_fields), max_size=3),
    codebook_version=st.integers(0, 2**31 - 1),
)


@settings(max_examples=30, deadline=None)
@given(st.lists(rows, max_size=4))
def test_shard_reads_back_as_written(written: list[ShardRow]) -> None:
    assert read_shard(write_shard(written)) == written


def test_shard_carries_its_ranges_and_who_was_erased() -> None:
    ranges = (
        OffsetRange(partition=0, first_offset=3, last_offset=9),
        OffsetRange(partition=2, first_offset=0, last_offset=0),
    )
    data = write_shard([], ranges=ranges, erased_users={"b", "a"})
    assert read_ranges(data) == ranges
    assert read_erased_users(data) == {"a", "b"}


def test_shard_of_no_watches_has_the_whole_schema() -> None:
    data = write_shard([])
    assert read_shard(data) == []
    assert pq.read_schema(pa.BufferReader(data)).equals(shards.SHARD_SCHEMA)


def test_shard_of_the_release_before_is_read() -> None:
    # Written before watches said whether they were late.
    data = (Path(__file__).parent / "data" / "shard-without-late.parquet").read_bytes()
    assert read_erased_users(data) == frozenset()
    [row] = read_shard(data)
    assert (row.user_id, row.region, row.codebook_version) == ("u1", "de", 7)
    assert [each.video_id for each in row.history] == ["before"]
    [watch] = row.watches
    assert (watch.video_id, watch.semantic_id, watch.offset) == ("v1", (1, 2, 3, 0), 41)
    assert watch.late is False


def test_shard_with_a_column_from_the_future_is_read() -> None:
    row = ShardRow("u", None, None, None, None, None, [], [], 1)
    table = pq.read_table(pa.BufferReader(write_shard([row])))
    sink = BytesIO()
    pq.write_table(table.append_column("mood", pa.array(["fine"])), sink)
    assert read_shard(sink.getvalue()) == [row]


@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: b"", lambda data: b"PAR1"])
def test_damaged_shard_is_refused(damage: Any) -> None:
    with pytest.raises(DecodeError) as refused:
        read_shard(damage(write_shard([])))
    assert refused.value.reason == "invalid_shard"


def test_parquet_file_that_is_no_shard_is_refused() -> None:
    sink = BytesIO()
    pq.write_table(pa.table({"user_id": ["u"]}), sink)
    with pytest.raises(DecodeError, match="not a shard"):
        read_shard(sink.getvalue())


def test_shard_of_a_newer_schema_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as newer:
        newer.setattr(shards, "SHARD_SCHEMA_VERSION", shards.SHARD_SCHEMA_VERSION + 1)
        data = write_shard([])
    with pytest.raises(DecodeError) as refused:
        read_shard(data)
    assert refused.value.reason == "unknown_schema_version"


def sealed(
    number: int, *ranges: tuple[int, int, int], watches: int | None = None, **counts: int
) -> ShardSealed:
    covered = sum(last - first + 1 for _, first, last in ranges)
    return sealed_shard(
        f"s{number}",
        *ranges,
        path=f"shards/s{number}.parquet",
        rows=1,
        watches=covered - sum(counts.values()) if watches is None else watches,
        **counts,
    )


def test_verify_finds_nothing_wrong_with_contiguous_ranges() -> None:
    announced = [
        sealed(1, (0, 0, 4), (1, 7, 9), duplicates=1, dead_letters=2, empty_offsets=3),
        sealed(2, (1, 10, 10), erased=1),
        sealed(3, (0, 5, 5), (1, 11, 20)),
    ]
    assert verify_shards(announced) == []


@pytest.mark.parametrize(
    ("announced", "problem"),
    [
        ([sealed(1, (0, 0, 4)), sealed(2, (0, 6, 7))], "leaves a gap"),
        ([sealed(1, (0, 0, 4)), sealed(2, (0, 4, 7))], "overlaps"),
        ([sealed(1, (0, 0, 4)), sealed(1, (0, 5, 7))], "announced twice"),
        ([sealed(1, (0, 0, 4), watches=4)], "covers 5 offsets and accounts for 4"),
    ],
)
def test_verify_names_what_is_wrong(announced: list[ShardSealed], problem: str) -> None:
    [found] = verify_shards(announced)
    assert problem in found


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=2, max_size=8), st.randoms(use_true_random=False))
def test_verify_finds_any_lost_or_repeated_shard(sizes: list[int], chance: random.Random) -> None:
    ends = [sum(sizes[:count]) for count in range(len(sizes) + 1)]
    announced = [sealed(n, (0, ends[n], ends[n + 1] - 1)) for n in range(len(sizes))]
    repeated = chance.randrange(len(sizes))
    assert verify_shards([*announced[: repeated + 1], *announced[repeated:]])
    lost = chance.randrange(1, len(sizes))
    if lost < len(sizes) - 1:  # a missing last one cannot show
        assert verify_shards(announced[:lost] + announced[lost + 1 :])


FIRST_READERS = """
import importlib, msgspec, sys, threading
from streams import shards
sys.setswitchinterval(1e-6)
row = {"user_id": "u", "region": None, "age": None, "gender": None, "device": None, "language": None, "history": [],
       "watches": [], "codebook_version": 1}
def read():
    together.wait()
    msgspec.convert([row], list[fresh.ShardRow])
for _ in range(100):
    fresh = importlib.reload(shards)  # as in a process that has read none yet
    together = threading.Barrier(4)
    threads = [threading.Thread(target=read) for _ in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
"""


def test_first_shards_of_a_process_can_be_read_by_several_threads_at_once() -> None:
    finished = subprocess.run(
        [sys.executable, "-c", FIRST_READERS], capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr[-2000:]
