"""A broker's data directory: its address lasts, its storage is formatted wholly or not at all."""

from __future__ import annotations

import socket
from dataclasses import astuple
from pathlib import Path

import pytest

from infra.errors import ConfigError
from infra.kafka.node import Node, check_addresses, prepare_storage, remember_node


def test_node_of_a_directory_stays_the_same(tmp_path: Path) -> None:
    first = remember_node(tmp_path)

    assert remember_node(tmp_path) == first
    assert first.port != first.controller_port


def test_node_given_a_port_remembers_it(tmp_path: Path) -> None:
    first = remember_node(tmp_path)
    moved = remember_node(tmp_path, port=first.port + 1)

    assert moved == Node(first.port + 1, first.controller_port, first.cluster_id)
    assert remember_node(tmp_path) == moved


def test_port_that_another_process_holds_is_refused_by_number(tmp_path: Path) -> None:
    node = remember_node(tmp_path)
    check_addresses(tmp_path, node)

    holder = socket.create_server(("127.0.0.1", node.port))
    with holder, pytest.raises(ConfigError, match=str(node.port)):
        check_addresses(tmp_path, node)


def test_format_that_fails_half_way_is_done_anew_at_the_next_start(tmp_path: Path) -> None:
    node = remember_node(tmp_path)
    formatted = []

    def storage_of(properties: Path) -> Path:
        (name,) = (
            line.removeprefix("log.dirs=")
            for line in properties.read_text().splitlines()
            if line.startswith("log.dirs=")
        )
        return tmp_path / name

    def crash(properties: Path) -> None:
        storage_of(properties).mkdir()
        (storage_of(properties) / "half").touch()
        raise KeyboardInterrupt

    def succeed(properties: Path) -> None:
        storage_of(properties).mkdir()
        formatted.append(properties)

    with pytest.raises(KeyboardInterrupt):
        prepare_storage(tmp_path, node, crash)
    for _ in range(2):
        properties = prepare_storage(tmp_path, node, succeed)

    assert len(formatted) == 1
    assert list(storage_of(properties).iterdir()) == []


def test_properties_hold_the_address_of_the_node(tmp_path: Path) -> None:
    node = remember_node(tmp_path)

    properties = prepare_storage(tmp_path, node, lambda _: (tmp_path / "log.new").mkdir())

    text = properties.read_text()
    assert f"advertised.listeners=CLIENT://127.0.0.1:{node.port}" in text
    assert f"controller.quorum.voters=1@127.0.0.1:{node.controller_port}" in text
    assert "$" not in text
    assert all(astuple(node))
