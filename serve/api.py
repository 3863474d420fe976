"""The HTTP surface as a FastAPI app over whatever answers; knows nothing of Ray, models and topics."""

from __future__ import annotations

import hmac
from typing import Annotated, Any, Protocol, TypeVar

from fastapi import (
    APIRouter,
    Depends,
    FastAPI,
    HTTPException,
    Path,
    Query,
    Request,
    Response,
    params,
)
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import APIKeyHeader

from serve.body_limits import MAX_BODY_BYTES, MAX_DEPTH, BodyLimits
from serve.pages import add_page
from serve.response_counts import ResponseCounts
from serve.schemas import (
    MAX_K,
    ExplanationRequest,
    ExplanationResponse,
    FreshnessResponse,
    RankRequest,
    RankResponse,
    RecommendationRequest,
    RecommendationResponse,
    Refused,
    RelatedResponse,
    ReplicaStatus,
    VideoState,
    WrongRequest,
)

T = TypeVar("T")
VideoId = Annotated[str, Path(min_length=1, max_length=256)]
REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"model": Refused, "description": "The body is no text that could be JSON."},
    401: {"model": Refused, "description": "X-API-Key is missing or wrong."},
    413: {"model": Refused, "description": f"The body is longer than {MAX_BODY_BYTES} bytes."},
    422: {"model": WrongRequest, "description": "Something in the request is not as it should be."},
    429: {"model": Refused, "description": "Too many wait; Retry-After says when to come back."},
    503: {
        "model": Refused,
        "description": "No replica answers; Retry-After says when to come back.",
    },
}
NOT_LIVE: dict[int | str, dict[str, Any]] = {
    404: {
        "model": Refused,
        "description": "No such video is live: never uploaded, not assigned yet, or removed.",
    }
}


class Backend(Protocol):
    """Who answers; None is for a video that is not live."""

    async def recommend(self, request: RecommendationRequest) -> RecommendationResponse: ...  # noqa: D102
    async def rank(self, request: RankRequest) -> RankResponse: ...  # noqa: D102
    async def explain(self, request: ExplanationRequest) -> ExplanationResponse | None: ...  # noqa: D102
    async def related(self, video_id: str, k: int) -> RelatedResponse | None: ...  # noqa: D102
    async def video(self, video_id: str) -> VideoState: ...  # noqa: D102
    async def freshness(self) -> FreshnessResponse: ...  # noqa: D102
    async def status(self) -> ReplicaStatus: ...  # noqa: D102
    async def metrics(self) -> str: ...  # noqa: D102


def build_api(backend: Backend, *, api_key: str = "") -> FastAPI:
    """Return the app; with an `api_key`, everything under /v1 asks for it in X-API-Key, the page's figures too."""
    app = FastAPI(
        title="Freshet",
        version="1",
        summary="Recommendations that know a video from its first minute.",
        docs_url=None,
        redoc_url=None,
    )
    app.add_middleware(BodyLimits, max_bytes=MAX_BODY_BYTES, max_depth=MAX_DEPTH)
    app.add_exception_handler(RequestValidationError, _refuse)
    guarded = [_key_check(api_key)]
    app.include_router(
        _answers(backend), prefix="/v1", dependencies=guarded, responses=REFUSALS, tags=["answers"]
    )
    app.include_router(
        _looks(backend), prefix="/v1", dependencies=guarded, responses=REFUSALS, tags=["looks"]
    )
    app.include_router(_operations(backend), tags=["operations"])
    add_page(app)
    # The outermost, so that it sees what the others refuse; routes by their templates.
    app.add_middleware(ResponseCounts, routes=tuple(sorted(app.openapi()["paths"])))
    return app


def _answers(backend: Backend) -> APIRouter:
    router = APIRouter()

    @router.post("/recommendations")
    async def recommend(request: RecommendationRequest) -> RecommendationResponse:
        """Recommend up to k live videos, best first."""
        return await backend.recommend(request)

    @router.post("/rank")
    async def rank(request: RankRequest) -> RankResponse:
        """Put candidates in order for a viewer."""
        return await backend.rank(request)

    @router.post("/explanations", responses=NOT_LIVE)
    async def explain(request: ExplanationRequest) -> ExplanationResponse:
        """Say in a sentence why a video is for a viewer, and what that rests on."""
        return _live(await backend.explain(request), request.video_id)

    @router.get("/videos/{video_id}/related", responses=NOT_LIVE)
    async def related(
        video_id: VideoId, k: Annotated[int, Query(ge=1, le=MAX_K)] = 10
    ) -> RelatedResponse:
        """Say what to watch after a video, whoever watches: a lookup in the offline table where it has the video."""
        return _live(await backend.related(video_id, k), video_id)

    return router


def _looks(backend: Backend) -> APIRouter:
    router = APIRouter()

    @router.get("/videos/{video_id}")
    async def video(video_id: VideoId) -> VideoState:
        """Where is my upload? Say how far a video has come; of one that nobody knows, that its state is unknown."""
        return await backend.video(video_id)

    @router.get("/freshness")
    async def freshness() -> FreshnessResponse:
        """Return the figures of the freshness worker."""
        return await backend.freshness()

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

    @router.get("/readyz", responses={503: {"model": ReplicaStatus, "description": "Not yet."}})
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


def _live(answer: T | None, video_id: str) -> T:
    if answer is None:
        raise HTTPException(
            404, f"video {video_id!r} is not live; GET /v1/videos/ID says how far it has come"
        )
    return answer


def _key_check(api_key: str) -> params.Depends:
    async def check(given: Annotated[str | None, Depends(_KEY)]) -> None:
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
