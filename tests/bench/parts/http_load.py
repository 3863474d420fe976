"""Requests at a constant rate over HTTP, by Vegeta, whatever becomes of the ones before: an open loop.

Vegeta sends each request when its time has come, on a connection more if need be, so that a slow answer neither delays
nor spares the next one. Knows nothing of what is asked.
"""

from __future__ import annotations

import base64
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import msgspec

from infra.errors import FreshetError
from tests.bench.parts.marks import say

VEGETA = "github.com/tsenart/vegeta/v12@v12.12.0"
TOOLS = Path(__file__).parents[3] / "var" / "cache" / "tools"
GO_FOLDER = "/usr/local/go/bin"  # where Go's own archive goes, which few have on their PATH
BUILD_S, TIMEOUT_S, SPARE_S = 600.0, 60.0, 30.0
NANOSECONDS = 1e9


class Answer(msgspec.Struct, frozen=True):
    """What became of one request.

    Attributes:
        number: of the request among those that were handed in.
        sent_s: when it was sent, on the wall clock.
        latency_s: until the whole answer was there.
        code: of HTTP; 0 where there was no answer.
        body: of the answer.
        error: why there is none, or what the code says.
    """

    number: int
    sent_s: float
    latency_s: float
    code: int
    body: bytes
    error: str = ""

    @property
    def done_s(self) -> float:
        """When the whole answer was there, on the wall clock."""
        return self.sent_s + self.latency_s


class _Result(msgspec.Struct):
    """A line of `vegeta encode`."""

    code: int
    timestamp: str
    latency: int
    error: str
    url: str
    body: str | None = None


_decode = msgspec.json.Decoder(_Result).decode


def vegeta(cache: Path = TOOLS) -> str:
    """Return the load generator's path: the one on PATH, or else one that Go builds into `cache` once.

    Raises:
        FreshetError: there is neither Vegeta nor Go, or Go cannot build it.
    """
    found = shutil.which("vegeta") or shutil.which("vegeta", path=str(cache))
    if found:
        return found
    go = shutil.which("go", path=os.pathsep.join([os.environ.get("PATH", ""), GO_FOLDER]))
    if go is None:
        raise FreshetError(
            f"this benchmark needs Vegeta, an HTTP load generator, and found none: `go install {VEGETA}` builds it "
            "(Go 1.22 or later), and it must be on PATH"
        )
    say(f"building {VEGETA} into {cache}")
    cache.mkdir(parents=True, exist_ok=True)
    built = subprocess.run(
        [go, "install", VEGETA],
        env=os.environ | {"GOBIN": str(cache.resolve())},
        capture_output=True,
        text=True,
        timeout=BUILD_S,
        check=False,
    )
    if built.returncode:
        raise FreshetError(f"`go install {VEGETA}` failed: {built.stderr[-1000:]}")
    return str(cache / "vegeta")


class Load:
    """Sends the same requests, one after the other and around again, as fast as it is told."""

    def __init__(
        self,
        program: str,
        url: str,
        bodies: Sequence[bytes],
        folder: Path,
        *,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        """Send these JSON bodies to `url` by POST; `folder` is for files that Vegeta reads and writes."""
        self._program, self._folder, self._runs = program, folder, 0
        self._timeout_s = timeout_s
        self._targets = folder / "targets.json"
        lines = (
            msgspec.json.encode(
                {
                    "method": "POST",
                    # Passed over by who answers; it comes back with the answer, and says to what.
                    "url": f"{url}?request={number}",
                    "body": base64.b64encode(body).decode(),
                    "header": {"Content-Type": ["application/json"]},
                }
            )
            for number, body in enumerate(bodies)
        )
        self._targets.write_bytes(b"".join(line + b"\n" for line in lines))

    def send(self, rate_per_s: float, duration_s: float) -> list[Answer]:
        """Send at a rate for a time and return the answers in the order in which the requests were sent."""
        with self.sending(rate_per_s, duration_s=duration_s) as (answers, process):
            process.wait(duration_s + self._timeout_s + SPARE_S)
        return answers

    @contextmanager
    def sending(
        self, rate_per_s: float, *, duration_s: float = 0.0
    ) -> Iterator[tuple[list[Answer], subprocess.Popen[bytes]]]:
        """Send until the context ends (or a duration is over); the list is filled when the last answer is there.

        Raises:
            FreshetError: Vegeta failed.
        """
        answers: list[Answer] = []
        self._runs += 1
        results = self._folder / f"results-{self._runs}.bin"
        process = subprocess.Popen(
            [
                self._program, "attack", "-format=json", f"-targets={self._targets}", f"-output={results}",
                f"-rate={max(1, round(rate_per_s * 1000))}/1000s", f"-duration={round(duration_s * 1000)}ms",
                f"-timeout={round(self._timeout_s)}s",
            ]
        )  # fmt: skip
        try:
            yield answers, process
            process.send_signal(signal.SIGINT)  # it sends no more, and waits for the answers
            status = process.wait(self._timeout_s + SPARE_S)
        finally:
            process.kill()
        if status:
            raise FreshetError(f"vegeta attack ended with status {status}")
        encoded = subprocess.run(
            [self._program, "encode", "-to=json", str(results)], capture_output=True, check=True
        ).stdout
        results.unlink()
        answers.extend(sorted(map(_answer, encoded.splitlines()), key=lambda answer: answer.sent_s))


def _answer(line: bytes) -> Answer:
    result = _decode(line)
    return Answer(
        number=int(result.url.rpartition("=")[2]),
        sent_s=msgspec.convert(result.timestamp, datetime).timestamp(),
        latency_s=result.latency / NANOSECONDS,
        code=result.code,
        body=base64.b64decode(result.body or ""),
        error=result.error,
    )
