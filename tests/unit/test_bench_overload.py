from __future__ import annotations

import dataclasses
import http.server
import json
import shutil
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import pytest

from infra.errors import FreshetError
from tests.bench import overload
from tests.bench.parts.http_answers import described, is_by_model, is_failed, latency_s
from tests.bench.parts.http_load import TOOLS, Answer, Load, vegeta
from tests.bench.parts.serving_stage import SPACE, World, request_bodies
from tests.bench.parts.sustainable import P99_MAX_S, Sustainable, find_sustainable, is_sustained
from tests.http_answer_factories import answer, answers


class Endpoint:
    """Answers as one that can do `capacity` requests a second, and remembers what it was sent."""

    def __init__(self, capacity: float) -> None:
        self.capacity, self.rates = capacity, list[float]()

    def send(self, rate_per_s: float, duration_s: float) -> list[Answer]:
        self.rates.append(rate_per_s)
        late = rate_per_s > self.capacity
        return answers(max(1, round(rate_per_s * duration_s)), 2.0 if late else 0.05)


@pytest.mark.parametrize("capacity", [0.6, 3.0, 4.0, 17.0, 300.0])
def test_sustainable_rate_is_found_within_a_tenth_below_what_the_endpoint_can(
    capacity: float,
) -> None:
    endpoint = Endpoint(capacity)
    found = find_sustainable(endpoint.send, step_s=8, hold_s=30)
    assert 0.87 * capacity <= found.rate_per_s <= capacity
    assert found.p99_s == pytest.approx(0.05)
    assert endpoint.rates[-1] == found.rate_per_s


def test_rate_that_does_not_hold_for_long_is_lowered() -> None:
    endpoint = Endpoint(100)

    def tires(rate_per_s: float, duration_s: float) -> Sequence[Answer]:
        endpoint.capacity = 100 if duration_s < 30 else 50
        return endpoint.send(rate_per_s, duration_s)

    assert 45 <= find_sustainable(tires, step_s=8, hold_s=30).rate_per_s <= 50


def test_endpoint_that_sustains_nothing_is_reported() -> None:
    with pytest.raises(FreshetError, match="too slow or too busy"):
        find_sustainable(Endpoint(0).send, step_s=8, hold_s=30)


def test_rate_is_sustained_only_if_the_model_answers_everything_and_in_time() -> None:
    good = answers(99)
    assert is_sustained([*good, answer()])
    assert not is_sustained([])
    assert not is_sustained([*good, answer(sources=("lrm", "popularity"))])
    assert not is_sustained([*good, answer(code=429)])
    assert not is_sustained([*good, answer(latency_s=3), answer(latency_s=P99_MAX_S + 1)])


def test_answers_are_told_apart_by_who_made_them() -> None:
    kinds = [
        answer(),
        answer(sources=("table",)),
        answer(sources=()),
        answer(code=429),
        answer(code=500),
        answer(code=0),
    ]
    assert [is_by_model(one) for one in kinds] == [True, False, False, False, False, False]
    assert [is_failed(one) for one in kinds] == [False, False, False, False, True, True]
    assert described(kinds).startswith(
        "6 requests: 1 by the model, 2 without it, 1 refused, 2 failed"
    )


def test_percentile_of_nothing_is_infinite() -> None:
    assert latency_s([]) == float("inf")
    assert latency_s(answers(10, 0.2)) == pytest.approx(0.2)


def overloaded(**changes: object) -> overload.Run:
    """Twice 10 requests/s for 10 s: half by the model, a quarter from the table, a quarter refused."""
    kinds = [answer(), answer(), answer(sources=("table",)), answer(code=429)]
    sent = [
        msgspec.structs.replace(kinds[at % 4], sent_s=1_000 + at / 20, latency_s=0.41)
        for at in range(200)
    ]
    run = overload.Run(
        sustainable=Sustainable(10.0, 0.1),
        overload=sent,
        overload_s=10.0,
        rss_bytes=[500_000_000, *[600_000_000] * 3, 650_000_000],
        afterwards=answers(50),
    )
    return dataclasses.replace(run, **changes)  # type: ignore[arg-type]  # the caller names fields


def values(run: overload.Run) -> dict[str, float]:
    return {each.measure: each.value for each in overload.measures(run)}


def test_goodput_counts_what_the_model_answered_before_the_overload_ended() -> None:
    found = values(overloaded())
    # The last four tenths of a second are answered after the end.
    assert found["goodput_over_sustainable"] == pytest.approx(96 / 10 / 10)
    assert found["answered_without_model_share"] == 0.25
    assert found["refused_share"] == 0.25
    assert found["errors_5xx"] == 0
    assert found["p99_over_steady"] == pytest.approx(4.1)


def test_errors_and_lost_connections_count_as_failures() -> None:
    run = overloaded()
    broken = [*run.overload[:-2], answer(code=503), answer(code=0)]
    assert values(overloaded(overload=broken))["errors_5xx"] == 2


def test_memory_grows_from_when_it_is_warm() -> None:
    found = values(overloaded())
    assert (found["rss_mb"], found["rss_growth_mb"]) == (600, 50)


def test_recovery_ends_with_the_last_answer_that_is_not_the_models() -> None:
    late = [*answers(10)[:4], answer(0.4, sources=("popularity",)), *answers(5, from_s=0.5)]
    assert overload.recovery_s(late) == pytest.approx(0.4)
    assert overload.recovery_s(answers(10)) == 0


def test_world_is_of_distinct_semantic_ids_and_asks_for_what_is_live() -> None:
    world = World(2_000, 20)
    live = {video.video_id for video in world.videos}
    semantic_ids = [video.semantic_id for video in world.videos]
    assert len(set(semantic_ids)) == len(live) == 2_000
    assert all(
        code < size
        for semantic_id in semantic_ids
        for code, size in zip(semantic_id, SPACE.level_sizes, strict=True)
    )
    assert {video for history in world.histories.values() for video in history.video_ids} <= live
    requests = world.requests()
    assert [one["user_id"] for one in requests] == list(world.histories)
    assert {one["surface"] for one in requests} == {"home", "watch_next", "shorts"}
    assert all(one.get("context_video_id", "video-0") in live for one in requests)


class Echo(http.server.BaseHTTPRequestHandler):
    """Sends back what it is sent; every fifth time, an error."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.send_response(503 if json.loads(body)["k"] == 4 else 200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet."""


@pytest.fixture
def echo_url() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Echo) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/ask"
        server.shutdown()


@pytest.fixture
def load(echo_url: str, tmp_path: Path) -> Load:
    program = shutil.which("vegeta") or shutil.which("vegeta", path=str(TOOLS))
    if program is None:
        pytest.skip(
            "NOT RUN: Vegeta is not on PATH; `make bench NAME=overload` builds it with Go, or says what to install"
        )
    return Load(program, echo_url, request_bodies([{"k": k} for k in range(5)]), tmp_path)


def test_every_request_is_sent_in_turn_and_its_own_answer_comes_back(load: Load) -> None:
    found = load.send(50, 0.4)
    assert len(found) == 20
    assert sorted({(one.number, json.loads(one.body)["k"], one.code) for one in found}) == [
        (k, k, 503 if k == 4 else 200) for k in range(5)
    ]
    assert all(one.done_s >= one.sent_s for one in found)


def test_load_without_an_end_ends_with_its_context_and_keeps_every_answer(load: Load) -> None:
    with load.sending(100) as (found, _):
        threading.Event().wait(0.5)
        assert found == []
    assert found
    assert {one.code for one in found} == {200, 503}


def test_generator_that_cannot_be_had_is_named_with_the_way_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("tests.bench.parts.http_load.GO_FOLDER", str(tmp_path))
    with pytest.raises(FreshetError, match="go install"):
        vegeta(tmp_path / "cache")
