"""The HTTP surface as a FastAPI app over whatever answers; knows nothing of Ray, models and topics."""

from __future__ import annotations

import hmac
from typing import Annotated, Protocol

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Path, Request, Response, params
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import APIKeyHeader
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.schemas import (
    RecommendationRequest,
    RecommendationResponse,
    ReplicaStatus,
    VideoState,
)

MAX_BODY_BYTES = 512 * 1024  # a thousand excluded ids at their longest, and a history


class Backend(Protocol):
    """Who answers."""

    async def recommend(self, request: RecommendationRequest) -> RecommendationResponse: ...  # noqa: D102
    async def video(self, video_id: str) -> VideoState: ...  # noqa: D102
    async def status(self) -> ReplicaStatus: ...  # noqa: D102
    async def metrics(self) -> str: ...  # noqa: D102


def build_api(backend: Backend, *, api_key: str = "") -> FastAPI:
    """Return the app; with an `api_key`, everything under /v1 asks for it in X-API-Key."""
    app = FastAPI(title="Freshet", version="1", docs_url=None, redoc_url=None)
    app.add_middleware(BodyLimit, max_bytes=MAX_BODY_BYTES)
    app.add_exception_handler(RequestValidationError, _refuse)
    app.include_router(_answers(backend), prefix="/v1", dependencies=[_key_check(api_key)])
    app.include_router(_operations(backend))
    return app


def _answers(backend: Backend) -> APIRouter:
    router = APIRouter()

    @router.post("/recommendations")
    async def recommend(request: RecommendationRequest) -> RecommendationResponse:
        """Recommend up to k live videos, best first."""
        return await backend.recommend(request)

    @router.get("/videos/{video_id}")
    async def video(video_id: Annotated[str, Path(max_length=256)]) -> VideoState:
        """Say how far a video has come; one that nobody knows is not assigned."""
        return await backend.video(video_id)

    @router.get("/status")
    async def status() -> ReplicaStatus:
        """Say what the replica that happens to answer holds."""
        return await backend.status()

    return router


def _operations(backend: Backend) -> APIRouter:
    router = APIRouter()

    @router.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Say that requests are accepted."""
        return {"status": "ok"}

    @router.get("/readyz")
    async def readyz(response: Response) -> ReplicaStatus:
        """Answer 200 when a model is loaded and the views have caught up, else 503."""
        status = await backend.status()
        response.status_code = 200 if status.ready else 503
        return status

    @router.get("/metrics")
    async def metrics() -> Response:
        """Return Prometheus metrics."""
        return Response(await backend.metrics(), media_type="text/plain; version=0.0.4")

    return router


def _key_check(api_key: str) -> params.Depends:
    def check(given: Annotated[str | None, Depends(_KEY)]) -> None:
        if api_key and not hmac.compare_digest((given or "").encode(), api_key.encode()):
            raise HTTPException(401, "X-API-Key is missing or wrong")

    return params.Depends(check)


_KEY = APIKeyHeader(name="X-API-Key", auto_error=False)


async def _refuse(request: Request, error: Exception) -> Response:
    """Name each field that is wrong and say why; what was sent is not repeated."""
    assert isinstance(error, RequestValidationError)
    detail = [
        {"field": ".".join(str(part) for part in one["loc"][1:]), "message": one["msg"]}
        for one in error.errors()
    ]
    return JSONResponse({"detail": detail}, 422)


class BodyLimit:
    """Refuses request bodies that are too long, by what they declare and by what they turn out to be."""

    def __init__(self, app: ASGIApp, *, max_bytes: int) -> None:
        self._app, self._max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, counting what is read of it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"")
        if declared.isdigit() and int(declared) > self._max_bytes:
            await JSONResponse({"detail": self._detail()}, 413)(scope, receive, send)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_bytes:
                raise HTTPException(413, self._detail())
            return message

        await self._app(scope, counted, send)

    def _detail(self) -> str:
        return f"the request's body may have {self._max_bytes} bytes at most"
