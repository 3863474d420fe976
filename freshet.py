"""The front door: every command of Freshet; the one module that may import everything, and does so late.

A command reads the settings, hands them to a plain function and turns its errors into an exit status: 0 fine, 1 a
fault of ours, 2 something to mend in the settings or the environment.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from confluent_kafka import KafkaException

from infra.errors import ConfigError, FreshetError
from infra.settings import Settings, load_settings, with_values
from workers.catalogue_operations import catalogue
from workers.operations import dead_letters, sids
from workers.shard_operations import shards, users
from workers.table_operations import table

app = typer.Typer(
    name="freshet",
    help="From uploaded to recommended in seconds, from watched to learned in minutes.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
worker = typer.Typer(help="Run one worker process until SIGTERM.", no_args_is_help=True)
topics = typer.Typer(help="Create and list the Kafka topics.", no_args_is_help=True)
app.add_typer(worker, name="worker")
app.add_typer(topics, name="topics")
encoders = typer.Typer(help="Bring your own encoders.", no_args_is_help=True)
app.add_typer(encoders, name="encoders")
app.add_typer(sids, name="sids")
app.add_typer(catalogue, name="catalogue")
app.add_typer(dead_letters, name="dead-letters")
app.add_typer(shards, name="shards")
app.add_typer(users, name="users")
app.add_typer(table, name="table")

Share = Annotated[
    float, typer.Option(min=0.01, max=0.99, help="Share of all watches that is the earlier part.")
]


@app.command()
def demo(
    events_per_s: Annotated[float, typer.Option(min=1, help="Pace of the later part.")] = 125.0,
    share: Share = 0.8,
    requests: Annotated[
        int, typer.Option(min=1, help="Real watches before which the endpoint is asked.")
    ] = 600,
    watches: Annotated[
        int, typer.Option(min=0, help="Play only so many watches; 0 is all of them.")
    ] = 0,
    model: Annotated[str, typer.Option(help="nano, or tiny for a quick look.")] = "nano",
    closed_loop: Annotated[
        bool,
        typer.Option(
            "--closed-loop",
            help="Simulated viewers in five arms watch what they are shown; of the options above only --model counts.",
        ),
    ] = False,
    viewers: Annotated[int, typer.Option(min=1, help="Of the closed loop, in each arm.")] = 90,
    videos: Annotated[
        int, typer.Option(min=50, help="Of the closed loop: uploaded before it begins.")
    ] = 800,
    hours: Annotated[float, typer.Option(min=1, help="Of the closed loop, event time.")] = 42.0,
    uploads_per_h: Annotated[float, typer.Option(min=0.1, help="In the closed loop.")] = 2.0,
    asks_per_day: Annotated[float, typer.Option(min=0.1, help="Of a viewer, on average.")] = 8.0,
    window_h: Annotated[float, typer.Option(min=0.5, help="Hours that a video is new.")] = 24.0,
    refresh_h: Annotated[float, typer.Option(min=0.5, help="Hours between refreshes.")] = 3.0,
    view_threshold: Annotated[int, typer.Option(min=1, help="Views, by all arms.")] = 5,
    started: Annotated[float, typer.Option(hidden=True)] = 0.0,
) -> None:
    """Run the whole loop on MovieLens, live, and report what was measured."""
    if closed_loop:
        from streams.simulated_world import WorldSize
        from workers.closed_loop_run import ClosedLoopOptions, run_closed_loop

        size = WorldSize(
            viewers=viewers,
            past_videos=videos,
            uploads_per_h=uploads_per_h,
            hours=hours,
            asks_per_day=asks_per_day,
        )
        loop = ClosedLoopOptions(
            size=size,
            window_h=window_h,
            refresh_h=refresh_h,
            view_threshold=view_threshold,
            model=model,
        )
        raise typer.Exit(run_closed_loop(load_settings(), loop))
    from workers.demo_run import DemoOptions, run_demo

    options = DemoOptions(
        events_per_s=events_per_s,
        share=share,
        num_requests=requests,
        num_watches=watches,
        model=model,
        started_s=started or time.time(),
    )
    raise typer.Exit(run_demo(load_settings(), options))


@app.command()
def up() -> None:
    """Start Kafka (unless settings name a cluster), Ray and every process, until Ctrl-C."""
    from infra.log import configure, get_logger
    from infra.stopping import stop_on_signal
    from infra.storage import ObjectStore
    from models.codebook import current_manifest
    from workers.stack import kafka_running, processes_running

    settings = _settings()
    configure("up", level=settings.log.level, format=settings.log.format)
    stopping = stop_on_signal()
    current_manifest(ObjectStore(settings.storage.root))  # says how to bootstrap where nobody has
    with kafka_running(settings) as running, processes_running(running) as supervisor:
        get_logger().info(
            "up", kafka=running.kafka.bootstrap_servers, logs=str(settings.var_dir / "logs")
        )
        while not stopping.wait(1.0):
            supervisor.check()


@app.command()
def bootstrap(
    share: Annotated[
        float,
        typer.Option(
            min=0.01,
            max=0.99,
            help="What is learned from: the earliest watches, or with --codebook-only the earliest videos.",
        ),
    ] = 0.8,
    model: Annotated[
        str, typer.Option(help="Of a base model nano: nano, or tiny for a quick look.")
    ] = "nano",
    base_model: Annotated[
        str,
        typer.Option(help="nano, smollm2-135m or a folder; empty is FRESHET_TRAINING__BASE_MODEL."),
    ] = "",
    quantizer: Annotated[
        str, typer.Option(help="rqvae, or rkmeans for residual k-means.")
    ] = "rqvae",
    levels: Annotated[int, typer.Option(help="Codes in a semantic ID: 3, 5 or 8.")] = 3,
    clusters: Annotated[
        int, typer.Option(min=0, help="Flat k-means clusters beside the codes; 0 is the default.")
    ] = 0,
    co_watching: Annotated[
        bool,
        typer.Option("--co-watching", help="Let rqvae draw together what is watched together."),
    ] = False,
    data: Annotated[str, typer.Option(help="movielens, beauty or youtube.")] = "movielens",
    codebook_only: Annotated[
        bool,
        typer.Option(
            "--codebook-only",
            help="No models, no semantic IDs, no Kafka. Workers take it up when they start.",
        ),
    ] = False,
    if_missing: Annotated[
        bool, typer.Option("--if-missing", help="Do nothing where a codebook and an LRM are.")
    ] = False,
) -> None:
    """Fit the codebook, the first LRM and two-towers on the earlier part of a data set, and publish them."""
    from rich.console import Console

    from workers.bootstrap_run import BootstrapOptions, run_bootstrap

    options = BootstrapOptions(
        data=data,
        share=share,
        quantizer=quantizer,
        num_levels=levels,
        num_clusters=clusters,
        co_watching=co_watching,
        codebook_only=codebook_only,
        if_missing=if_missing,
        model=model,
    )
    settings = _settings()
    if base_model:
        settings = with_values(settings, training__base_model=base_model)
    run_bootstrap(settings, options, Console())


@app.command()
def replay(
    events_per_s: Annotated[
        float, typer.Option(min=0.1, help="Pace, in event-time order.")
    ] = 100.0,
    share: Share = 0.8,
    videos: Annotated[
        Path | None, typer.Option(help="A CSV, JSONL or Parquet file of videos instead.")
    ] = None,
    watches: Annotated[Path | None, typer.Option(help="The same of watches.")] = None,
    columns: Annotated[
        str, typer.Option(help="Of --videos, such as title=name,video_id=sku.")
    ] = "",
    watch_columns: Annotated[
        str, typer.Option(help="Of --watches, such as event_time_ms=at:s,surface:=home.")
    ] = "",
    skip_bad_rows: Annotated[
        bool, typer.Option("--skip-bad-rows", help="Send the others; FILE.rejected.jsonl says why.")
    ] = False,
) -> None:
    """Play the later part of MovieLens, or your own files, into Kafka: uploads, updates and watches."""
    from streams.movielens import load_timeline
    from streams.replay import replay as play
    from streams.timeline import split
    from workers.operations import progress_bars
    from workers.own_data import OwnData, play_files
    from workers.stack import with_local_kafka

    data = OwnData(
        videos=videos,
        watches=watches,
        columns=columns,
        watch_columns=watch_columns,
        skip_bad_rows=skip_bad_rows,
    )
    settings = with_local_kafka(_settings())
    with progress_bars() as progress:
        if videos or watches:
            sent = play_files(settings.kafka, data, events_per_s=events_per_s, progress=progress)
        else:
            _, later = split(load_timeline(), share)
            sent = play(
                settings.kafka,
                later.events,
                events_per_s=events_per_s,
                on_progress=lambda counts: progress("send", counts.total(), len(later.events)),
            )
    _say(", ".join(f"{count} {kind}" for kind, count in sorted(sent.items())))


@app.command()
def status() -> None:
    """Print what the topics, the checkpoints and the endpoint say right now, as JSON."""
    from infra.log import configure
    from workers.stack import with_local_kafka
    from workers.status import status as read

    settings = _settings()
    configure("status", level=settings.log.level, format=settings.log.format)  # to stderr
    _say(json.dumps(read(with_local_kafka(settings)), indent=2))


@app.command()
def schema() -> None:
    """Print the AsyncAPI 3 document of all topics and events."""
    from streams.asyncapi import as_json

    _say(as_json(_settings().kafka).rstrip())


@app.command()
def doctor(
    settings: Annotated[
        bool, typer.Option("--settings", help="Print every setting as a table.")
    ] = False,
) -> None:
    """Check this machine and its settings, and say what is missing and the way out."""
    from infra.settings_table import settings_table
    from workers.doctor import diagnose

    if settings:
        _say(settings_table())
        return
    findings = diagnose(_settings())
    for finding in findings:
        _say(f"{'ok  ' if finding.ok else 'FAIL'}  {finding.what}: {finding.detail}")
    if not all(finding.ok for finding in findings):
        raise typer.Exit(2)


@app.command()
def train() -> None:
    """Run the training loop of every model: rounds on new shards and new videos."""
    from workers.stack import with_local_kafka
    from workers.training import run

    run(with_local_kafka(_settings()))


@app.command()
def serve() -> None:
    """Run the HTTP endpoint on Ray Serve."""
    from serve.app import run
    from workers.stack import with_local_kafka

    run(with_local_kafka(_settings()))


@worker.command()
def uploads() -> None:
    """Featurize uploads and assign semantic IDs."""
    from workers.stack import with_local_kafka
    from workers.uploads import run

    run(with_local_kafka(_settings()))


@worker.command("watches")
def seal_watches() -> None:
    """Seal watch events into training shards, each exactly once."""
    from workers.stack import with_local_kafka
    from workers.watches import run

    run(with_local_kafka(_settings()))


@worker.command()
def freshness() -> None:
    """Measure coverage and stage delays."""
    from workers.freshness import run
    from workers.stack import with_local_kafka

    run(with_local_kafka(_settings()))


@worker.command("catalogue")
def keep_catalogue() -> None:
    """Keep the catalogue of neighbours in Qdrant in step."""
    from workers.catalogue import run
    from workers.stack import with_local_kafka

    run(with_local_kafka(_settings()))


@topics.command("create")
def create() -> None:
    """Create every topic that is missing, with its partitions and cleanup policy."""
    from streams.admin import create_topics
    from workers.stack import with_local_kafka

    created = create_topics(with_local_kafka(_settings()).kafka)
    _say("\n".join(created) if created else "nothing to create")


@topics.command("list")
def list_topics() -> None:
    """Print every topic with its key, partitions and cleanup policy."""
    from streams.topics import ALL

    settings = _settings()
    for topic in ALL:
        _say(
            f"{topic.in_cluster(settings.kafka):32} key {topic.key:28} "
            f"{topic.num_partitions(settings.kafka)} partitions  {topic.cleanup.value}"
        )


@encoders.command("check")
def check_encoders(
    folder: Annotated[Path, typer.Argument(help="Holds encoders.json and the files it names.")],
    write: Annotated[
        bool, typer.Option("--write", help="First fill in each sha256 that is empty.")
    ] = False,
) -> None:
    """Check encoders of your own: their files, and that each graph does what is declared."""
    from models.own_encoders import load_own, try_encoder, write_hashes

    for name in write_hashes(folder) if write else ():
        _say(f"sha256 of {name} written")
    for spec in load_own(folder):
        try_encoder(folder, spec)
        _say(f"ok  {spec.modality}: {spec.name}, {spec.dimension} dimensions, sha256 {spec.sha256}")


def _settings() -> Settings:
    return load_settings()


def _say(text: str) -> None:
    typer.echo(text)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; a mistake of the user's is one sentence on stderr, never a traceback."""
    try:
        app(arguments)
    except ConfigError as error:
        typer.echo(f"freshet: {error}", err=True)
        sys.exit(2)
    except FreshetError as error:
        typer.echo(f"freshet: {error}", err=True)
        sys.exit(1)
    except KafkaException as error:
        typer.echo(
            f"freshet: Kafka: {error.args[0].str()}; does the cluster run, and do the FRESHET_KAFKA__ settings fit it?",
            err=True,
        )
        sys.exit(1)


if __name__ == "__main__":
    main()
