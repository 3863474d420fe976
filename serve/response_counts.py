"""Counts what callers get, where they get it: a request that no replica answers is in no replica's figures.

Knows nothing of what is asked.
"""

from __future__ import annotations

import time

from starlette.routing import compile_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from infra import metrics

OTHER = "other"
GONE, FAILED = "gone", "500"
ANSWERS = ("200", "429", "500", "503")


class ResponseCounts:
    """Counts and times every answer of an app by the template of its route: paths have ids in them."""

    def __init__(self, app: ASGIApp, *, routes: tuple[str, ...]) -> None:
        """Tell these templates apart, and begin with zeros for what objectives are made of."""
        self._app = app
        # By ourselves: of a router within an app, the matched route does not know its prefix.
        self._routes = [(compile_path(route)[0], route) for route in routes]
        for route in routes:
            for code in ANSWERS:
                metrics.RESPONSES.labels(route, code)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the app and count how it ended: its status, 500 if it raised, or that the caller did not wait."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, code = time.monotonic(), GONE

        async def send_on(message: Message) -> None:
            nonlocal code
            if message["type"] == "http.response.start":
                code = str(message["status"])
            await send(message)

        try:
            await self._app(scope, receive, send_on)
        except Exception:
            code = FAILED
            raise
        finally:
            route = self._route_of(scope["path"])
            metrics.RESPONSES.labels(route, code).inc()
            if code != GONE:
                metrics.RESPONSE_SECONDS.labels(route).observe(time.monotonic() - started)

    def _route_of(self, path: str) -> str:
        return next((route for pattern, route in self._routes if pattern.match(path)), OTHER)
