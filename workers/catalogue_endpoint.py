"""The loopback address of a catalogue worker whose Qdrant is in its own memory: Qdrant's query call, and a rebuild.

    POST <address>/collections/<name>/points/query    as Qdrant's own, for a point's id
    POST <address>/rebuild                            a line of JSON per batch, at last how many videos are in

The address is in `catalogue.json`. It ends in a secret of this start, so that what listens on a dead worker's port by
now is not taken for it, and no web page reaches it. Knows nothing of when the index changes.
"""

from __future__ import annotations

import json
import secrets
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx

from infra.errors import FreshetError, TransientError
from infra.log import get_logger
from infra.settings import Settings
from infra.storage import write_atomically
from streams.neighbours import K_MAX, address_path
from workers.catalogue_index import CatalogueIndex, url_to_ask

BODY_MAX_BYTES = 64 * 1024
IDLE_S = 60.0
CONNECT_S = 2.0
OnProgress = Callable[[int, int], None]


@contextmanager
def endpoint_running(index: CatalogueIndex, settings: Settings) -> Iterator[str]:
    """Answer from threads of its own until the context ends; yield the address, which is in its file by then."""
    secret = secrets.token_hex(16)
    server = _Server(index, settings, f"/{secret}")
    url = f"http://127.0.0.1:{server.server_port}/{secret}"
    threading.Thread(target=server.serve_forever, name="catalogue-endpoint", daemon=True).start()
    path = address_path(settings)
    write_atomically(path, json.dumps({"url": url}).encode())
    try:
        yield url
    finally:
        path.unlink(missing_ok=True)
        server.shutdown()
        server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True  # a client's idle connection must not keep the worker alive

    def __init__(self, index: CatalogueIndex, settings: Settings, prefix: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.index, self.settings, self.prefix = index, settings, prefix
        self.rebuilding = threading.Lock()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log what went wrong; that a client left before its answer came is no news."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            get_logger().exception("catalogue_answer_failed")


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"  # connections are kept
    timeout = IDLE_S

    def do_POST(self) -> None:
        """Answer one call."""
        length = self.headers.get("Content-Length", "")
        if not length.isdigit() or int(length) > BODY_MAX_BYTES:
            self.close_connection = True  # the body stays unread
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "no length, or too long a body")
            return
        body = self.rfile.read(int(length))
        path = self.path.partition("?")[0]
        parts = path.removeprefix(self.server.prefix).split("/")
        if not path.startswith(self.server.prefix):
            self._refuse(HTTPStatus.NOT_FOUND, "not an address of this worker")
        elif parts == ["", "rebuild"]:
            self._rebuild()
        elif len(parts) == 5 and (parts[1], *parts[3:]) == ("collections", "points", "query"):
            self._query(parts[2], body)
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "only queries for neighbours, and a rebuild")

    def _query(self, collection: str, body: bytes) -> None:
        try:
            point, limit = _asked(body)
        except (ValueError, KeyError, TypeError) as error:
            self._refuse(HTTPStatus.BAD_REQUEST, f"expected a point's id and a limit: {error!r}")
            return
        found = self.server.index.nearest(collection, point, limit)
        if found is None:
            self._refuse(HTTPStatus.NOT_FOUND, f"no point {point} in {collection}")
            return
        points = [each.model_dump(mode="json") for each in found]
        self._answer(HTTPStatus.OK, {"result": {"points": points}, "status": "ok", "time": 0.0})

    def _rebuild(self) -> None:
        if not self.server.rebuilding.acquire(blocking=False):
            self._refuse(HTTPStatus.CONFLICT, "it is being rebuilt already")
            return
        try:
            self.send_response(HTTPStatus.OK)
            self.send_header("Connection", "close")  # which ends the answer
            self.end_headers()
            self._write({"done": 0, "total": None})
            try:
                rebuilt = self.server.index.rebuild(
                    self.server.settings,
                    on_progress=lambda done, total: self._write({"done": done, "total": total}),
                )
                self._write({"videos": rebuilt.videos})
            except FreshetError as error:
                self._write({"error": str(error)})
        finally:
            self.server.rebuilding.release()

    def _write(self, line: dict[str, Any]) -> None:
        with suppress(OSError):  # who asked for the rebuild may leave; it goes on
            self.wfile.write(json.dumps(line).encode() + b"\n")

    def _refuse(self, status: HTTPStatus, reason: str) -> None:
        self._answer(status, {"status": {"error": reason}})

    def _answer(self, status: HTTPStatus, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        get_logger().debug("catalogue_asked", said=format % arguments)


def _asked(body: bytes) -> tuple[str, int]:
    """Return the point and the limit of a query, written as its short form or as Qdrant's client writes it."""
    request = json.loads(body)
    query, limit = request["query"], int(request["limit"])
    point = query["nearest"] if isinstance(query, dict) else query
    if not isinstance(point, str) or not 1 <= limit <= K_MAX:
        raise ValueError(f"got {str(point)[:80]!r} and {limit}, at most {K_MAX}")
    return point, limit


def ask_to_rebuild(settings: Settings, on_progress: OnProgress) -> int:
    """Let the catalogue worker of this folder rebuild its index; return how many videos are in.

    Blocks: until it is done.

    Raises:
        ConfigError: no worker has run here since one was stopped.
        TransientError: it does not answer, is at it already, or does not get through.
    """
    url = url_to_ask(settings)
    timeout = httpx.Timeout(None, connect=CONNECT_S)  # reading the topic may take its time
    said: dict[str, Any] = {}
    try:
        with httpx.stream("POST", f"{url}/rebuild", timeout=timeout, trust_env=False) as answer:
            for line in answer.iter_lines():
                said = json.loads(line)
                if said.get("total"):
                    on_progress(said["done"], said["total"])
    except (httpx.HTTPError, json.JSONDecodeError) as error:
        raise TransientError(
            f"the catalogue worker does not answer at {url}: {error}; it builds the catalogue anew when it starts"
        ) from error
    if "videos" not in said:
        raise TransientError(f"the catalogue worker did not rebuild: {said.get('error') or said}")
    return int(said["videos"])
