"""An HTTP server on loopback with one good clip, and every way in which a server can misbehave."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.clip_factories import Sound, Subtitles, Video, clip_bytes

CLIP = clip_bytes("mp4", Video(), Sound(), Subtitles(cues=("Hello",)))


class Handler(BaseHTTPRequestHandler):
    """Answers as its path says; the server's `seen` lists what it was asked."""

    protocol_version = "HTTP/1.1"
    server: Any

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        self.server.seen.append((self.command, self.path, dict(self.headers)))
        name = self.path.split("?")[0].rsplit("/", 1)[-1]
        status = re.match(r"status_(\d+)", name)
        if status:
            self.send(int(status[1]), b"", Location="/videos/clip.mp4")
        elif name == "flaky.mp4" and len(self.server.seen) <= 2:
            self.send(503, b"")
        elif name in ("clip.mp4", "flaky.mp4"):
            self.send_range()
        else:
            {"whole": self.send_whole, "endless": self.send_endless, "drip": self.send_drip,
             "endless_range": self.send_endless_range, "gzip": self.send_gzip,
             "cut": self.send_cut, "bucket": self.send_listing}[name.split(".")[0]]()  # fmt: skip

    def send(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_range(self) -> None:
        wanted = re.match(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if not wanted:
            self.send(200, CLIP, Accept_Ranges="bytes")
            return
        start, end = int(wanted[1]), min(int(wanted[2]) + 1, len(CLIP))
        self.send(206, CLIP[start:end], Content_Range=f"bytes {start}-{end - 1}/{len(CLIP)}")

    def send_whole(self) -> None:
        self.send(200, CLIP)

    def send_gzip(self) -> None:
        self.send(200, b"\x1f\x8b" + bytes(100), Content_Encoding="gzip")

    def send_listing(self) -> None:
        self.send(200, b"<ListBucketResult><KeyCount>0</KeyCount></ListBucketResult>")

    def send_cut(self) -> None:
        self.close_connection = True
        self.send_response(200)
        self.send_header("Content-Length", str(len(CLIP)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(CLIP[:1000])

    def send_endless(self) -> None:
        self.keep_sending(200, CLIP, pause_s=0.0)

    def send_drip(self) -> None:
        self.keep_sending(200, b"x", pause_s=0.05)

    def send_endless_range(self) -> None:
        if self.command == "HEAD":
            self.send(200, CLIP)
        else:
            self.keep_sending(206, CLIP, pause_s=0.0)

    def keep_sending(self, status: int, data: bytes, *, pause_s: float) -> None:
        self.close_connection = True
        self.send_response(status)
        self.end_headers()
        if self.command == "HEAD":
            return
        try:
            while not self.server.is_closing:
                self.wfile.write(data)
                time.sleep(pause_s)
        except OSError:
            self.server.hung_up.set()

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.seen: list[tuple[str, str, dict[str, str]]] = []
        self.hung_up = threading.Event()
        self.is_closing = False

    @property
    def root(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/videos/"

    @classmethod
    @contextmanager
    def running(cls) -> Iterator[Server]:
        """A server that answers until the context ends."""
        with cls() as server:
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            yield server
            server.is_closing = True
            server.shutdown()
            thread.join()
