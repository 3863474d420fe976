from __future__ import annotations

import socket
from pathlib import Path

import pytest

from infra.errors import ConfigError
from infra.kafka.node import remember_node
from infra.settings import KafkaSettings, Settings
from workers.stack import kafka_folder, with_local_kafka


def test_cluster_that_is_named_is_taken_as_it_is(tmp_path: Path) -> None:
    settings = Settings(var_dir=tmp_path, kafka=KafkaSettings(bootstrap_servers="elsewhere:9092"))
    assert with_local_kafka(settings) is settings


def test_machine_that_never_ran_a_broker_is_told_how(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="freshet up"):
        with_local_kafka(Settings(var_dir=tmp_path))


def test_broker_that_ended_is_told_from_one_that_runs(tmp_path: Path) -> None:
    settings = Settings(var_dir=tmp_path)
    kafka_folder(settings).mkdir()
    node = remember_node(kafka_folder(settings))
    with pytest.raises(ConfigError, match=rf"127\.0\.0\.1:{node.port}: run `freshet up`"):
        with_local_kafka(settings)
    with socket.create_server(("127.0.0.1", node.port)):
        found = with_local_kafka(settings)
    assert found.kafka.bootstrap_servers == f"127.0.0.1:{node.port}"
