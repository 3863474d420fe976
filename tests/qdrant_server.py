"""A Qdrant server as far as Freshet calls one: the REST calls of its client, over the client's own engine in memory.

No server's binary comes from a package index. The calls arrive here as the real client sends them, and what is answered
is what the real client reads; how a server stores and finds is its own.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from qdrant_client import QdrantClient, models


class QdrantServer:
    """What it holds, and what it was asked."""

    def __init__(self) -> None:
        self.engine = QdrantClient(":memory:")
        self.asked: list[str] = []
        self.url = ""
        self.failing = False
        """Whether it answers everything with 503."""
        self.lock = threading.Lock()

    def answer(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        """Return the status and the result of a call."""
        self.asked.append(f"{method} {path}")
        parts = path.strip("/").split("/")
        if self.failing:
            return 503, "out of order"
        if parts == ["collections"]:
            found = self.engine.get_collections()
            return 200, found.model_dump(mode="json")
        name, call = parts[1], "/".join(parts[2:])
        exists = self.engine.collection_exists(name)
        if call == "exists":
            return 200, {"exists": exists}
        if (method, call) == ("PUT", ""):
            vectors = models.VectorParams.model_validate(body["vectors"])
            return 200, self.engine.create_collection(name, vectors_config=vectors)
        if not exists:
            return 404, f"collection {name} is not here"
        if (method, call) == ("GET", ""):
            return 200, self.engine.get_collection(name).model_dump(mode="json")
        return self._on_points(name, call, body)

    def _on_points(self, name: str, call: str, body: Any) -> tuple[int, Any]:
        done = {"operation_id": 0, "status": "completed"}
        if call == "index":
            return 200, done
        if call == "points":
            points = [models.PointStruct.model_validate(point) for point in body["points"]]
            self.engine.upsert(name, points)
            return 200, done
        if call == "points/delete":
            self.engine.delete(name, body["points"])
            return 200, done
        if call == "points/scroll":
            page, after = self.engine.scroll(
                name, limit=body["limit"], offset=body.get("offset"), with_payload=False
            )
            dumped = [point.model_dump(mode="json") for point in page]
            return 200, {"points": dumped, "next_page_offset": after}
        assert call == "points/query", call
        query = body["query"]
        point = query["nearest"] if isinstance(query, dict) else query
        if not self.engine.retrieve(name, [point]):
            return 404, f"no point {point}"
        near = self.engine.query_points(name, query=point, limit=body["limit"])
        return 200, near.model_dump(mode="json")


@contextmanager
def qdrant_running() -> Iterator[QdrantServer]:
    """Yield a server that listens on loopback until the context ends."""
    state = QdrantServer()

    class Handler(BaseHTTPRequestHandler):
        def _handle(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            with state.lock:
                status, result = state.answer(
                    self.command, self.path.partition("?")[0], json.loads(body or b"null")
                )
            said = (
                {"result": result, "status": "ok"}
                if status == 200
                else {"status": {"error": result}}
            )
            answer = json.dumps(said | {"time": 0.0}).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def do_GET(self) -> None:
            self._handle()

        def do_PUT(self) -> None:
            self._handle()

        def do_POST(self) -> None:
            self._handle()

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    state.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
