from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from infra.log import configure, get_logger, hashed


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Put the process's logging back as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_event_is_one_json_line_with_its_fields(capsys: pytest.CaptureFixture[str]) -> None:
    configure("sealer", format="json")
    get_logger().info("shard_sealed", partition=3, rows=17)
    [line] = lines(capsys)
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "shard_sealed",
        "level": "info",
        "process": "sealer",
        "partition": 3,
        "rows": 17,
    }


def test_library_lines_come_out_in_the_same_format(capsys: pytest.CaptureFixture[str]) -> None:
    configure("sealer", format="json")
    logging.getLogger("faust.app").warning("rebalanced %d partitions", 4)
    [line] = lines(capsys)
    assert (line["event"], line["process"]) == ("rebalanced 4 partitions", "sealer")


def test_line_from_a_thread_names_its_process_too(capsys: pytest.CaptureFixture[str]) -> None:
    configure("serve", format="json")
    thread = threading.Thread(target=lambda: get_logger().info("checkpoint_loaded"))
    thread.start()
    thread.join()
    assert [line["process"] for line in lines(capsys)] == ["serve"]


def test_exception_is_in_the_line_it_belongs_to(capsys: pytest.CaptureFixture[str]) -> None:
    configure("sealer", format="json")
    try:
        raise ValueError("bad row")
    except ValueError:
        get_logger().exception("shard_refused")
    [line] = lines(capsys)
    assert "ValueError: bad row" in line["exception"]


def test_lines_below_the_level_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    configure("sealer", level="WARNING", format="json")
    get_logger().info("shard_sealed")
    logging.getLogger("faust").info("connected")
    get_logger().warning("shard_refused")
    assert [line["event"] for line in lines(capsys)] == ["shard_refused"]


def test_configuring_again_does_not_double_the_lines(capsys: pytest.CaptureFixture[str]) -> None:
    configure("demo", format="json")
    configure("sealer", format="json")
    logging.getLogger("faust").warning("connected")
    assert [line["process"] for line in lines(capsys)] == ["sealer"]


def test_hashed_user_id_is_stable_and_does_not_tell_the_user() -> None:
    assert hashed("ana@example.org") == hashed("ana@example.org")
    assert hashed("ana@example.org") != hashed("bob@example.org")
    assert "ana" not in hashed("ana@example.org")
    assert len(hashed("ana@example.org")) == 12
