"""The replicas as the ingress sees them: one that dies with a request in hand leaves it to another; none waits forever.

what happens                          what the caller gets
a replica dies, or cannot be reached  the answer of another, within the deadline
too many wait                         429 at once, and when to come back
no answer within the deadline         429 where replicas live, 503 where none could be reached
the caller goes away                  nothing; its request is taken back from the replica
Prometheus asks                       the figures of all replicas that answer, and ours if none does

Knows nothing of models, topics and what is asked.
"""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import HTTPException
from ray.exceptions import ActorDiedError, RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from infra import metrics
from infra.errors import Overloaded, TransientError
from infra.log import get_logger
from serve.exposition import ReplicaMetrics, exposed, one_page
from serve.schemas import (
    ExplanationRequest,
    ExplanationResponse,
    FreshnessResponse,
    RankRequest,
    RankResponse,
    RecommendationRequest,
    RecommendationResponse,
    RelatedResponse,
    ReplicaStatus,
    VideoState,
)

DEADLINE_S = 20.0
METRICS_S = 4.0  # less than Prometheus waits for a page, by the settings that come with Freshet
DEATHS_MAX = 3  # a request that has killed as many replicas is not tried on the last one
PAUSE_S, PAUSE_MAX_S = 0.02, 0.5
RETRY_AFTER = {"Retry-After": "1"}

log = get_logger()


class Replicas:
    """Hands requests to the replicas of a deployment."""

    def __init__(self, handle: DeploymentHandle, *, deadline_s: float = DEADLINE_S) -> None:
        """Answer each request within `deadline_s`, whatever becomes of it."""
        self._handle, self._deadline_s = handle, deadline_s
        self._methods: dict[str, DeploymentHandle] = {}

    async def recommend(self, request: RecommendationRequest) -> RecommendationResponse:
        """Have a request answered."""
        answer: RecommendationResponse = await self._ask("recommend", request)
        return answer

    async def rank(self, request: RankRequest) -> RankResponse:
        """Have candidates put in order."""
        answer: RankResponse = await self._ask("rank", request)
        return answer

    async def explain(self, request: ExplanationRequest) -> ExplanationResponse | None:
        """Have a video explained; None for one that is not live."""
        answer: ExplanationResponse | None = await self._ask("explain", request)
        return answer

    async def related(self, video_id: str, k: int) -> RelatedResponse | None:
        """Have a replica say what to watch after a video; None for one that is not live."""
        answer: RelatedResponse | None = await self._ask("related", video_id, k)
        return answer

    async def freshness(self) -> FreshnessResponse:
        """Have the figures of the freshness worker read."""
        figures: FreshnessResponse = await self._ask("freshness")
        return figures

    async def video(self, video_id: str) -> VideoState:
        """Have a replica say how far a video has come."""
        state: VideoState = await self._ask("video", video_id)
        return state

    async def status(self) -> ReplicaStatus:
        """Have a replica say what it holds."""
        status: ReplicaStatus = await self._ask("status")
        return status

    async def metrics(self) -> str:
        """Return the metrics of this process and of all replicas that live.

        A replica that lives and does not answer in time takes the figures of the others with it, this once; those of
        this process, by which callers' answers are judged, are always there.
        """
        found: list[ReplicaMetrics] = []
        try:
            answers = await self._handle.broadcast("metrics").results_async(
                timeout_s=METRICS_S, return_exceptions=True
            )
            found = [answer for answer in answers if isinstance(answer, ReplicaMetrics)]
        except (TimeoutError, RayActorError, RayServeException) as error:
            log.warning("replicas_not_measured", error=str(error)[:200])
        metrics.REPLICAS_ANSWERING.set(len(found))
        return one_page(exposed(), found)

    async def _ask(self, method: str, *arguments: Any) -> Any:
        """Return a replica's answer.

        Raises:
            HTTPException: 429 where replicas live and have no time, 503 where none can be reached.
        """
        lost: list[RayActorError] = []
        try:
            async with asyncio.timeout(self._deadline_s):
                return await self._ask_until_answered(method, arguments, lost)
        except (BackPressureError, Overloaded) as error:
            raise HTTPException(429, "too many requests wait", RETRY_AFTER) from error
        except TransientError as error:
            raise HTTPException(503, "no replica answers now", RETRY_AFTER) from error
        except TimeoutError as error:
            status = 503 if lost else 429
            detail = f"no answer within {self._deadline_s:.0f} s"
            raise HTTPException(status, detail, RETRY_AFTER) from error
        except (RayActorError, DeploymentUnavailableError) as error:
            log.error("request_lost", method=method, deaths=len(lost), error=str(error))
            raise HTTPException(503, "no replica answers now", RETRY_AFTER) from error

    async def _ask_until_answered(
        self, method: str, arguments: tuple[Any, ...], lost: list[RayActorError]
    ) -> Any:
        pause_s = PAUSE_S
        while True:
            try:
                return await self._answer(method, arguments)
            except RayActorError as error:
                lost.append(error)
                deaths = sum(isinstance(one, ActorDiedError) for one in lost)
                if deaths >= DEATHS_MAX:
                    raise
                log.warning("replica_lost", method=method, tries=len(lost), error=str(error)[:200])
            # The router hears of a death a moment later, and asks only those that live from then on.
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, PAUSE_MAX_S)

    async def _answer(self, method: str, arguments: tuple[Any, ...]) -> Any:
        if method not in self._methods:
            self._methods[method] = self._handle.options(method_name=method)
        response = self._methods[method].remote(*arguments)
        try:
            return await response
        except asyncio.CancelledError:
            response.cancel()
            raise


class CancelOnDisconnect:
    """Cancels the work for a caller that has gone away."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the app until it has answered, or nobody waits for the answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        messages: asyncio.Queue[Message] = asyncio.Queue(maxsize=1)
        answering = asyncio.ensure_future(self._app(scope, messages.get, send))
        listening = asyncio.ensure_future(_pass_on(receive, messages))
        try:
            await asyncio.wait({answering, listening}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            # Whoever is done first ends the other; what the app raised is raised here.
            for task in (answering, listening):
                task.cancel()
            await asyncio.wait({answering, listening})
        if not answering.cancelled():
            answering.result()


async def _pass_on(receive: Receive, messages: asyncio.Queue[Message]) -> None:
    """Hand over what the caller sends and return when it has gone away."""
    while (message := await receive())["type"] != "http.disconnect":
        await messages.put(message)
