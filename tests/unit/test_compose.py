"""The compose file, checked where no container engine runs: the specification, our commands, our settings."""

from __future__ import annotations

import json
import re
from importlib import metadata
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from infra.kafka.jars import KAFKA_VERSION
from infra.settings import PREFIX, load_settings, setting_fields
from tests import command_line

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docker-compose.yml").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if "build" in service}
ONE_SHOTS = {name for name, service in SERVICES.items() if service.get("restart") == "no"}


def runs_freshet(service: dict[str, Any]) -> bool:
    return "build" in service and service.get("entrypoint", ["freshet"])[0] != "ray"


def test_compose_file_follows_the_specification() -> None:
    # The wheel carries the specification's schema; its code is not imported.
    wheel = metadata.distribution("check-jsonschema")
    schema_path = wheel.locate_file("check_jsonschema/builtin_schemas/vendor/compose-spec.json")
    schema = json.loads(Path(str(schema_path)).read_text())
    jsonschema.Draft7Validator.check_schema(schema)
    jsonschema.validate(COMPOSE, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(COMPOSE | {"services": {"kafka": {"imagee": "typo"}}}, schema)


@pytest.mark.parametrize("name", sorted(name for name in OURS if runs_freshet(OURS[name])))
def test_every_freshet_command_is_one_that_the_command_line_has(name: str) -> None:
    command_line.accept(SERVICES[name]["command"])


def test_every_process_has_a_service() -> None:
    started = {" ".join(service["command"]) for service in OURS.values()}
    processes = {f"worker {name}" for name in command_line.tree().commands["worker"].commands}
    assert (
        processes | {"train", "serve", "table run", "topics create", "bootstrap --if-missing"}
        <= started
    )


def test_only_the_worker_that_keeps_qdrant_in_step_waits_for_it() -> None:
    waiting = {name for name in SERVICES if "qdrant" in SERVICES[name].get("depends_on", {})}
    assert waiting == {"catalogue"}


def test_every_freshet_variable_is_a_setting_with_a_valid_value() -> None:
    known = {name for name, _ in setting_fields()}
    assert set(re.findall(rf"\b{PREFIX}[A-Z_0-9]+", TEXT)) <= known
    for service in OURS.values():
        ours = {name: value for name, value in service["environment"].items() if name in known}
        with pytest.MonkeyPatch.context() as environment:
            for name, value in ours.items():
                environment.setenv(name, value)
            load_settings(ours)


@pytest.mark.parametrize("name", sorted(set(SERVICES) - ONE_SHOTS))
def test_every_service_that_keeps_running_has_a_health_check(name: str) -> None:
    assert SERVICES[name]["healthcheck"]["test"]
    assert SERVICES[name]["restart"] == "unless-stopped"


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_every_dependency_waits_for_a_condition_that_can_come_true(name: str) -> None:
    for other, wait in SERVICES[name].get("depends_on", {}).items():
        done = "service_completed_successfully" if other in ONE_SHOTS else "service_healthy"
        assert wait == {"condition": done}, other


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_every_image_is_pinned_to_a_version(name: str) -> None:
    assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+(\.\d+)?", SERVICES[name]["image"])


def test_broker_is_the_version_that_runs_without_containers() -> None:
    assert SERVICES["kafka"]["image"] == f"apache/kafka:{KAFKA_VERSION}"


def test_every_published_port_is_on_loopback() -> None:
    published = [port for service in SERVICES.values() for port in service.get("ports", ())]
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_every_volume_is_declared_and_used() -> None:
    mounted = {
        volume.partition(":")[0]
        for service in SERVICES.values()
        for volume in service.get("volumes", ())
        if not volume.startswith(".")
    }
    assert mounted == set(COMPOSE["volumes"])


def test_every_file_that_is_mounted_or_copied_exists() -> None:
    mounted = re.findall(r"- \./([^:]+):", TEXT)
    dockerfile = (ROOT / "infra/docker/Dockerfile").read_text()
    copied = [
        word for line in re.findall(r"^COPY (.+) \S+$", dockerfile, re.M) for word in line.split()
    ]
    assert mounted
    assert copied
    assert all((ROOT / path).exists() for path in mounted + copied)


def test_every_secret_comes_from_outside_the_file() -> None:
    environments = [service.get("environment", {}) for service in SERVICES.values()]
    secrets = [
        value
        for environment in environments
        for name, value in environment.items()
        if re.search(r"PASSWORD|SECRET|TOKEN|API_KEY|ACCESS_KEY", name)
    ]
    assert secrets
    assert all(re.fullmatch(r"\$\{[A-Z_0-9]+:\?.*\}", value) for value in secrets)


def test_prometheus_scrapes_every_process_where_it_listens() -> None:
    config = yaml.safe_load((ROOT / "infra/prometheus/prometheus.yml").read_text())
    targets = {
        target
        for job in config["scrape_configs"]
        for scraped in job["static_configs"]
        for target in scraped["targets"]
    }
    assert {target.partition(":")[0] for target in targets} <= set(SERVICES)
    assert {
        "uploads:9100",
        "watches:9100",
        "freshness:9100",
        "catalogue:9100",
        "train:9100",
        "table:9100",
        "serve:8000",
    } <= targets
