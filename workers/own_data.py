"""Plays files of videos and of watches into Kafka, checked whole before anything is sent; knows nothing of formats."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from infra.errors import ConfigError
from infra.settings import KafkaSettings
from streams.events import VideoUploaded, WatchEvent
from streams.replay import replay
from streams.tables import BadRow, Checked, Table, merge, open_table, refuse_bad_rows, rejected_line

Progress = Callable[[str, int, int | None], None]


@dataclass(frozen=True, kw_only=True)
class OwnData:
    """Which files are played, how their columns are mapped, and what happens to rows that are no events."""

    videos: Path | None = None
    watches: Path | None = None
    columns: str = ""
    watch_columns: str = ""
    skip_bad_rows: bool = False

    def __post_init__(self) -> None:
        for name, mapping, path in (
            ("--columns", self.columns, self.videos),
            ("--watch-columns", self.watch_columns, self.watches),
        ):
            if mapping and path is None:
                raise ConfigError(
                    f"{name} {mapping!r} maps the columns of a file that is not given"
                )

    def tables(self) -> list[Table]:
        """Return the files, opened; raises like `open_table`."""
        found = []
        if self.videos is not None:
            found.append(open_table(self.videos, VideoUploaded, self.columns))
        if self.watches is not None:
            found.append(open_table(self.watches, WatchEvent, self.watch_columns))
        return found


def play_files(
    settings: KafkaSettings,
    data: OwnData,
    *,
    events_per_s: float,
    progress: Progress = lambda what, done, total: None,
) -> Counter[str]:
    """Send the files' events by event time, videos before watches of the same time; return how many of each kind.

    Where bad rows are skipped, they are in `<file>.rejected.jsonl` on return, and counted as `rejected`.

    Delivery: as `replay`; event ids are functions of the rows, so that a second run's watches are dropped.
    Blocks: for two readings of the files, and for the schedule; `progress` is told (stage, done, total or None).

    Raises:
        ConfigError: a file, a mapping or (unless they are skipped) a row is wrong; nothing was sent.
    """
    checked = [
        (table, _check(table, skip=data.skip_bad_rows, progress=progress))
        for table in data.tables()
    ]
    total = sum(each.num_rows for _, each in checked)
    sent = replay(
        settings,
        merge(checked),
        events_per_s=events_per_s,
        on_progress=lambda counts: progress("send", counts.total(), total),
    )
    if rejected := sum(each.num_bad for _, each in checked):
        sent["rejected"] = rejected
    return sent


def rejected_file(table: Table) -> Path:
    """Return where a table's bad rows go."""
    return table.path.with_name(f"{table.path.name}.rejected.jsonl")


def _check(table: Table, *, skip: bool, progress: Progress) -> Checked:
    def on_row(done: int) -> None:
        if done % 1000 == 0:
            progress(f"check {table.path.name}", done, None)

    if not skip:
        checked = table.check(on_row=on_row)
        refuse_bad_rows(table, checked)
        return checked
    with ExitStack() as stack:
        rejected = None

        def on_bad(bad: BadRow) -> None:
            nonlocal rejected
            if rejected is None:
                rejected = stack.enter_context(rejected_file(table).open("w"))
            rejected.write(rejected_line(table, bad) + "\n")

        rejected_file(table).unlink(missing_ok=True)
        return table.check(on_bad=on_bad, on_row=on_row)
