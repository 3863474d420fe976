from __future__ import annotations

import asyncio
from collections.abc import Generator, Sequence
from typing import Any, cast

import pytest
from fastapi import HTTPException
from ray import ActorID
from ray.exceptions import ActorDiedError, ActorUnavailableError
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from starlette.types import Message, Receive, Scope, Send

from serve.exposition import ReplicaMetrics
from serve.replicas import DEATHS_MAX, CancelOnDisconnect, Replicas

DIED = ActorDiedError()
UNREACHABLE = ActorUnavailableError("no connection", ActorID.nil().binary())
FULL = BackPressureError(num_queued_requests=64, max_queued_requests=64)
NEVER = "never"


class Response:
    """One call's future: an outcome that is raised or returned, or no outcome ever."""

    def __init__(self, outcome: Any) -> None:
        self.outcome, self.cancelled = outcome, False

    def __await__(self) -> Generator[Any, None, Any]:
        return self._outcome().__await__()

    async def _outcome(self) -> Any:
        if self.outcome == NEVER:
            await asyncio.Event().wait()
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome

    def cancel(self) -> None:
        self.cancelled = True


class ScriptedHandle:
    """A handle whose calls have these outcomes, one after the other, and then the last one for ever."""

    def __init__(self, *outcomes: Any) -> None:
        self.page: Any = None
        self._outcomes, self.responses, self.methods = list(outcomes), list[Response](), set[str]()

    def options(self, *, method_name: str) -> ScriptedHandle:
        self.methods.add(method_name)
        return self

    def remote(self, *arguments: Any) -> Response:
        at = min(len(self.responses), len(self._outcomes) - 1)
        self.responses.append(Response(self._outcomes[at]))
        return self.responses[-1]

    def broadcast(self, method: str) -> ScriptedHandle:
        self.methods.add(method)
        return self

    async def results_async(self, **_: Any) -> Any:
        if isinstance(self.page, Exception):
            raise self.page
        return self.page


def replicas(handle: ScriptedHandle, *, deadline_s: float = 30.0) -> Replicas:
    return Replicas(cast("DeploymentHandle[Any]", handle), deadline_s=deadline_s)


@pytest.mark.parametrize(
    "lost", [[DIED], [UNREACHABLE], [DIED, UNREACHABLE, DIED], [UNREACHABLE] * 5]
)
async def test_request_whose_replica_is_lost_is_answered_by_another(
    lost: Sequence[Exception],
) -> None:
    handle = ScriptedHandle(*lost, "answered")
    answer: object = await replicas(handle).status()
    assert answer == "answered"
    assert len(handle.responses) == len(lost) + 1
    assert handle.methods == {"status"}


async def test_request_that_kills_every_replica_is_given_up_before_all_are_dead() -> None:
    handle = ScriptedHandle(DIED)
    with pytest.raises(HTTPException) as refused:
        await replicas(handle).status()
    assert refused.value.status_code == 503
    assert refused.value.headers == {"Retry-After": "1"}
    assert len(handle.responses) == DEATHS_MAX


async def test_request_beyond_the_queue_is_refused_at_once_with_a_time_to_come_back() -> None:
    handle = ScriptedHandle(FULL)
    with pytest.raises(HTTPException) as refused:
        await replicas(handle).status()
    assert (refused.value.status_code, refused.value.headers) == (429, {"Retry-After": "1"})
    assert len(handle.responses) == 1


@pytest.mark.parametrize(("outcome", "status"), [(NEVER, 429), (UNREACHABLE, 503)])
async def test_request_without_an_answer_at_its_deadline_is_refused_by_who_lives(
    outcome: Any, status: int
) -> None:
    handle = ScriptedHandle(outcome)
    with pytest.raises(HTTPException) as refused:
        await replicas(handle, deadline_s=0.05).status()
    assert refused.value.status_code == status
    assert handle.responses[-1].cancelled is (outcome == NEVER)


async def test_bug_in_a_replica_is_not_tried_again() -> None:
    handle = ScriptedHandle(ZeroDivisionError("a bug"))
    with pytest.raises(ZeroDivisionError):
        await replicas(handle).status()
    assert len(handle.responses) == 1


class Caller:
    """An HTTP caller who sends a body in two parts, and goes away when told to."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.gone = asyncio.Event()
        self._parts = [
            {"type": "http.request", "body": b"a", "more_body": True},
            {"type": "http.request", "body": b"b", "more_body": False},
        ]

    async def receive(self) -> Message:
        if self._parts:
            return self._parts.pop(0)
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.sent.append(message)


async def test_app_reads_the_whole_body_and_its_answer_reaches_the_caller() -> None:
    async def echo(scope: Scope, receive: Receive, send: Send) -> None:
        parts = [(await receive())["body"] for _ in range(2)]
        await send({"type": "http.response.body", "body": b"".join(parts)})

    caller = Caller()
    await CancelOnDisconnect(echo)({"type": "http"}, caller.receive, caller.send)
    assert [message["body"] for message in caller.sent] == [b"ab"]


async def test_caller_that_goes_away_takes_its_request_back() -> None:
    handle, began = ScriptedHandle(NEVER), asyncio.Event()
    backend = replicas(handle)

    async def ask(scope: Scope, receive: Receive, send: Send) -> None:
        for _ in range(2):
            await receive()
        began.set()
        await backend.status()

    caller = Caller()
    call = CancelOnDisconnect(ask)({"type": "http"}, caller.receive, caller.send)
    running = asyncio.ensure_future(call)
    await began.wait()
    caller.gone.set()
    await running
    assert handle.responses[0].cancelled
    assert caller.sent == []


async def test_error_of_the_app_reaches_the_server() -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        raise ZeroDivisionError

    caller = Caller()
    with pytest.raises(ZeroDivisionError):
        await CancelOnDisconnect(broken)({"type": "http"}, caller.receive, caller.send)


@pytest.mark.parametrize(
    ("page", "answering"),
    [
        ([ReplicaMetrics(0, "# HELP a A.\na 1.0\n"), DIED], 1),
        ([DIED, UNREACHABLE], 0),
        (TimeoutError(), 0),
        (DeploymentUnavailableError(DeploymentID("recommender")), 0),
    ],
)
async def test_metrics_are_those_of_who_answers_and_at_least_our_own(
    page: Any, answering: int
) -> None:
    handle = ScriptedHandle(NEVER)
    handle.page = page
    text = await replicas(handle).metrics()
    assert f"freshet_ingress_replicas_answering {answering}.0\n" in text
    assert text.count('a{replica="0"} 1.0\n') == answering
    assert "freshet_ingress_responses_total" in text
