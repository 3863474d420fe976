"""A Faust app in a process of its own that meets one fault, as Faust does it and as Freshet does it.

    python -m tests.integration.faust_process FAULT SHELL FOLDER

Records are numbers. Each number that was handled becomes a line of `handled` in the folder, each that was refused a
line of `refused`. A fault happens only while there is no file `happened`, so that a restarted process has none.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faust

from infra.settings import load_settings
from streams.topics import SWAPS
from workers.faust_app import create_faust_app, handle_batches, raw_topic, run_app
from workers.in_order import handle_each

GROUP = "losses"
FAULT_AT = {"raises": 5, "raises_in_batch": 10, "hangs": 0, "undecodable": 7, "stopped": 4}


class Typed(faust.Record, serializer="json"):  # type: ignore[call-arg]
    """A record as Faust decodes it."""

    number: int


class Fault:
    """What happens to whom, once."""

    def __init__(self, name: str, folder: Path) -> None:
        self._name = name
        self._folder = folder
        self._armed = not (folder / "happened").exists()

    async def handle(self, number: int) -> None:
        """Handle a number, or let the fault happen to it."""
        if self._armed and number == FAULT_AT[self._name]:
            (self._folder / "happened").touch()
            if self._name in ("hangs", "stopped"):
                await asyncio.Event().wait()
            if self._name != "undecodable":
                raise RuntimeError(f"{number} cannot be handled now")
        self.note("handled", number)

    def note(self, file: str, number: int) -> None:
        """Write a line that survives a kill."""
        with (self._folder / file).open("a") as lines:
            lines.write(f"{number}\n")


def _number(value: bytes) -> int:
    return int(value.removeprefix(b'{"number":').removesuffix(b"}"))


def add_plain_agent(app: faust.App, name: str, fault: Fault) -> None:
    """Add the agent that Faust's documentation shows for the job."""
    settings = load_settings().kafka
    raw: Any = raw_topic(app, settings, SWAPS)
    typed: Any = app.topic(SWAPS.in_cluster(settings), value_type=Typed, partitions=1)

    async def one_by_one(stream: Any) -> None:
        async for value in stream:
            await fault.handle(_number(value))

    async def in_batches(stream: Any) -> None:
        async for values in stream.take(10, within=5):
            for value in values:
                await fault.handle(_number(value))

    async def decoded(stream: Any) -> None:
        async for record in stream:
            try:
                await fault.handle(record.number)
            except ValueError:
                fault.note("refused", record.number)

    if name == "undecodable":
        app.agent(typed)(decoded)
    elif name == "raises_in_batch":
        app.agent(raw)(in_batches)
    else:
        app.agent(raw, concurrency=2 if name == "hangs" else 1)(one_by_one)


def add_our_agent(app: faust.App, name: str, fault: Fault) -> None:
    """Add the agent as Freshet's workers are made."""

    async def handle(event: Any) -> None:
        try:
            number = _number(event.value)
        except ValueError:
            fault.note("refused", event.message.offset)
        else:
            await fault.handle(number)

    async def handle_all(events: list[Any]) -> None:
        for event in events:
            await handle(event)

    async def agent(stream: Any) -> None:
        if name == "raises_in_batch":
            await handle_batches(app, stream, handle_all, size=10, wait_s=5)
        else:
            await handle_each(app, stream, handle, in_flight=100)

    app.agent(raw_topic(app, load_settings().kafka, SWAPS))(agent)


SHELLS: dict[str, Callable[[faust.App, str, Fault], None]] = {
    "faust": add_plain_agent,
    "freshet": add_our_agent,
}


def main(name: str, shell: str, folder: Path) -> None:
    """Run until SIGTERM."""
    app = create_faust_app(load_settings(), GROUP)
    if name == "stopped":
        app.conf.stream_wait_empty = False  # as whoever is in a hurry would set it
    SHELLS[shell](app, name, Fault(name, folder))
    run_app(app)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
