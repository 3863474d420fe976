from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from httpx import ASGITransport, AsyncClient, Response

from infra.errors import ConfigError
from infra.settings import load_settings
from serve.api import build_api
from serve.app import refuse_open_address
from serve.body_limits import MAX_BODY_BYTES, MAX_DEPTH
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

ASK = "/v1/recommendations"
IS_JSON = {"content-type": "application/json"}


class EmptyBackend:
    """Answers everything with nothing, and remembers what it was asked."""

    def __init__(self, *, ready: bool = True) -> None:
        self.ready = ready
        self.requests: list[RecommendationRequest] = []

    async def recommend(self, request: RecommendationRequest) -> RecommendationResponse:
        self.requests.append(request)
        return RecommendationResponse(
            request_id="r", arm="lrm", model_version=1, codebook_version=1, items=()
        )

    async def rank(self, request: RankRequest) -> RankResponse:
        return RankResponse(model_version=0, codebook_version=1, scored_by="popularity", items=())

    async def explain(self, request: ExplanationRequest) -> ExplanationResponse | None:
        return None

    async def related(self, video_id: str, k: int) -> RelatedResponse | None:
        return None

    async def freshness(self) -> FreshnessResponse:
        return FreshnessResponse(written_time_ms=None)

    async def video(self, video_id: str) -> VideoState:
        return VideoState(video_id=video_id, assigned=False, servable=False)

    async def status(self) -> ReplicaStatus:
        return ReplicaStatus(
            replica="r",
            ready=self.ready,
            waiting_for=() if self.ready else ("model",),
            live_videos=0,
            histories=0,
            model_version=0,
            previous_version=0,
            codebook_version=1,
            swaps=0,
            rejected_swaps=0,
            event_time_ms=0,
        )

    async def metrics(self) -> str:
        return "freshet_serving_live_videos 0.0\n"


Client = Callable[..., AsyncClient]


@pytest.fixture
def client() -> Client:
    def make(*, ready: bool = True, api_key: str = "") -> AsyncClient:
        api = build_api(EmptyBackend(ready=ready), api_key=api_key)
        return AsyncClient(transport=ASGITransport(api), base_url="http://freshet")

    return make


def refused_fields(response: Response) -> list[str]:
    assert response.status_code == 422
    return [one["field"] for one in response.json()["detail"]]


async def test_request_without_any_field_is_answered(client: Client) -> None:
    response = await client().post(ASK, json={})
    assert response.status_code == 200
    assert response.json()["items"] == []


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"k": 0}, "k"),
        ({"k": 101}, "k"),
        ({"surface": "cinema"}, "surface"),
        ({"user_id": ""}, "user_id"),
        ({"user": {"age": -1}}, "user.age"),
        ({"colours": ["red"]}, "colours"),
        ({"exclude": {"watchd": False}}, "exclude.watchd"),
        ({"fresh": {"max_age_h": 0}}, "fresh.max_age_h"),
        ({"fresh": {}}, "fresh.max_age_h"),
        ({"history": [{"video_id": "v", "percent": -5}]}, "history.0.percent"),
        ({"history": [{"video_id": "v"}] * 101}, "history"),
        ({"intent": "x" * 513}, "intent"),
        ({"user_id": "\ud800"}, "user_id"),
        ({"\ud800": 1}, ""),
    ],
)
async def test_wrong_field_is_refused_by_name(client: Client, body: Any, field: str) -> None:
    response = await client().post(ASK, content=json.dumps(body), headers=IS_JSON)
    assert refused_fields(response) == [field]


@pytest.mark.parametrize(
    "content", [b"", b"no json", b"[" * 100_000, b"1" * 5_000, b"null", b'{"k": NaN}', b"\xff"]
)
async def test_body_that_is_no_request_is_refused(client: Client, content: bytes) -> None:
    response = await client().post(ASK, content=content, headers=IS_JSON)
    assert response.status_code in (400, 422)


async def test_body_that_declares_to_be_too_long_is_refused(client: Client) -> None:
    response = await client().post(ASK, content=b" " * (MAX_BODY_BYTES + 1))
    assert response.status_code == 413
    assert str(MAX_BODY_BYTES) in response.json()["detail"]


async def test_body_that_turns_out_too_long_is_refused(client: Client) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(9):
            yield b" " * 65_536

    response = await client().post(ASK, content=chunks())
    assert response.status_code == 413


async def test_body_that_is_nested_too_deep_is_refused(client: Client) -> None:
    nested = "[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1)
    content = f'{{"history": {nested}}}'.encode()
    response = await client().post(ASK, content=content, headers=IS_JSON)
    assert response.status_code == 422
    assert "nested" in response.json()["detail"][0]["message"]


@pytest.mark.parametrize("path", ["/v1/videos/v/related", "/v1/explanations"])
async def test_video_that_is_not_live_is_not_found(client: Client, path: str) -> None:
    api = client()
    if path.endswith("related"):
        response = await api.get(path)
    else:
        response = await api.post(path, json={"video_id": "v"})
    assert response.status_code == 404
    assert "'v' is not live" in response.json()["detail"]


async def test_key_is_asked_for_where_answers_are_given(client: Client) -> None:
    guarded = client(api_key="secret")
    assert (await guarded.post(ASK, json={})).status_code == 401
    assert (await guarded.get("/v1/status", headers={"X-API-Key": "wrong"})).status_code == 401
    assert (await guarded.post(ASK, json={}, headers={"X-API-Key": "secret"})).status_code == 200
    assert (await guarded.get("/healthz")).status_code == 200
    assert (await guarded.get("/metrics")).text.startswith("freshet_serving_live_videos")


@pytest.mark.parametrize(("ready", "status_code"), [(True, 200), (False, 503)])
async def test_readiness_is_in_the_status_code(
    client: Client, status_code: int, *, ready: bool
) -> None:
    response = await client(ready=ready).get("/readyz")
    assert response.status_code == status_code
    assert response.json()["waiting_for"] == ([] if ready else ["model"])


async def test_unknown_video_is_said_to_be_unassigned(client: Client) -> None:
    response = await client().get("/v1/videos/v-1")
    assert response.json()["assigned"] is False


async def test_surface_is_described_by_openapi(client: Client) -> None:
    response = await client().get("/openapi.json")
    paths = response.json()["paths"]
    assert {ASK, "/v1/videos/{video_id}", "/v1/status", "/readyz"} <= set(paths)


def test_open_address_without_a_key_is_refused() -> None:
    with pytest.raises(ConfigError, match="FRESHET_SERVE__API_KEY"):
        refuse_open_address(load_settings({"FRESHET_SERVE__HOST": "0.0.0.0"}).serve)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"FRESHET_SERVE__HOST": "::1"},
        {"FRESHET_SERVE__HOST": "localhost"},
        {"FRESHET_SERVE__HOST": "0.0.0.0", "FRESHET_SERVE__API_KEY": "secret"},
    ],
)
def test_loopback_or_guarded_address_is_accepted(environment: dict[str, str]) -> None:
    refuse_open_address(load_settings(environment).serve)
