"""The rules, alerts and dashboard: read by the real promtool, and about metrics that there are."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml
from prometheus_client.metrics import MetricWrapperBase

from infra import dashboard, metrics
from tests.prometheus_binaries import MISSING, binary
from tests.prometheus_queries import FOLDER, OF_PROCESSES, RULES, expressions, metrics_in

ROOT = Path(__file__).resolve().parents[3]
ALERT_TESTS = Path(__file__).with_name("alerts_test.yml")
ALERTS = {rule["alert"]: rule for rule in RULES if "alert" in rule}
# What Prometheus adds to each series, and the endpoint to those of its replicas.
ADDED = {"job", "instance", "replica"}


def promtool(*arguments: str | Path) -> str:
    ran = subprocess.run(
        [binary("promtool"), *arguments], cwd=FOLDER, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout[-5000:] + ran.stderr[-5000:]
    return ran.stdout


def series() -> dict[str, set[str]]:
    """The labels of each series that we expose or record."""
    found: dict[str, set[str]] = {name: set() for name in OF_PROCESSES}
    for metric in (*vars(metrics).values(), *metrics.STAGE_DELAYS.values()):
        if not isinstance(metric, MetricWrapperBase):
            continue
        (family,) = metric.describe()
        labels = set(metric._labelnames)
        if family.type == "counter":
            found[f"{family.name}_total"] = labels
        elif family.type == "histogram":
            found |= {f"{family.name}_{part}": labels for part in ("sum", "count")}
            found[f"{family.name}_bucket"] = labels | {"le"}
        else:
            found[family.name] = labels
    for rule in RULES:
        if "record" in rule:
            found[rule["record"]] = {"slo"}
    return found


def test_prometheus_reads_its_configuration_and_all_rules() -> None:
    assert f"{len(ALERTS)} rules found" in promtool("check", "config", "prometheus.yml")


def test_alerts_fire_when_they_should_and_only_then() -> None:
    assert "SUCCESS" in promtool("test", "rules", ALERT_TESTS)


@pytest.mark.parametrize("name", sorted(ALERTS))
def test_alert_is_explained_and_has_a_test_in_which_it_fires(name: str) -> None:
    alert = ALERTS[name]
    assert alert["labels"]["severity"] in ("page", "ticket")
    assert set(alert["annotations"]) == {"summary", "description", "runbook"}
    assert alert["annotations"]["runbook"] == f"RUNBOOK.md#{name.lower()}"
    assert f"\n## {name}\n" in (FOLDER / "RUNBOOK.md").read_text()
    assert f'{{alertname="{name}"' in ALERT_TESTS.read_text()


@pytest.mark.parametrize("expression", sorted(set(expressions())))
def test_every_metric_and_label_that_is_asked_for_exists(expression: str) -> None:
    known = series()
    expression = re.sub(r"\bALERTS\{[^}]*\}", "", expression)
    labels = set().union(*(known[name] for name in metrics_in(expression)), ADDED)
    for matchers in re.findall(r"\{([^}]*)\}", expression):
        assert set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers)) <= labels
    if "slo:" not in expression and metrics_in(expression):
        for grouped in re.findall(r"\bby \(([^)]*)\)", expression):
            assert {label.strip() for label in grouped.split(",")} <= labels


def test_objectives_are_borders_of_buckets() -> None:
    borders = set(re.findall(r'le="([\d.]+)"', (FOLDER / "objectives.yml").read_text()))
    assert borders == {"5.0", "60.0", "300.0"}
    assert {float(border) for border in borders} <= set(metrics.STAGE_BUCKETS_S)


def test_dashboard_is_what_its_source_says_and_its_queries_parse(tmp_path: Path) -> None:
    assert dashboard.WRITTEN.read_text() == dashboard.as_json(), "run make docs"
    rules = [
        {"record": f"panel:{number}", "expr": query}
        for number, query in enumerate(dashboard.queries())
    ]
    path = tmp_path / "queries.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    assert f"{len(rules)} rules found" in promtool("check", "rules", path)


def test_dashboard_is_provided_from_the_folder_that_it_is_mounted_in() -> None:
    provider = yaml.safe_load(dashboard.WRITTEN.with_suffix(".yml").read_text())["providers"][0]
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    mounted = dict(
        volume.split(":")[:2]
        for volume in compose["services"]["grafana"]["volumes"]
        if volume.startswith("./")
    )
    inside = dashboard.WRITTEN.parent.relative_to(ROOT / "infra/grafana/provisioning")
    assert provider["options"]["path"] == f"{mounted['./infra/grafana/provisioning']}/{inside}"
    sources = yaml.safe_load(
        (ROOT / "infra/grafana/provisioning/datasources/prometheus.yml").read_text()
    )["datasources"]
    assert {key: sources[0][key] for key in ("type", "uid")} == dashboard.SOURCE


def test_panels_do_not_overlap() -> None:
    cells: set[tuple[int, int]] = set()
    for panel in dashboard.dashboard()["panels"]:
        at = panel["gridPos"]
        covered = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not covered & cells, panel["title"]
        assert at["x"] + at["w"] <= dashboard.WIDTH
        cells |= covered


def test_prometheus_that_is_missing_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.prometheus_binaries.UNPACKED", Path("/nowhere"))
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(FileNotFoundError, match=re.escape("apt install prometheus")):
        binary("promtool")
    assert "make prometheus" in MISSING
