"""What the real Prometheus gets to know of an endpoint with two replicas, one of which is killed."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from infra.kafka.broker import LocalBroker
from infra.storage import ObjectStore
from streams.catalogue import semantic_id_key
from streams.client import flush, producer, send
from streams.topics import SEMANTIC_IDS
from tests.integration.prometheus_process import PrometheusProcess
from tests.integration.serving_process import START_S, Endpoint, new_settings, start
from tests.prometheus_binaries import binary
from tests.tiny_serving import assigned, publish_tiny_codebook

pytestmark = pytest.mark.integration

NUM_VIDEOS, AT_ONCE = 10, 8
BOTH = {"0", "1"}


@pytest.fixture(scope="module")
def endpoint(broker: LocalBroker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    folder = tmp_path_factory.mktemp("replicas")
    settings = new_settings(broker, SERVE__REPLICAS="2")
    publish_tiny_codebook(ObjectStore(str(folder / "store")))
    client = producer(settings.kafka)
    for number in range(NUM_VIDEOS):
        video = assigned(number)
        key = semantic_id_key(video.video_id, 1)
        send(client, settings.kafka, SEMANTIC_IDS, key, video)
    flush(client)
    endpoint = start(settings, folder)
    try:
        endpoint.promote(endpoint.checkpoint(1))
        yield endpoint
    finally:
        endpoint.process.send_signal(signal.SIGTERM)
        endpoint.process.wait(START_S)


@pytest.fixture(scope="module")
def prometheus(endpoint: Endpoint) -> Iterator[PrometheusProcess]:
    folder, var = endpoint.folder / "prometheus", endpoint.folder / endpoint.settings.var_dir
    with PrometheusProcess(folder, {}, serve_json=var / "serve.json", every_s=1) as running:
        yield running


def replicas_of(prometheus: PrometheusProcess, metric: str) -> set[str]:
    return {labels.get("replica", "") for labels, value in prometheus.query(metric) if value}


def test_figures_of_both_replicas_are_told_apart_and_add_up(
    endpoint: Endpoint, prometheus: PrometheusProcess
) -> None:
    version = 'freshet_serving_model_version{model_name="lrm"}'
    endpoint.until(lambda: replicas_of(prometheus, version) == BOTH, "a model in both replicas")
    route = 'route="/v1/recommendations"'
    answered = f'freshet_serving_requests_total{{{route}, status="answered"}}'
    asked = 0

    def ask_until_both_answered() -> bool:
        nonlocal asked
        with ThreadPoolExecutor(AT_ONCE) as callers:  # one after the other, one replica may get all
            list(callers.map(lambda number: endpoint.ask(user_id=f"u{number}"), range(AT_ONCE)))
        asked += AT_ONCE
        return replicas_of(prometheus, answered) == BOTH

    endpoint.until(ask_until_both_answered, "an answer of each replica")
    endpoint.until(
        lambda: prometheus.query(f"sum({answered})") == [({}, asked)], "all requests in the figures"
    )
    assert replicas_of(prometheus, "freshet_serving_live_videos") == BOTH
    got = prometheus.query(f'freshet_ingress_responses_total{{{route}, code="200"}}')
    assert [(labels.get("replica"), value) for labels, value in got] == [(None, asked)]
    assert replicas_of(prometheus, "process_cpu_seconds_total") == BOTH | {""}
    assert prometheus.query("max(freshet_ingress_replicas_answering)") == [({}, 2)]


def test_page_is_one_that_promtool_finds_well_formed(endpoint: Endpoint) -> None:
    page = endpoint.http.get("/metrics").content
    checked = subprocess.run(
        [binary("promtool"), "check", "metrics"], input=page, capture_output=True, check=False
    )
    assert checked.returncode != 1, checked.stderr  # 3 is advice on names, of others' metrics
    assert b"freshet" not in checked.stderr, checked.stderr


def test_replica_that_is_killed_is_missed_and_its_place_is_taken(
    endpoint: Endpoint, prometheus: PrometheusProcess
) -> None:
    started = "process_start_time_seconds{replica!=''}"
    before = sorted(value for _, value in prometheus.query(started))
    actors = [
        child
        for child in psutil.Process(endpoint.process.pid).children(recursive=True)
        if "ServeReplica" in child.name() or "ServeReplica" in " ".join(child.cmdline())
    ]
    assert len(actors) == 2
    os.kill(actors[0].pid, signal.SIGKILL)
    endpoint.until(
        lambda: len(set(value for _, value in prometheus.query(started)) - set(before)) == 1,
        "a replica in its place",
    )
    endpoint.until(
        lambda: replicas_of(prometheus, "freshet_serving_live_videos") == BOTH, "both again"
    )
    known = prometheus.get("series", **{"match[]": started})
    assert {labels["replica"] for labels in known} == BOTH
    assert prometheus.query("count(up == 0)") == []


def test_rules_are_evaluated_on_what_a_running_endpoint_says(
    endpoint: Endpoint, prometheus: PrometheusProcess
) -> None:
    endpoint.ask(k=1)
    endpoint.until(
        lambda: (
            ({"slo": "requests"}, 0.0)
            in [
                ({key: value for key, value in labels.items() if key == "slo"}, ratio)
                for labels, ratio in prometheus.query("slo:errors:ratio5m")
            ]
        ),
        "the share of failed requests",
    )
    rules = prometheus.rules()
    assert rules
    assert {rule["health"] for rule in rules} == {"ok"}, rules
