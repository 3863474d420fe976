"""The operators' commands `freshet shards` and `freshet users`: thin, as all of the command line.

Knows nothing of what is behind them; imported by the front door, so everything else is imported late.
"""

from __future__ import annotations

import json
from typing import Annotated

import typer

from infra.settings import load_settings
from workers.operations import progress_bars

shards = typer.Typer(
    help="Look at training shards, and prove that they are whole.", no_args_is_help=True
)
users = typer.Typer(help="Erase users.", no_args_is_help=True)


@shards.command("list")
def list_shards(
    last: Annotated[int, typer.Option(min=1, help="How many of the newest.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Name the announced shards, with the offsets they cover."""
    from workers.shard_audit import announced_shards
    from workers.shards_shown import list_as_json, render_list
    from workers.stack import with_local_kafka

    found = announced_shards(with_local_kafka(load_settings()).kafka)[-last:]
    typer.echo(json.dumps(list_as_json(found), indent=2) if as_json else render_list(found))


@shards.command("show")
def show_shard(
    shard_id: Annotated[str, typer.Argument(metavar="SHARD")],
    rows: Annotated[int, typer.Option(min=0, help="How many rows are printed.")] = 3,
) -> None:
    """Print what a shard says of itself and its first rows; user ids are hashed."""
    from infra.storage import ObjectStore
    from streams.shards import read_shard
    from workers.shard_audit import find_shard
    from workers.shards_shown import render_shard
    from workers.stack import with_local_kafka

    settings = with_local_kafka(load_settings())
    shard = find_shard(settings.kafka, shard_id)
    data = ObjectStore(settings.storage.root).get_bytes(shard.path, sha256=shard.sha256)
    typer.echo(render_shard(shard, read_shard(data), limit=rows))


@shards.command()
def verify() -> None:
    """Prove that every offset of watch.events is in exactly one row, or accounted for; exit status 1 where not."""
    from infra.storage import ObjectStore
    from workers.shard_audit import audit
    from workers.shards_shown import render_audit
    from workers.stack import with_local_kafka

    settings = with_local_kafka(load_settings())
    with progress_bars() as progress:
        found = audit(settings.kafka, ObjectStore(settings.storage.root), progress=progress)
    typer.echo(render_audit(found))
    if found.problems:
        raise typer.Exit(1)


@shards.command()
def rebuild(
    from_offset: Annotated[int | None, typer.Option(min=0, help="Of every partition.")] = None,
    to_offset: Annotated[int | None, typer.Option(min=0, help="The one after the last.")] = None,
    since: Annotated[
        str | None, typer.Option(help="Watches of the last 90s, 30m, 2h or 7d.")
    ] = None,
    name: Annotated[str, typer.Option(help="Of the new folder; none is the time.")] = "",
) -> None:
    """Make shards once more from a range of watch.events, in a folder of their own; all there is, unless told."""
    from infra.storage import ObjectStore
    from streams.ranges import parse_duration_s, range_of
    from streams.topics import WATCHES
    from workers.shard_rebuild import INDEX_FILE, rebuild_shards, rebuilt_name
    from workers.stack import with_local_kafka

    settings = with_local_kafka(load_settings())
    start, ends = range_of(
        settings.kafka,
        WATCHES,
        from_offset=from_offset,
        to_offset=to_offset,
        since_s=None if since is None else parse_duration_s(since),
    )
    store = ObjectStore(settings.storage.root)
    with progress_bars() as progress:
        done = rebuild_shards(
            settings, store, start, ends, name=name or rebuilt_name(), progress=progress
        )
    watches = sum(shard.watches for shard in done.shards)
    typer.echo(
        f"{len(done.shards)} shards, {watches} watches, in {done.folder}; {INDEX_FILE} names them"
    )


@users.command()
def erase(user_id: Annotated[str, typer.Argument(metavar="USER")]) -> None:
    """Forget a user: the history goes, and no shard sealed from now on carries what they watched before."""
    from infra.clock import now_ms
    from infra.log import hashed
    from streams.client import flush, producer, send
    from streams.events import UserErased
    from streams.topics import WATCHES
    from workers.stack import with_local_kafka

    kafka = with_local_kafka(load_settings()).kafka
    client = producer(kafka)
    erased = UserErased(event_time_ms=now_ms(), user_id=user_id)
    send(client, kafka, WATCHES, user_id, erased)
    flush(client)
    typer.echo(
        f"user {hashed(user_id)} is erased once the sealer has read it; shards sealed before keep their rows"
    )
