"""Runs one benchmark, writes `var/bench/<name>.json` and prints it: `python -m tests.bench.run NAME`.

A benchmark is a module here with `measure() -> list[Measure]`. It reports, and never judges: no assertion on time.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Column, Table

from infra.errors import FreshetError
from infra.provenance import provenance
from infra.settings import load_settings
from infra.storage import write_atomically
from tests.bench.measure import Measure

FOLDER = Path(__file__).parent
NOT_BENCHMARKS = {"__init__", "measure", "run"}


def available() -> list[str]:
    """Return the names of all benchmarks."""
    return sorted({path.stem for path in FOLDER.glob("*.py")} - NOT_BENCHMARKS)


def run(name: str, var_dir: Path) -> Path:
    """Run the benchmark called `name` and return the report's path."""
    measures: list[Measure] = importlib.import_module(f"tests.bench.{name}").measure()
    report = provenance() | {"measures": [measure.as_json() for measure in measures]}
    path = var_dir / "bench" / f"{name}.json"
    write_atomically(path, (json.dumps(report, indent=2) + "\n").encode())
    console = Console()
    console.print(_table(name, measures))
    console.print(path)
    return path


def _table(name: str, measures: Sequence[Measure]) -> Table:
    table = Table(Column("measure", no_wrap=True), "value", "unit", "peer", "peer's value", "ratio")
    table.title = name
    has_intervals = any(measure.ci is not None for measure in measures)
    if has_intervals:
        table.add_column("95 % interval")
    for measure in measures:
        peer = (measure.peer or "", _as_text(measure.peer_value), _as_text(measure.ratio))
        interval = [" to ".join(map(_as_text, measure.ci or ()))] if has_intervals else []
        table.add_row(measure.measure, _as_text(measure.value), measure.unit, *peer, *interval)
    return table


def _as_text(value: float | None) -> str:
    return "" if value is None else f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def main(arguments: Sequence[str]) -> int:
    """Run what the command line names and return the exit status."""
    if len(arguments) != 1 or arguments[0] not in available():
        named = " ".join(arguments) or "(no name)"
        choices = ", ".join(available())
        sys.stderr.write(f"no benchmark {named}; make bench NAME=<one of: {choices}>\n")
        return 2
    try:
        run(arguments[0], load_settings().var_dir)
    except FreshetError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
