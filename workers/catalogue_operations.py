"""The operators' commands on the catalogue, `freshet catalogue`: thin, as all of the command line.

Knows nothing of what is behind them; imported by the front door, so everything else is imported late.
"""

from __future__ import annotations

from typing import Annotated

import typer

from infra.settings import load_settings

catalogue = typer.Typer(
    help="Look at the catalogue of neighbours in Qdrant, and rebuild it.", no_args_is_help=True
)


@catalogue.command()
def rebuild() -> None:
    """Make the catalogue hold what video.semantic_ids holds; it answers meanwhile."""
    from infra.log import configure
    from workers.catalogue_endpoint import ask_to_rebuild
    from workers.catalogue_index import CatalogueIndex
    from workers.operations import progress_bars
    from workers.stack import with_local_kafka

    settings = load_settings()
    configure("catalogue", level=settings.log.level, format=settings.log.format)
    with progress_bars() as progress:
        progress("index", 0, None)  # while the topic is read

        def report(done: int, total: int) -> None:
            progress("index", done, total)

        if settings.qdrant.url:
            index = CatalogueIndex(settings.qdrant)
            videos = index.rebuild(with_local_kafka(settings), on_progress=report).videos
            index.close()
        else:
            videos = ask_to_rebuild(settings, report)
    typer.echo(f"{videos} videos are in the catalogue")


@catalogue.command("neighbours")
def show_neighbours(
    video_id: Annotated[str, typer.Argument(metavar="VIDEO")],
    k: Annotated[int, typer.Option("--k", min=1, max=1000, help="How many.")] = 10,
) -> None:
    """Print the live videos nearest to a live one by content, nearest first."""
    from infra.errors import ConfigError
    from infra.printing import printable
    from infra.storage import ObjectStore
    from models.codebook import current_manifest
    from workers.catalogue_index import asked_index
    from workers.video_trace_shown import render_neighbours

    settings = load_settings()
    version = current_manifest(ObjectStore(settings.storage.root)).codebook_version
    with asked_index(settings) as index:
        found = index.neighbours(video_id, k, codebook_version=version)
    if not found:
        raise ConfigError(
            f"nothing is near {video_id!r} under codebook {version}: `freshet sids show` says whether it is live"
        )
    typer.echo(printable("\n".join(render_neighbours(found))))
