"""The shards' benchmark: what it loads the sealer with, how it adds up, what it refuses to report."""

from __future__ import annotations

import dataclasses
import itertools
import sys
from pathlib import Path

import numpy as np
import pytest

from infra.errors import FreshetError
from infra.settings import Settings
from streams.codec import decode
from streams.events import ShardSealed, WatchEvent
from streams.watches import Watch, decode_watch
from tests.bench import shards
from tests.bench.parts.faust_sealer import FaustSealer
from tests.bench.parts.history_load import copies, zipf_lengths
from tests.bench.parts.marks import (
    Mark,
    mark_now,
    measured_process,
    per_cpu_s,
    per_s,
    read_marks,
    write_mark,
)
from tests.bench.parts.measured_sealer import Spent
from tests.bench.parts.restored_histories import Histories
from tests.bench.parts.stages import STAGES, Profile, costliest, shares, stage_seconds
from tests.bench.parts.watch_load import (
    EVENTS_PER_S,
    JITTER_MS,
    WatchSource,
    in_batches,
    user_id,
    zipf_cumulative,
)
from tests.sealed_shards import sealed_shard

MB = 1_000_000


def source(*, users: int = 1_000, seed: int = 0) -> WatchSource:
    return WatchSource(users=users, videos=100, exponent=0.8, seed=seed)


def announced(
    first: int, count: int, *, rows: int = 1, dead_letters: int = 0, duplicates: int = 0
) -> ShardSealed:
    return sealed_shard(
        f"shard-{first}",
        (0, first, first + count - 1),
        rows=rows,
        watches=count - dead_letters - duplicates,
        duplicates=duplicates,
        dead_letters=dead_letters,
    )


def mark(events: int, cpu_s: float, time_s: float, rss_mb: float = 0.0) -> Mark:
    return Mark(events, cpu_s, time_s, round(rss_mb * MB), round(rss_mb * MB))


def measured_run(*, watches_per_row: float = 9.0, event_bytes: float = 250.0) -> shards.Run:
    """A run at 1,000 events per CPU-second and 2,000 per second whose memory grows by 1 MB per shard."""
    sealing = [mark(2_000 * n, 2.0 * n, 1.0 * n, 100 + n) for n in range(17)]
    return shards.Run(
        event_bytes=event_bytes,
        sealed=shards.Sealed(sealing, watches_per_row, Spent({"decode": 3.0, "arrow": 1.0}, [])),
        consumed=[mark(100, 0, 0), mark(8_100, 2, 2)],
        plain=[mark(0, 0, 0), mark(5_000, 10, 5)],
        faust=[mark(0, 1, 1), mark(500, 11, 11)],
        histories=Histories(
            full=(mark(0, 0, 0, 50), mark(0, 1, 1, 350)),
            more=(mark(0, 0, 0, 60), mark(0, 1, 1, 760)),
            many=(mark(0, 0, 10, 50), mark(0, 1, 30, 500)),
            mean_length=19.0,
        ),
    )


def values(run: shards.Run) -> dict[str, float]:
    return {each.measure: each.value for each in shards.measures(run, shards.Sizes())}


def test_every_generated_event_is_one_that_the_contract_accepts() -> None:
    load = source()
    events = load.render(load.draw_users(500))
    for value in events:
        assert decode(WatchEvent, value).event_id == decode_watch(value).event_id
        assert len(value) >= shards.EVENT_BYTES_MIN


def test_generated_events_are_of_the_users_asked_for_and_share_no_event_id() -> None:
    load = source()
    users = np.array([5, 7, 5, 999])
    events = [
        found
        for _ in range(50)
        for value in load.render(users)
        if isinstance(found := decode_watch(value), Watch)
    ]
    assert len(events) == 50 * len(users)
    assert [event.user_id.encode() for event in events[:4]] == [user_id(n) for n in users.tolist()]
    assert len({event.event_id for event in events}) == 200
    assert len({event.video_id for event in events}) > 10


def test_generated_event_times_go_on_from_batch_to_batch_and_are_out_of_order_within_bounds() -> (
    None
):
    load = source()
    users = np.zeros(EVENTS_PER_S // 2, np.int64)
    first, second = (
        np.array([decode_watch(value).event_time_ms for value in load.render(users)])
        for _ in range(2)
    )
    assert (np.diff(first) < 0).any()
    assert abs((second.mean() - first.mean()) - 500) < 50
    assert np.ptp(first) <= 500 + 2 * JITTER_MS


def test_same_seed_draws_the_same_users_and_another_seed_others() -> None:
    drawn = [source(seed=seed).draw_users(100).tolist() for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_users_are_drawn_by_zipf() -> None:
    counts = np.bincount(source().draw_users(200_000), minlength=1_000)
    expected = np.diff(zipf_cumulative(1_000, 0.8), prepend=0) * 200_000
    assert counts.sum() == 200_000
    np.testing.assert_allclose(counts[:10], expected[:10], rtol=0.1)
    np.testing.assert_allclose(counts[500:].sum(), expected[500:].sum(), rtol=0.1)


def test_batches_hold_every_user_in_order() -> None:
    users = np.arange(45_000)
    batches = in_batches(users)
    assert [len(batch) for batch in batches] == [20_000, 20_000, 5_000]
    np.testing.assert_array_equal(np.concatenate(batches), users)


def test_lengths_of_histories_fall_with_their_length_and_stay_within_the_longest() -> None:
    lengths = zipf_lengths(50_000, longest=100, seed=0)
    assert (lengths.min(), lengths.max()) == (1, 100)
    assert (lengths == 1).sum() > 1.7 * (lengths == 2).sum()
    assert 18 < lengths.mean() < 21


def test_copied_history_differs_from_the_written_one_in_its_user_only() -> None:
    written = [(user_id(n), b'{"user_id":"%b","entries":[%d]}' % (user_id(n), n)) for n in (7, 8)]
    assert dict(copies(written, 3)) == {
        b"user-00000000": b'{"user_id":"user-00000000","entries":[7]}',
        b"user-00000001": b'{"user_id":"user-00000001","entries":[8]}',
        b"user-00000002": b'{"user_id":"user-00000002","entries":[7]}',
    }


def test_marks_get_the_events_sealed_so_far_and_duplicates_count_as_handled() -> None:
    marks = [mark(0, 1, 1), mark(0, 2, 2)]
    found = shards.with_events(marks, [announced(0, 10), announced(10, 5, duplicates=2)])
    assert [each.events for each in found] == [10, 15]
    assert [each.cpu_s for each in found] == [1, 2]


def test_run_whose_shards_leave_out_or_refuse_events_is_not_reported() -> None:
    marks = [mark(0, 1, 1), mark(0, 2, 2)]
    with pytest.raises(FreshetError, match="leaves a gap"):
        shards.with_events(marks, [announced(0, 10), announced(11, 5)])
    with pytest.raises(FreshetError, match="2 dead letters"):
        shards.with_events(marks, [announced(0, 10), announced(10, 5, dead_letters=2)])


def test_rates_leave_out_the_first_shard_and_what_was_profiled() -> None:
    run = measured_run()
    marks = list(run.sealed.marks)
    marks[shards.SHARDS_WARM_UP - 1] = mark(4_000, 1, 1)
    marks[shards.SHARDS_MEASURED - 1] = mark(40_000, 10, 10)
    marks[-1] = mark(10**9, 10**6, 10**6)
    found = values(dataclasses.replace(run, sealed=dataclasses.replace(run.sealed, marks=marks)))
    assert found["events_per_s_per_core"] == 36_000 / 9
    assert found["events_per_s"] == 36_000 / 9


def test_ratios_compare_cpu_time_with_the_peers_and_wall_time_with_the_consumer() -> None:
    found = values(measured_run())
    assert found["events_per_s_per_core"] == 1_000
    assert found["over_faust"] == 1_000 / 50
    assert found["over_plain_loop"] == 1_000 / 500
    assert found["share_of_consumer_ceiling"] == 2_000 / 4_000


def test_memory_is_compared_by_peaks_and_histories_by_what_more_of_them_add() -> None:
    found = values(measured_run())
    per_user = 400 * MB / (shards.MORE_USERS - shards.FULL_USERS)
    assert found["rss_growth_mb"] == shards.SHARDS_MEASURED - shards.SHARDS_EARLY
    assert found["history_bytes_per_user"] == per_user
    assert found["restore_users_per_s"] == shards.RESTORED_USERS / 20


def test_load_lighter_than_stated_is_refused() -> None:
    with pytest.raises(FreshetError, match=r"7\.9 watches per user"):
        values(measured_run(watches_per_row=7.9))
    with pytest.raises(FreshetError, match="199 bytes"):
        values(measured_run(event_bytes=199))


def test_watches_per_row_weighs_shards_by_their_rows() -> None:
    assert shards.watches_per_row([announced(0, 10, rows=1), announced(10, 20, rows=2)]) == 10


def test_scale_shrinks_sizes_and_never_to_nothing() -> None:
    assert shards.Sizes(0.01).of(200_000) == 2_000
    assert shards.Sizes(0.0001).of(10) == 1


def test_own_time_counts_for_the_stage_and_native_time_for_the_stage_that_called() -> None:
    step = ("workers/watches.py", 1, "step")
    history = ("streams/packed_history.py", 1, "merge")
    library = ("site-packages/fsspec/local.py", 1, "pipe_file")
    store = ("infra/storage.py", 1, "put_bytes")
    consume = ("~", 0, "<method 'consume' of 'cimpl.Consumer' objects>")
    length = ("~", 0, "<built-in method builtins.len>")
    written = ("~", 0, "<method 'write' of '_io.BufferedWriter' objects>")

    def by(**seconds: float) -> dict[tuple[str, int, str], tuple[int, int, float, float]]:
        named = {"step": step, "history": history, "library": library, "store": store}
        return {named[name]: (1, 1, spent, spent) for name, spent in seconds.items()}

    profile: Profile = {
        step: (1, 1, 1.0, 9.0, {}),
        history: (1, 1, 2.0, 2.5, by(step=2.0)),
        consume: (1, 1, 3.0, 3.0, by(step=3.0)),
        length: (1, 1, 0.75, 0.75, by(step=0.25, history=0.5)),
        store: (1, 1, 0.0, 2.0, by(step=2.0)),
        library: (1, 1, 0.5, 2.0, by(store=0.5)),
        written: (1, 1, 1.5, 1.5, by(library=1.5)),
    }
    found = {stage: seconds for stage, seconds in stage_seconds(profile).items() if seconds}
    assert found == {"builder": 1.25, "histories": 2.5, "consume": 3.0, "store": 2.0}
    assert costliest(profile, 2) == [(consume[2], 3.0), ("packed_history.merge", 2.0)]


def test_time_that_nobody_asked_for_is_other() -> None:
    lonely = ("~", 0, "<built-in method time.sleep>")
    assert stage_seconds({lonely: (1, 1, 4.0, 4.0, {})})["other"] == 4.0


def test_shares_are_of_all_stages_and_add_up() -> None:
    found = shares({"decode": 3.0, "arrow": 1.0})
    assert tuple(found) == STAGES
    assert sum(found.values()) == 1
    assert shares({}) == dict.fromkeys(STAGES, 0.0)


def test_marks_are_read_as_written_and_never_go_back(tmp_path: Path) -> None:
    path = tmp_path / "marks"
    assert read_marks(path) == []
    written = [mark_now(events) for events in (0, 10)]
    for each in written:
        write_mark(path, each)
    first, last = read_marks(path)
    assert [first, last] == written
    assert last.cpu_s >= first.cpu_s > 0
    assert last.time_s >= first.time_s
    assert last.rss_bytes > MB


def test_rates_between_marks() -> None:
    marks = mark(10, 1, 5), mark(110, 3, 15)
    assert (per_cpu_s(*marks), per_s(*marks)) == (50, 10)


def test_faust_peer_writes_every_watch_with_what_its_user_watched_before(tmp_path: Path) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    load = source()
    sealer = FaustSealer(tmp_path, 3)
    names = [sealer.add(value) for value in load.render(np.array([1, 1, 2, 1, 3, 3]))]
    assert [name for name in names if name] == ["000000.parquet", "000001.parquet"]
    rows = [
        {row["user_id"]: row for row in pq.read_table(tmp_path / name).to_pylist()}
        for name in names
        if name
    ]
    assert {user: len(row["watches"]) for user, row in rows[0].items()} == {
        "user-00000001": 2,
        "user-00000002": 1,
    }
    assert rows[1]["user-00000001"]["history"] == rows[0]["user-00000001"]["watches"]
    assert not list(itertools.chain(*(row["history"] for row in rows[0].values())))


def test_process_that_ends_early_is_reported_with_the_end_of_its_log(tmp_path: Path) -> None:
    with (
        measured_process("no_such_module", (), Settings(), tmp_path / "log") as process,
        pytest.raises(FreshetError, match="no_such_module"),
    ):
        process.wait_for(lambda: False, timeout_s=60, what="anything")
    assert process.process.returncode not in (None, 0)
    assert sys.executable in (tmp_path / "log").read_text()
