"""The ingress over real Ray Serve and real HTTP, before replicas that answer as slowly as the test wants."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import httpx
import pytest
from ray import serve as ray_serve

from infra.errors import ConfigError
from serve.api import build_api
from serve.app import QUIET, listening
from serve.replicas import CancelOnDisconnect, Replicas
from serve.schemas import RecommendationRequest, RecommendationResponse
from streams.client import wait_until

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_cluster")]

REPLICAS, AT_ONCE, QUEUED = 2, 2, 4
REACT_S = 120.0


class SlowReplica:
    """Takes as long as the request's intent says; it writes down in a file what it begins, with its process id."""

    def __init__(self, log: Path) -> None:
        self._log = log

    def recommend(self, request: RecommendationRequest) -> RecommendationResponse:
        with self._log.open("a") as log:
            log.write(f"{os.getpid()} {request.user_id}\n")
        time.sleep(float(request.intent or 0))
        return RecommendationResponse(
            request_id=str(os.getpid()), arm="lrm", model_version=1, codebook_version=1, items=()
        )


class Ingress:
    def __init__(self, url: str, log: Path) -> None:
        self.url, self._log = url, log

    def client(self) -> httpx.AsyncClient:
        limits = httpx.Limits(max_connections=None)
        return httpx.AsyncClient(base_url=self.url, timeout=REACT_S, limits=limits)

    def begun(self, user_id: str) -> list[int]:
        """Return the processes that began a user's request, in that order."""
        lines = self._log.read_text().splitlines() if self._log.exists() else []
        return [
            int(pid) for pid, _, user in (line.partition(" ") for line in lines) if user == user_id
        ]

    async def until_begun(self, user_ids: Iterable[str]) -> None:
        wanted = list(user_ids)
        await asyncio.to_thread(
            wait_until,
            lambda: all(map(self.begun, wanted)),
            timeout_s=REACT_S,
            what=f"the replicas to begin {wanted}",
        )


async def ask(client: httpx.AsyncClient, user_id: str, takes_s: float = 0.0) -> httpx.Response:
    asked = {"user_id": user_id, "intent": str(takes_s)}
    return await client.post("/v1/recommendations", json=asked)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def ingress(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ingress]:
    log, port = tmp_path_factory.mktemp("ingress") / "begun", free_port()
    ray_serve.start(proxy_location="Disabled", logging_config=QUIET)
    deployment = ray_serve.deployment(
        SlowReplica,
        name="slow",
        num_replicas=REPLICAS,
        max_ongoing_requests=AT_ONCE,
        max_queued_requests=QUEUED,
        ray_actor_options={"num_cpus": 0.1},
        health_check_period_s=1,
    )
    handle = ray_serve.run(
        deployment.bind(log), name="slow", route_prefix=None, logging_config=QUIET
    )
    app = CancelOnDisconnect(build_api(Replicas(handle)))
    with listening(app, "127.0.0.1", port):
        yield Ingress(f"http://127.0.0.1:{port}", log)
    ray_serve.shutdown()


async def test_overload_is_shed_with_a_time_to_come_back_and_passes_by_itself(
    ingress: Ingress,
) -> None:
    async with ingress.client() as client:
        responses = await asyncio.gather(*(ask(client, "many", 0.5) for _ in range(40)))
        counts = Counter(response.status_code for response in responses)
        assert set(counts) == {200, 429}
        assert counts[200] >= REPLICAS * AT_ONCE
        shed = [one for one in responses if one.status_code == 429]
        assert {one.headers["retry-after"] for one in shed} == {"1"}
        assert (await ask(client, "later")).status_code == 200


async def test_request_of_a_caller_that_left_is_taken_out_of_the_queue(ingress: Ingress) -> None:
    async with ingress.client() as client:
        places = REPLICAS * AT_ONCE
        busy = [asyncio.ensure_future(ask(client, f"busy-{n}", 4)) for n in range(places)]
        await ingress.until_begun(f"busy-{n}" for n in range(places))
        leaver = asyncio.ensure_future(ask(client, "left"))
        await asyncio.sleep(0.5)
        leaver.cancel()
        assert {one.status_code for one in await asyncio.gather(*busy)} == {200}
        assert (await ask(client, "stayed")).status_code == 200
    assert ingress.begun("stayed")
    assert not ingress.begun("left")


async def test_requests_of_a_replica_that_is_killed_are_answered_by_the_other(
    ingress: Ingress,
) -> None:
    async with ingress.client() as client:
        users = [f"killed-{number}" for number in range(REPLICAS)]
        asked = [asyncio.ensure_future(ask(client, user, 2)) for user in users]
        await ingress.until_begun(users)
        (victim, *_) = ingress.begun(users[0])
        os.kill(victim, signal.SIGKILL)
        beside = [asyncio.ensure_future(ask(client, "beside")) for _ in range(4)]
        responses = await asyncio.gather(*asked, *beside)
    assert {response.status_code for response in responses} == {200}
    assert str(victim) not in {response.json()["request_id"] for response in responses}
    assert len(ingress.begun(users[0])) == 2


def test_replica_that_was_killed_has_another_in_its_place(ingress: Ingress) -> None:
    answered: set[str] = set()

    def two_answer() -> bool:
        response = httpx.post(f"{ingress.url}/v1/recommendations", json={}, timeout=REACT_S)
        answered.add(response.json()["request_id"])
        return len(answered) == REPLICAS

    wait_until(two_answer, timeout_s=REACT_S, what="answers of two replicas")


def test_address_that_is_taken_is_named_with_the_settings_that_change_it() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(ConfigError, match="FRESHET_SERVE__PORT"),
        listening(
            lambda scope, receive, send: asyncio.sleep(0), "127.0.0.1", taken.getsockname()[1]
        ),
    ):
        pass
