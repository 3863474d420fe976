"""The operators' commands `freshet table`: thin, as all of the command line.

Knows nothing of what is behind them; imported by the front door, so everything else is imported late.
"""

from __future__ import annotations

import os
from typing import Annotated

import typer

from infra.settings import load_settings
from workers.operations import progress_bars

table = typer.Typer(
    help="Build the offline table: what to watch after each of the most viewed videos.",
    no_args_is_help=True,
)


@table.command()
def build(
    everything: Annotated[
        bool, typer.Option("--all", help="Compute every row anew, also those that could be kept.")
    ] = False,
) -> None:
    """Build the table now, publish it, and have it served."""
    from infra.log import configure
    from infra.ray_cluster import ensure_ray
    from workers.stack import with_local_kafka
    from workers.table_build import build as build_now
    from workers.table_search import NICENESS

    settings = with_local_kafka(load_settings())
    configure("table.build", level=settings.log.level, format=settings.log.format)
    with ensure_ray(settings) as _, progress_bars() as progress:
        os.nice(NICENESS)  # not before: a Ray that starts slowly is given up
        done = build_now(settings, everything=everything, progress=progress)
    rows, rebuilt = (round(done.metrics[name]) for name in ("rows", "rows_rebuilt"))
    typer.echo(
        f"table {done.model_version}: {rows} rows, {rebuilt} of them computed, "
        f"by LRM {done.metrics['lrm_model_version']:.0f} in {done.metrics['seconds']:.1f} s"
    )


@table.command()
def run(
    now: Annotated[bool, typer.Option("--now", help="Build first, then wait.")] = False,
) -> None:
    """Have the table built every FRESHET_TABLE__INTERVAL_H hours, until SIGTERM."""
    from workers.stack import with_local_kafka
    from workers.table_schedule import run as run_schedule

    run_schedule(with_local_kafka(load_settings()), at_once=now)
