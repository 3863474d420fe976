"""The operators' commands, `freshet sids` and `freshet dead-letters`: thin, as all of the command line.

Knows nothing of what is behind them; imported by the front door, so everything else is imported late.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from infra.settings import load_settings

sids = typer.Typer(
    help="Look at semantic IDs, and compute those of videos already there.", no_args_is_help=True
)
dead_letters = typer.Typer(
    help="Look at refused records, and send them again.", no_args_is_help=True
)

Reason = Annotated[str | None, typer.Option(help="Only this reason, such as media_unavailable.")]
Since = Annotated[str | None, typer.Option(help="Only of the last 90s, 30m, 2h or 7d.")]


@sids.command("show")
def show_video(
    video_id: Annotated[str, typer.Argument(metavar="VIDEO")],
    neighbours: Annotated[int, typer.Option(min=0, help="How many; 0 is none.")] = 5,
) -> None:
    """Where is my upload? Print a video's codes, who shares them, what is near it, and its path to its first watch."""
    from workers.stack import with_local_kafka
    from workers.video_trace import trace_video
    from workers.video_trace_shown import render_trace

    settings = with_local_kafka(load_settings())
    typer.echo(render_trace(trace_video(settings, video_id, neighbours=neighbours)))


@sids.command()
def backfill(
    from_offset: Annotated[int | None, typer.Option(min=0, help="Of every partition.")] = None,
    to_offset: Annotated[int | None, typer.Option(min=0, help="The one after the last.")] = None,
    since: Annotated[
        str | None, typer.Option(help="Uploads of the last 90s, 30m, 2h or 7d.")
    ] = None,
    catalogue: Annotated[Path | None, typer.Option(help="A file of videos instead.")] = None,
    columns: Annotated[str, typer.Option(help="Of --catalogue, as of freshet replay.")] = "",
    resume: Annotated[bool, typer.Option("--resume", help="Go on where it was stopped.")] = False,
) -> None:
    """Compute codes under the current codebook for a range of video.uploads or a catalogue file."""
    from infra.log import configure
    from infra.stopping import stop_on_signal
    from streams.ranges import parse_duration_s
    from workers.backfill_run import BackfillOptions, run_backfill
    from workers.stack import with_local_kafka

    options = BackfillOptions(
        from_offset=from_offset,
        to_offset=to_offset,
        since_s=None if since is None else parse_duration_s(since),
        catalogue=catalogue,
        columns=columns,
        resume=resume,
    )
    settings = with_local_kafka(load_settings())
    configure("backfill", level=settings.log.level, format=settings.log.format)
    stopping = stop_on_signal()
    with progress_bars() as progress:
        said = run_backfill(settings, options, stopping=stopping, progress=progress)
    typer.echo(said)


@dead_letters.command("list")
def list_dead_letters(
    topic: Annotated[str | None, typer.Argument(help="Such as video.uploads; none is all.")] = None,
    reason: Reason = None,
    since: Since = None,
    limit: Annotated[int, typer.Option(min=0, help="How many of the newest are named.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Count refused records by topic and reason, and name the newest."""
    from workers.dead_letters import Chosen, list_letters, topics_named
    from workers.dead_letters_shown import list_as_json, render_list
    from workers.stack import with_local_kafka

    chosen = Chosen(reason=reason, since_ms=_time_ago_ms(since))
    kafka = with_local_kafka(load_settings()).kafka
    listed = list_letters(kafka, topics_named(topic), chosen, limit=limit)
    typer.echo(json.dumps(list_as_json(listed), indent=2) if as_json else render_list(listed))


@dead_letters.command("show")
def show_dead_letter(
    topic: str,
    partition: Annotated[int, typer.Argument(min=0, help="Of the dead letter, as listed.")],
    offset: Annotated[int, typer.Argument(min=0, help="Of the dead letter, as listed.")],
    raw: Annotated[bool, typer.Option("--raw", help="User ids and URLs as they are.")] = False,
) -> None:
    """Print one refused record whole, with the reason."""
    from workers.dead_letters import find_letter, topics_named
    from workers.dead_letters_shown import render_letter
    from workers.stack import with_local_kafka

    kafka = with_local_kafka(load_settings()).kafka
    typer.echo(
        render_letter(find_letter(kafka, topics_named(topic)[0], partition, offset), raw=raw)
    )


@dead_letters.command("replay")
def replay_dead_letters(
    topic: str,
    reason: Reason = None,
    since: Since = None,
    partition: Annotated[int | None, typer.Option(min=0, help="Of the dead letters.")] = None,
    offset: Annotated[int | None, typer.Option(min=0, help="One letter of that partition.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be sent.")
    ] = False,
) -> None:
    """Send refused records, as they were, back to the topic that they came from."""
    from workers.dead_letters import Chosen, replay_letters, topics_named
    from workers.dead_letters_shown import render_replayed
    from workers.stack import with_local_kafka

    chosen = Chosen(reason=reason, since_ms=_time_ago_ms(since), partition=partition, offset=offset)
    kafka = with_local_kafka(load_settings()).kafka
    with progress_bars() as progress:
        done = replay_letters(
            kafka,
            topics_named(topic),
            chosen,
            dry_run=dry_run,
            on_progress=lambda read, total: progress("read", read, total),
        )
    typer.echo(render_replayed(done, dry_run=dry_run))


def _time_ago_ms(duration: str | None) -> int | None:
    from infra.clock import now_ms
    from streams.ranges import parse_duration_s

    return None if duration is None else now_ms() - round(parse_duration_s(duration) * 1000)


@contextmanager
def progress_bars() -> Iterator[Callable[[str, int, int | None], None]]:
    """Yield a function (stage, done, total) that keeps a bar per stage, on stderr."""
    from rich.console import Console
    from rich.progress import Progress, TaskID

    tasks: dict[str, TaskID] = {}
    with Progress(console=Console(stderr=True)) as bars:

        def report(stage: str, done: int, total: int | None) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done, total=total)

        yield report
