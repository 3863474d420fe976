"""The page that Prometheus reads of the endpoint and its replicas."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from serve.exposition import ReplicaMetrics, one_page


def page_of(requests: int, label: str = "a") -> str:
    """What a process exposes: each kind of metric, with and without labels of its own."""
    registry = CollectorRegistry()
    Counter("freshet_asked", "Asked.", ["what"], registry=registry).labels(label).inc(requests)
    Counter("freshet_plain", "Plain.", registry=registry).inc(requests)
    Gauge("freshet_ingress_replicas", "Of the ingress.", registry=registry).set(requests)
    Gauge("process_memory_bytes", "Of every process.", registry=registry).set(requests)
    Histogram("freshet_waited", "Waited.", registry=registry).observe(requests)
    return generate_latest(registry).decode()


def samples(page: str) -> dict[tuple[Any, ...], float]:
    found: dict[tuple[Any, ...], float] = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            at = (sample.name, *sorted(sample.labels.items()))
            assert at not in found
            found[at] = sample.value
    return found


@given(label=st.text())
def test_every_series_of_a_replica_keeps_its_labels_and_gets_one_more(label: str) -> None:
    alone = page_of(7, label)
    together = samples(one_page("", [ReplicaMetrics(3, alone)]))
    assert together == {
        (at[0], *sorted([*at[1:], ("replica", "3")])): value
        for at, value in samples(alone).items()
        if "ingress" not in at[0]
    }


def test_each_family_is_described_once_and_each_process_speaks_for_itself() -> None:
    page = one_page(page_of(1), [ReplicaMetrics(1, page_of(3)), ReplicaMetrics(0, page_of(2))])
    assert page.count("# TYPE freshet_asked_total counter") == 1
    assert page.count("# HELP process_memory_bytes ") == 1
    found = samples(page)
    asked = {at: value for at, value in found.items() if at[0] == "freshet_asked_total"}
    assert asked == {
        ("freshet_asked_total", ("replica", "0"), ("what", "a")): 2,
        ("freshet_asked_total", ("replica", "1"), ("what", "a")): 3,
    }
    assert found["freshet_ingress_replicas",] == 1
    assert ("freshet_ingress_replicas", ("replica", "0")) not in found
    assert [found["process_memory_bytes", *label] for label in ((), (("replica", "0"),))] == [1, 2]


def test_two_replicas_in_one_place_are_shown_once() -> None:
    found = samples(one_page("", [ReplicaMetrics(0, page_of(2)), ReplicaMetrics(0, page_of(5))]))
    assert found["freshet_plain_total", ("replica", "0")] in (2, 5)


def test_endpoint_without_replicas_still_shows_its_own() -> None:
    assert set(samples(one_page(page_of(4), []))) == {
        ("freshet_ingress_replicas",),
        ("process_memory_bytes",),
    }
