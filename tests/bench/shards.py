"""Training shards: from watch events in Kafka to sealed, announced shards, beside Faust and plain loops; and memory.

One run on one machine: a broker is filled with full histories and a backlog, and the sealer, a consumer that does
nothing, a plain loop and a Faust agent read it one after the other, each in a process of its own that reports its
CPU time. Rates are between announcements of shards, so neither start-up, nor a restore, nor a shard that is not
sealed counts. A second broker holds the histories of many users, from which a sealer is started. `BENCH_SCALE=0.01`
makes everything a hundredth, to try it; figures mean something at 1 only, which takes some ten minutes and 7 GB of
disk.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from infra.errors import FreshetError
from infra.kafka.broker import start_broker
from infra.settings import Settings, load_settings, with_values
from streams.admin import create_topics
from streams.events import ShardSealed
from streams.shards import verify_shards
from tests.bench.measure import Measure, measured, measured_over
from tests.bench.parts.history_load import fill_histories, full_histories
from tests.bench.parts.marks import Mark, measured_process, per_cpu_s, per_s, read_marks, say
from tests.bench.parts.measured_sealer import MARKS, PROFILE, Spent
from tests.bench.parts.restored_histories import (
    Histories,
    announced_shards,
    restored_histories,
)
from tests.bench.parts.stages import shares
from tests.bench.parts.watch_load import (
    WatchSource,
    in_batches,
    produce_labels,
    produce_watches,
)

USERS, VIDEOS, EXPONENT = 200_000, 20_000, 0.8
SHARD_WATCHES = 2_000_000
SHARDS_WARM_UP, SHARDS_EARLY, SHARDS_MEASURED, SHARDS_PROFILED = 1, 5, 15, 2
WATCHES_PER_ROW_MIN = 8.0
EVENT_BYTES_MIN = 200
CONSUMED, PLAIN_EVENTS, PEER_SHARD_EVENTS = 4_000_000, 2_000_000, 50_000
FAUST_S = 60.0
HISTORY_LENGTH = 100
FULL_USERS, MORE_USERS, RESTORED_USERS, WRITTEN_USERS = 200_000, 600_000, 1_000_000, 2_000
PARTITIONS, SEED = 4, 0
OVERSHOOT = 10_000  # events by which a sealer that reads in batches may exceed a shard's size
TIMEOUT_S = 1_200.0
MB = 1e6


@dataclass(frozen=True)
class Sizes:
    """The sizes above, by a scale."""

    scale: float = 1.0

    def of(self, size: int) -> int:
        """Return a size at this scale, at least 1."""
        return max(1, round(size * self.scale))

    @property
    def faust_s(self) -> float:
        """How long Faust may work: enough to announce some shards."""
        return max(5.0, FAUST_S * self.scale)


@dataclass(frozen=True)
class Sealed:
    """The sealer's run: a mark per shard, with the events up to it, and where time went in the shards after them."""

    marks: list[Mark]
    watches_per_row: float
    spent: Spent


@dataclass(frozen=True)
class Run:
    """Everything that was measured."""

    event_bytes: float
    sealed: Sealed
    consumed: list[Mark]
    plain: list[Mark]
    faust: list[Mark]
    histories: Histories


def measure() -> list[Measure]:
    """Fill a broker, let each read it in turn, then restore from a second one."""
    sizes = Sizes(float(os.environ.get("BENCH_SCALE", "1")))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        with _broker(root / "stream") as settings:
            event_bytes = _produce(settings, sizes)
            sealed = _seal(settings, sizes, root / "stream")
            consumed = _loop("consume", settings, root / "stream", sizes.of(CONSUMED))
            plain = _loop("plain", settings, root / "stream", sizes.of(PLAIN_EVENTS), sizes)
            faust = _faust(settings, sizes, root / "stream")
            say(f"{_disk_bytes(root) / 1e9:.2f} GB of disk")
        shutil.rmtree(root / "stream")
        with _broker(root / "histories") as settings:
            histories = restored_histories(
                settings,
                root / "histories",
                WatchSource(
                    users=2 * sizes.of(WRITTEN_USERS),
                    videos=sizes.of(VIDEOS),
                    exponent=EXPONENT,
                    seed=SEED,
                ),
                full_users=sizes.of(FULL_USERS),
                more_users=sizes.of(MORE_USERS),
                many_users=sizes.of(RESTORED_USERS),
                timeout_s=TIMEOUT_S,
            )
    run = Run(event_bytes, sealed, consumed, plain, faust, histories)
    say(
        "peak memory by shard, MB: "
        + " ".join(f"{each.peak_bytes / MB:.0f}" for each in sealed.marks)
    )
    _say_where_time_goes(sealed.spent)
    return measures(run, sizes)


def measures(run: Run, sizes: Sizes) -> list[Measure]:
    """Return the report's lines.

    Raises:
        FreshetError: the load was lighter than what the figures are stated for.
    """
    if run.sealed.watches_per_row < WATCHES_PER_ROW_MIN:
        raise FreshetError(
            f"{run.sealed.watches_per_row:.1f} watches per user and shard, less than "
            f"{WATCHES_PER_ROW_MIN}; raise SHARD_WATCHES"
        )
    if run.event_bytes < EVENT_BYTES_MIN:
        raise FreshetError(f"events have {run.event_bytes:.0f} bytes, too few")
    return [
        measured("scale", sizes.scale, "times", more=True),
        measured("bytes_per_event", run.event_bytes, "bytes", more=True),
        measured("watches_per_user_and_shard", run.sealed.watches_per_row, "watches", more=True),
        *_rates(run),
        *_memory(run, sizes),
        *(
            measured(f"time_in_{stage}", share, "share")
            for stage, share in shares(run.sealed.spent.stages).items()
        ),
    ]


def _rates(run: Run) -> list[Measure]:
    span = (run.sealed.marks[SHARDS_WARM_UP - 1], run.sealed.marks[SHARDS_MEASURED - 1])
    per_core, per_second = per_cpu_s(*span), per_s(*span)
    ceiling, consumed = _ends(run.consumed, per_s), _ends(run.consumed, per_cpu_s)
    plain, faust = _ends(run.plain, per_cpu_s), _ends(run.faust, per_cpu_s)
    return [
        measured("events_per_s_per_core", per_core, "events/CPU-s", more=True),
        measured("events_per_s", per_second, "events/s", more=True),
        measured("consumer_events_per_s", ceiling, "events/s", more=True),
        measured("consumer_events_per_s_per_core", consumed, "events/CPU-s", more=True),
        measured_over(
            "share_of_consumer_ceiling", per_second / ceiling, "the same consumer, doing nothing"
        ),
        measured("faust_events_per_s_per_core", faust, "events/CPU-s", more=True),
        measured_over("over_faust", per_core / faust, "a Faust agent"),
        measured("plain_loop_events_per_s_per_core", plain, "events/CPU-s", more=True),
        measured_over(
            "over_plain_loop", per_core / plain, "confluent-kafka and pyarrow, no guarantees"
        ),
    ]


def _memory(run: Run, sizes: Sizes) -> list[Measure]:
    early, end = run.sealed.marks[SHARDS_EARLY - 1], run.sealed.marks[SHARDS_MEASURED - 1]
    # What a restore takes beside the histories is the same for more of them, and so is not counted.
    added = _growth(run.histories.more) - _growth(run.histories.full)
    per_user = added / (sizes.of(MORE_USERS) - sizes.of(FULL_USERS))
    many, restored = run.histories.many, sizes.of(RESTORED_USERS)
    return [
        measured("history_bytes_per_user", per_user, "bytes"),
        measured("restore_users_per_s", restored / (many[1].time_s - many[0].time_s), "users/s", more=True),
        measured("restored_history_length_mean", run.histories.mean_length, "watches", more=True),
        measured("restored_rss_mb", many[1].rss_bytes / MB, "MB"),
        # Peaks, because at a mark the next shard may be full or empty. Histories are full from the start.
        measured("rss_early_mb", early.peak_bytes / MB, "MB"),
        measured("rss_growth_mb", (end.peak_bytes - early.peak_bytes) / MB, "MB"),
    ]  # fmt: skip


def _ends(marks: Sequence[Mark], rate: Callable[[Mark, Mark], float]) -> float:
    return rate(marks[0], marks[-1])


def _growth(marks: tuple[Mark, Mark]) -> int:
    return marks[1].rss_bytes - marks[0].rss_bytes


@contextmanager
def _broker(folder: Path) -> Iterator[Settings]:
    folder.mkdir()
    jars_dir = load_settings().kafka.jars_dir
    with start_broker(folder / "broker", jars_dir=jars_dir, timeout_s=180) as broker:
        yield with_values(
            Settings(var_dir=folder / "var"),
            kafka__bootstrap_servers=broker.bootstrap_servers,
            kafka__partitions=PARTITIONS,
            storage__root=str(folder / "store"),
            watches__history_length=HISTORY_LENGTH,
        )


def _produce(settings: Settings, sizes: Sizes) -> float:
    """Give every user a full history, send the events, and return their mean size in bytes."""
    create_topics(settings.kafka)
    produce_labels(settings.kafka, sizes.of(VIDEOS))
    num_users, shard = sizes.of(USERS), sizes.of(SHARD_WATCHES)
    source = WatchSource(users=num_users, videos=sizes.of(VIDEOS), exponent=EXPONENT, seed=SEED)
    say(f"fill the histories of {num_users:,} users")
    full = full_histories(min(num_users, WRITTEN_USERS), sizes.of(VIDEOS), length=HISTORY_LENGTH)
    fill_histories(settings.kafka, full, num_users)
    count = (shard + OVERSHOOT) * (SHARDS_MEASURED + SHARDS_PROFILED)
    say(f"produce {count:,} events")
    users = source.draw_users(count)
    return produce_watches(settings.kafka, source, in_batches(users)) / count


def _seal(settings: Settings, sizes: Sizes, folder: Path) -> Sealed:
    settings = with_values(
        settings,
        watches__shard_max_rows=sizes.of(SHARD_WATCHES),
        watches__shard_max_bytes=2**40,
        watches__shard_max_age_s=TIMEOUT_S,
    )
    until = SHARDS_MEASURED + SHARDS_PROFILED
    say(f"seal {until} shards of {sizes.of(SHARD_WATCHES):,} watches")
    arguments = (folder, SHARDS_MEASURED, until)
    with measured_process(
        "tests.bench.parts.measured_sealer", arguments, settings, folder / "sealer.log"
    ) as process:
        process.wait_for((folder / PROFILE).exists, timeout_s=TIMEOUT_S, what=f"{until} shards")
    announced = announced_shards(settings.kafka)[:until]
    spent = msgspec.json.decode((folder / PROFILE).read_bytes(), type=Spent)
    marks = with_events(read_marks(folder / MARKS)[:until], announced)
    return Sealed(marks, watches_per_row(announced), spent)


def with_events(marks: Sequence[Mark], announced: Sequence[ShardSealed]) -> list[Mark]:
    """Return the marks of committed shards with the events that were sealed by then.

    Raises:
        FreshetError: an event is missing or there more, or was refused: such a run measures something else.
    """
    if faults := verify_shards(announced):
        raise FreshetError(f"the shards are not what was measured: {faults[0]}")
    events, found = 0, []
    for mark, shard in zip(marks, announced, strict=True):
        if shard.dead_letters:
            raise FreshetError(f"{shard.shard_id} has {shard.dead_letters} dead letters")
        events += shard.watches + shard.duplicates
        found.append(msgspec.structs.replace(mark, events=events))
    return found


def watches_per_row(announced: Sequence[ShardSealed]) -> float:
    """Return how many watches a user with any has in a shard, on average."""
    return sum(shard.watches for shard in announced) / sum(shard.rows for shard in announced)


def _loop(
    loop: str, settings: Settings, folder: Path, events: int, sizes: Sizes | None = None
) -> list[Mark]:
    """Return marks of a reading loop over the first `events`; with sizes, it writes a file for every peer's shard."""
    say(f"{loop}: {events:,} events")
    own = folder / loop
    own.mkdir()
    every = sizes.of(PEER_SHARD_EVENTS) if sizes else max(1, events // 10)
    marks = own / MARKS
    with measured_process(
        "tests.bench.parts.reading_loops", (loop, own, every), settings, own / "log"
    ) as process:
        process.wait_for(
            lambda: any(mark.events >= events for mark in read_marks(marks)),
            timeout_s=TIMEOUT_S,
            what=f"{events} events",
        )
    return read_marks(marks)


def _faust(settings: Settings, sizes: Sizes, folder: Path) -> list[Mark]:
    say(f"Faust: {sizes.faust_s:.0f} s")
    own = folder / "faust"
    own.mkdir()
    arguments = (own, sizes.of(PEER_SHARD_EVENTS))

    def is_over() -> bool:
        found = read_marks(own / MARKS)
        return len(found) > 1 and found[-1].time_s - found[0].time_s >= sizes.faust_s

    with measured_process(
        "tests.bench.parts.faust_sealer", arguments, settings, own / "log"
    ) as process:
        process.wait_for(is_over, timeout_s=5 * sizes.faust_s + 60, what="shards by Faust")
    return read_marks(own / MARKS)


def _say_where_time_goes(spent: Spent) -> None:
    say("where the sealer's two threads are, by cProfile:")
    for stage, share in sorted(shares(spent.stages).items(), key=lambda item: -item[1]):
        say(f"  {share:6.1%}  {stage}")
    total = sum(spent.stages.values()) or 1.0
    for name, seconds in spent.functions:
        say(f"  {seconds / total:6.1%}  {name}")


def _disk_bytes(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())
