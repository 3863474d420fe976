"""Refuses request bodies that are too long or too deep, before anything parses them; knows nothing of what they say."""

from __future__ import annotations

import re

from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY_BYTES = 512 * 1024  # a thousand excluded ids at their longest, and a history
MAX_DEPTH = 16  # the deepest request has four levels; parsers recurse
# Possessive, and content with the end of the text in place of a quote: never a second try, so linear for any text.
_STRINGS = re.compile(rb'"(?:[^"\\]++|\\.?)*+(?:"|\Z)', re.DOTALL)
_BRACKETS = re.compile(rb"[\[\]{}]")


class BodyLimits:
    """Reads a request's body, as far as it may go, and hands it on whole."""

    def __init__(self, app: ASGIApp, *, max_bytes: int, max_depth: int) -> None:
        self._app, self._max_bytes, self._max_depth = app, max_bytes, max_depth

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 413 or 422 in its place."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"")
        body = b""
        if not (declared.isdigit() and int(declared) > self._max_bytes):
            read = await self._read(receive)
            if read is None:
                return  # the caller has left
            body = read
        if len(body) > self._max_bytes or (declared.isdigit() and int(declared) > self._max_bytes):
            detail = f"the request's body may have {self._max_bytes} bytes at most"
            await JSONResponse({"detail": detail}, 413)(scope, receive, send)
            return
        if depth_of(body) > self._max_depth:
            wrong = {"field": "", "message": f"JSON may be nested {self._max_depth} deep at most"}
            await JSONResponse({"detail": [wrong]}, 422)(scope, receive, send)
            return
        handed_on = False

        async def whole() -> Message:
            nonlocal handed_on
            if handed_on:
                return await receive()  # such as that the caller has left
            handed_on = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, whole, send)

    async def _read(self, receive: Receive) -> bytes | None:
        """Return the body, or its beginning that is too long already; None where the caller left."""
        parts, length, more = [], 0, True
        while more and length <= self._max_bytes:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            parts.append(message.get("body", b""))
            length += len(parts[-1])
            more = message.get("more_body", False)
        return b"".join(parts)


def depth_of(body: bytes) -> int:
    """Return how deep brackets are nested in a JSON text, those in strings left out; linear, without recursion."""
    depth = deepest = 0
    for bracket in _BRACKETS.findall(_STRINGS.sub(b"", body)):
        depth += 1 if bracket in b"[{" else -1
        deepest = max(deepest, depth)
    return deepest
