"""What callers get is counted by the template of the route, however it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from fastapi import APIRouter, FastAPI, HTTPException
from httpx import ASGITransport, AsyncClient
from prometheus_client import REGISTRY
from starlette.types import Message

from serve.response_counts import ResponseCounts

ROUTE = "/v1/videos/{video_id}"


@pytest.fixture
def app() -> FastAPI:
    app, router = FastAPI(), APIRouter()

    @router.get(ROUTE.removeprefix("/v1"))
    async def video(video_id: str) -> str:
        if video_id == "busy":
            raise HTTPException(429)
        if video_id == "broken":
            raise ZeroDivisionError
        if video_id == "slow":
            await asyncio.Event().wait()
        return video_id

    app.include_router(router, prefix="/v1")
    app.add_middleware(ResponseCounts, routes=(ROUTE,))
    return app


@pytest.fixture
def counted() -> Callable[..., float]:
    """How much a count has grown since the test began."""

    def value(route: str, code: str) -> float:
        labels = {"route": route, "code": code}
        return REGISTRY.get_sample_value("freshet_ingress_responses_total", labels) or 0.0

    codes = ("200", "429", "500", "gone", "404")
    before = {(route, code): value(route, code) for route in (ROUTE, "other") for code in codes}
    return lambda route, code: value(route, code) - before[route, code]


@pytest.mark.parametrize(
    ("path", "route", "code"),
    [
        ("/v1/videos/v-1", ROUTE, "200"),
        ("/v1/videos/busy", ROUTE, "429"),
        ("/v1/videos/broken", ROUTE, "500"),
        ("/elsewhere/v-1", "other", "404"),
    ],
)
async def test_answer_is_counted_once(
    app: FastAPI, counted: Callable[..., float], path: str, route: str, code: str
) -> None:
    transport = ASGITransport(app, raise_app_exceptions=False)
    async with AsyncClient(transport=transport, base_url="http://freshet") as client:
        assert (await client.get(path)).status_code == int(code)
    assert counted(route, code) == 1


async def test_caller_that_goes_away_is_counted_as_gone(
    app: FastAPI, counted: Callable[..., float]
) -> None:
    async def receive() -> Message:
        return {"type": "http.request"}

    async def send(message: Message) -> None:
        raise AssertionError(message)

    scope = {
        "type": "http", "method": "GET", "path": "/v1/videos/slow", "headers": [], "query_string": b"",
    }  # fmt: skip
    call = asyncio.ensure_future(app(scope, receive, send))
    await asyncio.sleep(0.05)
    call.cancel()
    await asyncio.wait({call})
    assert counted(ROUTE, "gone") == 1
    assert counted(ROUTE, "200") == 0
