"""The endpoint as `freshet serve` starts it: real broker, real Ray Serve, a tiny model; one start for all tests.

The tests run in the order of the file: the first asks before there is a model, the last stops the process.
"""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from infra.clock import now_ms
from infra.kafka.broker import LocalBroker
from infra.storage import ObjectStore
from models.lrm import WEIGHTS
from streams.catalogue import semantic_id_key
from streams.client import flush, producer, send
from streams.events import (
    LRM_MODEL_NAME,
    ImpressionsShown,
    SwapReported,
    UserHistory,
    VideoCounts,
    VideoServable,
    VideoUploaded,
)
from streams.history import Entry, user_history
from streams.topics import (
    COUNTS,
    HISTORIES,
    IMPRESSIONS,
    SEMANTIC_IDS,
    SERVABLE,
    SWAPS,
    UPLOADS,
    WATCHES,
)
from tests.integration.serving_process import REACT_S, START_S, Endpoint, new_settings, start
from tests.tiny_serving import (
    NOON_MS,
    assigned,
    publish_tiny_codebook,
    watch,
)

pytestmark = pytest.mark.integration

NUM_VIDEOS = 30
REMOVED_WITHIN_S = 5


@pytest.fixture(scope="module")
def endpoint(broker: LocalBroker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    """Thirty videos and a viewer who has watched two of them; no model yet."""
    folder = tmp_path_factory.mktemp("serving")
    settings = new_settings(broker)
    publish_tiny_codebook(ObjectStore(str(folder / "store")))
    client = producer(settings.kafka)
    for number in range(NUM_VIDEOS):
        video = assigned(number)
        key = semantic_id_key(video.video_id, 1)
        send(client, settings.kafka, SEMANTIC_IDS, key, video)
    send(client, settings.kafka, HISTORIES, "viewer", history("viewer", "v-1", "v-2"))
    flush(client)
    endpoint = start(settings, folder)
    yield endpoint
    endpoint.http.close()
    if endpoint.process.poll() is None:
        endpoint.process.terminate()
        endpoint.process.wait(START_S)


def history(user_id: str, *video_ids: str) -> UserHistory:
    entries = [
        Entry(video_id, 100, 60, NOON_MS + 1000 * position, "home")
        for position, video_id in enumerate(video_ids)
    ]
    return user_history(user_id, entries)


@pytest.fixture(scope="module")
def serving(endpoint: Endpoint) -> Endpoint:
    """With the first model."""
    endpoint.promote(endpoint.checkpoint(1))
    endpoint.until(lambda: endpoint.http.get("/readyz").status_code == 200, "readiness")
    return endpoint


def test_without_a_model_the_endpoint_is_not_ready_and_answers_what_is_popular(
    endpoint: Endpoint,
) -> None:
    endpoint.until(
        lambda: endpoint.http.get("/readyz").json()["waiting_for"] == ["model"], "catching up"
    )
    response = endpoint.http.get("/readyz")
    assert response.status_code == 503
    assert response.json()["live_videos"] == NUM_VIDEOS
    answer = endpoint.ask(user_id="somebody", k=5)
    assert [item["video_id"] for item in answer["items"]] == ["v-1", "v-2"]
    assert {item["source"] for item in answer["items"]} == {"popularity"}


def test_model_answers_with_live_videos_that_the_viewer_has_not_watched(
    serving: Endpoint,
) -> None:
    answer = serving.ask(user_id="viewer", k=100)
    assert answer["model_version"] == 1
    assert {item["source"] for item in answer["items"]} == {"lrm"}
    assert {item["video_id"] for item in answer["items"]} == {
        f"v-{number}" for number in range(NUM_VIDEOS)
    } - {"v-1", "v-2"}


def test_new_video_is_recommended_and_reported_once_as_servable(serving: Endpoint) -> None:
    appended_ms = now_ms()
    video = assigned(50, append_time_ms=appended_ms)
    for _ in range(2):  # delivered twice
        serving.publish(SEMANTIC_IDS, semantic_id_key("v-50", 1), video)
    serving.until(lambda: "v-50" in serving.ids(k=100), "the new video in an answer")
    state = serving.http.get("/v1/videos/v-50").json()
    assert (state["assigned"], state["servable"], state["semantic_id"]) == (True, True, "A2 B2 C1")
    serving.until(lambda: bool(serving.read(SERVABLE, VideoServable)), "video.servable")
    (event,) = serving.read(SERVABLE, VideoServable)
    assert (event.video_id, event.semantic_id) == ("v-50", video.semantic_id)
    assert event.upload_append_time_ms == appended_ms <= event.servable_time_ms


def test_upload_is_followed_from_its_first_record_to_its_first_watch(serving: Endpoint) -> None:
    def state(video_id: str) -> dict[str, Any]:
        return dict(serving.http.get(f"/v1/videos/{video_id}").json())

    assert state("v-60")["state"] == "unknown"
    upload = VideoUploaded(video_id="v-60", title="Title", event_time_ms=now_ms())
    serving.publish(UPLOADS, "v-60", upload)
    serving.until(lambda: state("v-60")["state"] == "uploaded", "the upload")
    serving.publish(SEMANTIC_IDS, semantic_id_key("v-60", 1), assigned(60))
    serving.until(lambda: "v-60" in serving.ids(k=100), "the new video in an answer")
    serving.until(lambda: state("v-60")["state"] == "shown", "the impression")
    counted = VideoCounts(
        video_id="v-60", surface="home", arm="lrm", window_start_ms=0, window_s=3600, views=1,
        completed_views=0, likes=0, watched_s=1.0,
    )  # fmt: skip
    serving.publish(COUNTS, "v-60", counted)
    serving.until(lambda: state("v-60")["state"] == "watched", "the watch")
    found = state("v-60")
    assert found["first_shown_time_ms"] <= found["first_watched_time_ms"]
    assert (found["first_shown_model_version"], found["codebook_version"]) == (1, 1)
    serving.publish(SEMANTIC_IDS, semantic_id_key("v-60", 1), None)
    serving.until(lambda: state("v-60")["state"] == "removed", "the removal")


def test_removed_video_is_recommended_no_more(serving: Endpoint) -> None:
    serving.publish(SEMANTIC_IDS, semantic_id_key("v-7", 1), None)
    serving.until(lambda: not serving.http.get("/v1/videos/v-7").json()["servable"], "the removal")
    assert "v-7" not in serving.ids(k=100)
    assert len(serving.ids(surface="watch_next", context_video_id="v-7", k=5)) == 5


def test_watch_counts_before_any_shard_is_sealed(serving: Endpoint) -> None:
    assert "v-3" in serving.ids(user_id="viewer", k=100)
    serving.publish(WATCHES, "viewer", watch("viewer", "v-3"))
    serving.until(lambda: "v-3" not in serving.ids(user_id="viewer", k=100), "the watch")


def test_checkpoints_are_swapped_while_requests_run_and_none_fails(serving: Endpoint) -> None:
    versions: list[int] = []
    failures: list[str] = []
    stopping = threading.Event()

    def ask_on() -> None:
        with httpx.Client(base_url=serving.http.base_url, timeout=REACT_S) as http:
            while not stopping.is_set():
                response = http.post("/v1/recommendations", json={"user_id": "viewer", "k": 5})
                if response.status_code == 200 and len(response.json()["items"]) == 5:
                    versions.append(response.json()["model_version"])
                else:
                    failures.append(response.text)
                time.sleep(0.02)

    asker = threading.Thread(target=ask_on)
    asker.start()
    try:
        serving.until(lambda: 1 in versions, "an answer of version 1")
        for version in (2, 3):
            seen = len(versions)
            other = serving.checkpoint(version + 90)
            serving.promote(other.model_copy(update={"model_name": "another"}))  # passed over
            serving.promote(serving.checkpoint(version))
            serving.until(lambda v=version: v in versions, f"an answer of version {version}")  # type: ignore[misc]
            assert len(versions) > seen
    finally:
        stopping.set()
        asker.join()
    assert failures == []
    assert versions == sorted(versions)
    assert set(versions) == {1, 2, 3}
    assert (serving.status()["model_version"], serving.status()["previous_version"]) == (3, 2)


def test_corrupt_checkpoint_is_rejected_and_the_old_one_serves_on(serving: Endpoint) -> None:
    promoted = serving.checkpoint(4)
    adapter = {"model_name": f"{LRM_MODEL_NAME}.home", "base_sha256": promoted.sha256}
    serving.promote(promoted.model_copy(update=adapter))  # waits for its base, which never comes
    path = serving.folder / "store" / promoted.path / WEIGHTS
    weights = bytearray(path.read_bytes())
    weights[len(weights) // 2] ^= 0xFF
    path.write_bytes(weights)
    serving.promote(promoted)

    def rejected() -> list[SwapReported]:
        return [one for one in serving.read(SWAPS, SwapReported) if one.outcome == "rejected"]

    serving.until(lambda: bool(rejected()), "a report of the rejection")
    (report,) = rejected()
    assert (report.model_version, report.previous_version) == (4, 3)
    assert "announced was" in report.reason
    assert serving.ask(k=5)["model_version"] == 3


def test_pointer_to_the_version_before_rolls_back(serving: Endpoint) -> None:
    before = serving.status()
    promoted = serving.checkpoint(before["previous_version"])
    serving.promote(promoted)
    serving.until(
        lambda: serving.ask(k=1)["model_version"] == promoted.model_version, "the rollback"
    )
    assert serving.status()["previous_version"] == before["model_version"]
    outcomes = Counter(one.outcome for one in serving.read(SWAPS, SwapReported))
    assert outcomes == {"succeeded": 4, "rejected": 1}


def test_answers_are_logged_as_impressions(serving: Endpoint) -> None:
    answer = serving.ask(user_id="viewer", surface="shorts", k=3)

    def logged() -> list[ImpressionsShown]:
        shown = serving.read(IMPRESSIONS, ImpressionsShown)
        return [one for one in shown if one.request_id == answer["request_id"]]

    serving.until(lambda: bool(logged()), "the impressions")
    (shown,) = logged()
    assert (shown.user_id, shown.surface, shown.arm) == ("viewer", "shorts", "lrm")
    assert [item.video_id for item in shown.items] == [item["video_id"] for item in answer["items"]]


def test_candidates_are_ranked_and_those_that_are_not_live_come_last(serving: Endpoint) -> None:
    candidates = ["v-9", "never uploaded", "v-7", "v-10", "v-9"]
    response = serving.http.post(
        "/v1/rank", json={"user_id": "viewer", "surface": "shorts", "candidates": candidates}
    )
    ranked = response.json()
    assert ranked["scored_by"] == "lrm"
    assert ranked["model_version"] == serving.status()["model_version"]
    scores = [item["score"] for item in ranked["items"] if item["live"]]
    assert scores == sorted(scores, reverse=True)
    assert len(scores) == 2
    assert [item["video_id"] for item in ranked["items"][2:]] == ["never uploaded", "v-7"]


def test_explanation_is_of_evidence_where_the_model_writes_no_english(serving: Endpoint) -> None:
    asked = {"user_id": "viewer", "video_id": "v-9"}
    answer = serving.http.post("/v1/explanations", json=asked).json()
    assert (answer["video_id"], answer["source"]) == ("v-9", "template")
    assert answer["text"].endswith(".")
    asked["video_id"] = "v-7"  # removed
    assert serving.http.post("/v1/explanations", json=asked).status_code == 404


def test_trace_tells_when_a_video_did_what(serving: Endpoint) -> None:
    promoted = serving.checkpoint(5).model_copy(
        update={"next_semantic_id_offsets": {0: 1_000, 1: 1_000}}
    )
    serving.promote(promoted)
    serving.until(lambda: "v-50" in serving.ids(k=100), "the new video in an answer")

    def trace() -> dict[str, Any]:
        found: dict[str, Any] = serving.http.get("/v1/videos/v-50").json()
        return found

    serving.until(lambda: bool(trace()["first_shown_time_ms"]), "the first impression's log")
    serving.until(lambda: trace()["learned_model_version"] == 5, "the model that read its text")
    found = trace()
    assert found["upload_append_time_ms"] <= found["servable_time_ms"]
    assert found["servable_time_ms"] <= found["first_shown_time_ms"]


def test_removed_video_is_out_of_everything_within_seconds_while_requests_run(
    serving: Endpoint,
) -> None:
    serving.publish(WATCHES, "fan", watch("fan", "v-11", minute=5))
    asks: list[tuple[str, str, dict[str, Any]]] = [
        ("POST", "/v1/recommendations", {"k": 100}),
        (
            "POST",
            "/v1/recommendations",
            {"k": 100, "user_id": "fan", "exclude": {"watched": False}},
        ),
        ("POST", "/v1/recommendations", {"k": 5, "context_video_id": "v-12"}),
        ("POST", "/v1/rank", {"candidates": ["v-11", "v-12"]}),
        ("GET", "/v1/videos/v-12/related?k=100", {}),
    ]
    answers: list[tuple[float, str, str]] = []
    stopping = threading.Event()

    def ask_on(method: str, path: str, body: dict[str, Any]) -> None:
        with httpx.Client(base_url=serving.http.base_url, timeout=REACT_S) as http:
            while not stopping.is_set():
                begun = time.monotonic()
                response = http.request(method, path, json=body if method == "POST" else None)
                if response.status_code != 429:
                    assert response.status_code == 200, response.text
                    answers.append((begun, path, _shown_in(response.json())))

    askers = [threading.Thread(target=ask_on, args=ask) for ask in asks]
    for asker in askers:
        asker.start()
    try:
        for path in {path for _, path, _ in asks}:
            serving.until(
                lambda path=path: any(
                    where == path and "v-11," in ids for _, where, ids in answers
                ),  # type: ignore[misc]
                f"the video in an answer of {path}",
            )
        removed = time.monotonic()
        serving.publish(SEMANTIC_IDS, semantic_id_key("v-11", 1), None)
        time.sleep(REMOVED_WITHIN_S + 2)
    finally:
        stopping.set()
        for asker in askers:
            asker.join()
    late = [answer for answer in answers if answer[0] > removed + REMOVED_WITHIN_S]
    assert {path for _, path, _ in late} == {path for _, path, _ in asks}
    assert [answer for answer in late if "v-11," in answer[2]] == []
    assert serving.http.get("/v1/videos/v-11/related").status_code == 404


def _shown_in(answer: dict[str, Any]) -> str:
    """Which live videos an answer names."""
    return "".join(f"{item['video_id']}," for item in answer["items"] if item.get("live", True))


def test_no_request_that_the_openapi_document_allows_or_forbids_is_a_server_error(
    serving: Endpoint,
) -> None:
    ran = subprocess.run(
        [
            Path(sys.executable).with_name("schemathesis"),
            "run",
            f"{serving.http.base_url}/openapi.json",
            "--checks=not_a_server_error,status_code_conformance,response_schema_conformance",
            "--phases=examples,coverage,fuzzing",
            "--max-examples=15",
            "--seed=0",
            "--suppress-health-check=all",
        ],
        cwd=serving.folder,  # it keeps what it finds
        capture_output=True,
        text=True,
        timeout=START_S,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-5000:] + ran.stderr[-2000:]


async def test_overload_is_answered_without_the_model_or_shed_and_is_over_by_itself(
    serving: Endpoint,
) -> None:
    watched = [{"video_id": f"v-{number}"} for number in range(20, 30)]
    heavy = {"history": watched * 2, "k": 100, "exclude": {"watched": False}}
    async with httpx.AsyncClient(
        base_url=serving.http.base_url,
        timeout=START_S,
        limits=httpx.Limits(max_connections=None),
    ) as http:
        asked = [http.post("/v1/recommendations", json=heavy) for _ in range(200)]
        responses = await asyncio.gather(*asked)
    assert {response.status_code for response in responses} <= {200, 429}
    assert all(one.headers["retry-after"] == "1" for one in responses if one.status_code == 429)
    answers = [response.json() for response in responses if response.status_code == 200]
    sources = {item["source"] for answer in answers for item in answer["items"]}
    assert sources == {"lrm", "popularity"}
    without_model = [answer for answer in answers if answer["model_version"] == 0]
    assert without_model
    assert {item["source"] for one in without_model for item in one["items"]} == {"popularity"}
    assert {item["source"] for item in serving.ask(k=3)["items"]} == {"lrm"}


def test_wrong_request_is_refused_and_metrics_are_exposed(serving: Endpoint) -> None:
    response = serving.http.post("/v1/recommendations", json={"k": 0})
    assert response.status_code == 422
    assert response.json()["detail"][0]["field"] == "k"
    assert serving.http.get("/healthz").status_code == 200
    metrics = serving.http.get("/metrics").text
    swaps = 'freshet_serving_swaps_total{replica="0",model="lrm",outcome="succeeded"}'
    assert f"{swaps} 5.0" in metrics
    assert "viewer" not in metrics


def test_sigterm_ends_the_process_and_all_that_it_started(endpoint: Endpoint) -> None:
    started = psutil.Process(endpoint.process.pid).children(recursive=True)
    assert any("raylet" in child.name() for child in started)
    endpoint.process.send_signal(signal.SIGTERM)
    assert endpoint.process.wait(START_S) == 0
    _, alive = psutil.wait_procs(started, timeout=REACT_S)
    assert alive == []
    assert not (endpoint.folder / endpoint.settings.var_dir / "serve.json").exists()
