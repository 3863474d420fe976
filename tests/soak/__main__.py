"""`python -m tests.soak`: cold start, `freshet up`, a fixed load and kills, then the checks; status 0 if all hold.

Everything that it starts ends with it, however it ends.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence

from rich.console import Console

from infra.errors import ConfigError
from infra.settings import Settings, load_settings
from tests.soak.options import FOLDER, SoakOptions
from tests.soak.soak import run_soak
from workers.demo_run import fresh_settings, until_stopped

FLAGS = ("minutes", "seed", "share", "uploads_per_s", "watches_per_s", "requests_per_s")
HELP = {
    "minutes": "of load",
    "seed": "of the load, and of who is killed when",
    "share": "of MovieLens that is the past",
    "uploads_per_s": "uploads in a second",
    "watches_per_s": "watches in a second",
    "requests_per_s": "requests in a second",
}


def parsed(arguments: Sequence[str] | None = None) -> SoakOptions:
    """Return the options that a command line names."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    fields = {one.name: one for one in dataclasses.fields(SoakOptions)}
    for name in FLAGS:
        default = fields[name].default
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=type(default),
            default=default,
            help=f"{HELP[name]} (%(default)s)",
        )
    found = parser.parse_args(arguments)
    try:
        return SoakOptions(**vars(found))
    except ValueError as error:
        parser.error(str(error))


def own_settings(settings: Settings) -> Settings:
    """Return settings for a run in `<var_dir>/soak`, which is emptied.

    Raises:
        ConfigError: they name a cluster, whose broker is not ours to kill.
    """
    if settings.kafka.bootstrap_servers or settings.ray.address:
        raise ConfigError(
            "a soak kills its broker and its Ray: unset FRESHET_KAFKA__BOOTSTRAP_SERVERS and FRESHET_RAY__ADDRESS"
        )
    return fresh_settings(settings, FOLDER)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a soak and return the exit status."""
    options = parsed(arguments)
    try:
        settings = own_settings(load_settings())
    except ConfigError as error:
        sys.stderr.write(f"soak: {error}\n")
        return 2
    console = Console()
    return until_stopped(lambda: run_soak(settings, options, console), settings, console)


if __name__ == "__main__":
    sys.exit(main())
