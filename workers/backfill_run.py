"""`freshet sids backfill`: which part is meant, where an interrupted run goes on, and what is said in the end."""

from __future__ import annotations

import threading
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from infra.errors import ConfigError
from infra.settings import Settings
from infra.storage import sha256_of
from streams.events import VideoUploaded
from streams.ranges import Offsets, range_of
from streams.tables import open_table
from streams.topics import UPLOADS
from workers.backfill import Backfill, Backfilled, BackfillState, Progress
from workers.featurize import load_featurizer

SHOWN_FAILURES = 50


@dataclass(frozen=True, kw_only=True)
class BackfillOptions:
    """What the command was told; exactly one of a range, a catalogue and `resume`.

    Attributes:
        from_offset: first offset, of every partition.
        to_offset: the one after the last, of every partition.
        since_s: records appended in the last so many seconds.
        catalogue: a file of videos, its columns as `columns` maps them.
    """

    from_offset: int | None = None
    to_offset: int | None = None
    since_s: float | None = None
    catalogue: Path | None = None
    columns: str = ""
    resume: bool = False

    def __post_init__(self) -> None:
        by_offset = self.from_offset is not None or self.to_offset is not None
        said = (by_offset, self.since_s is not None, self.catalogue is not None, self.resume)
        if sum(said) != 1:
            raise ConfigError(
                "say what to backfill: --from-offset and --to-offset, or --since, or --catalogue, or --resume"
            )


def run_backfill(
    settings: Settings,
    options: BackfillOptions,
    *,
    stopping: threading.Event,
    progress: Progress = lambda what, done, total: None,
) -> str:
    """Backfill as told, and return what was done, for people.

    Delivery: as `Backfill.range`.
    Blocks: until all is done or `stopping` is set.

    Raises:
        ConfigError: there is no codebook, or the file or the range is none.
    """
    featurizer = load_featurizer(settings)
    with closing(Backfill(settings, featurizer, stopping=stopping, progress=progress)) as run:
        reached = _run(run, settings, options, featurizer.codebook.codebook_version)
    return _report(run.done, f"codebook {featurizer.codebook.codebook_version}; {reached}")


def _run(run: Backfill, settings: Settings, options: BackfillOptions, version: int) -> str:
    """Backfill as told, and return how far that went, for people."""
    path, mapping, rows = options.catalogue, options.columns, 0
    start: Offsets = {}
    ends: Offsets = {}
    if options.resume:
        state = BackfillState(settings.var_dir).load(codebook_version=version)
        if state["source"] == UPLOADS.name:
            start, ends = _from_json(state["next"]), _from_json(state["ends"])
        else:
            path, mapping, rows = Path(state["source"]), state["columns"], state["rows"]
            if not path.is_file() or sha256_of(path) != state["sha256"]:
                raise ConfigError(
                    f"{path} is not the file of the interrupted backfill any more: begin it anew, without --resume"
                )
    elif path is None:
        start, ends = range_of(
            settings.kafka,
            UPLOADS,
            from_offset=options.from_offset,
            to_offset=options.to_offset,
            since_s=options.since_s,
        )
    if path is None:
        reached = run.range(start, ends)
        at = " ".join(f"{partition}:{offset}" for partition, offset in reached.items())
        return f"next offsets of {UPLOADS.name} {at}"
    table = open_table(path, VideoUploaded, mapping)
    return f"{run.catalogue(table, mapping=mapping, skip_rows=rows)} rows of {path} are done"


def _from_json(offsets: dict[str, int]) -> Offsets:
    return {(UPLOADS.name, int(partition)): offset for partition, offset in offsets.items()}


def _report(done: Backfilled, reached: str) -> str:
    lines = [
        f"{done.coded} videos coded, {done.outdated} records older than another of their video, "
        f"{done.removed} videos removed; {reached}"
    ]
    lines += [f"  not coded: {count} {reason}" for reason, count in done.refused.most_common()]
    lines += [f"  {failure}" for failure in done.failures[:SHOWN_FAILURES]]
    if len(done.failures) > SHOWN_FAILURES:
        lines.append(f"  … and {len(done.failures) - SHOWN_FAILURES} more")
    if not done.finished:
        lines.append("stopped before the end; `freshet sids backfill --resume` goes on from there")
    return "\n".join(lines)
