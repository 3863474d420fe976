"""The real broker: records go round, survive kill -9, and nothing is left running."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import psutil
import pytest
from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, NewTopic

from infra.errors import ConfigError, FreshetError
from infra.kafka import upkeep
from infra.kafka.broker import LocalBroker, start_broker
from infra.kafka.upkeep import broker_kept_up

pytestmark = pytest.mark.integration

DEADLINE_S = 120


def new_topic(broker: LocalBroker) -> str:
    topic = f"t-{uuid.uuid4().hex[:8]}"
    admin = AdminClient({"bootstrap.servers": broker.bootstrap_servers})
    admin.create_topics([NewTopic(topic, 1, 1)])[topic].result(timeout=DEADLINE_S)
    return topic


def produce(broker: LocalBroker, topic: str, values: list[bytes]) -> None:
    """Return once the broker has acknowledged every record."""
    refused: list[KafkaError] = []

    def on_delivery(error: KafkaError | None, _: Message) -> None:
        if error is not None:
            refused.append(error)

    producer = Producer(
        {"bootstrap.servers": broker.bootstrap_servers, "message.max.bytes": 16_000_000}
    )
    for value in values:
        producer.produce(topic, value, on_delivery=on_delivery)
    assert producer.flush(DEADLINE_S) == 0
    assert refused == []


def consume(broker: LocalBroker, topic: str, count: int) -> list[bytes | None]:
    consumer = Consumer({"bootstrap.servers": broker.bootstrap_servers, "group.id": topic})
    consumer.assign([TopicPartition(topic, 0, OFFSET_BEGINNING)])
    values: list[bytes | None] = []
    deadline = time.monotonic() + DEADLINE_S
    while len(values) < count and time.monotonic() < deadline:
        values += [message.value() for message in consumer.consume(count, timeout=1.0)]
    consumer.close()
    return values


def test_records_produced_are_consumed_in_order(broker: LocalBroker) -> None:
    values = [str(i).encode() for i in range(100)]
    topic = new_topic(broker)

    produce(broker, topic, values)

    assert consume(broker, topic, len(values)) == values


def test_record_as_long_as_a_transcript_may_be_goes_through(broker: LocalBroker) -> None:
    value = os.urandom(15_000_000)
    topic = new_topic(broker)

    produce(broker, topic, [value])

    assert consume(broker, topic, 1) == [value]


def test_topic_that_nobody_created_is_not_made_up(broker: LocalBroker) -> None:
    admin = AdminClient({"bootstrap.servers": broker.bootstrap_servers})

    admin.list_topics("misspelt", timeout=30)

    assert "misspelt" not in admin.list_topics(timeout=30).topics


def test_broker_killed_and_started_again_keeps_its_records_and_address(tmp_path: Path) -> None:
    values = [str(i).encode() for i in range(1000)]
    with start_broker(tmp_path) as first:
        topic = new_topic(first)
        produce(first, topic, values)
        first.kill()

        with start_broker(tmp_path) as second:
            assert second.bootstrap_servers == first.bootstrap_servers
            assert consume(second, topic, len(values)) == values


def test_two_brokers_side_by_side_do_not_share_topics(broker: LocalBroker, tmp_path: Path) -> None:
    topic = new_topic(broker)
    with start_broker(tmp_path) as other:
        admin = AdminClient({"bootstrap.servers": other.bootstrap_servers})

        assert other.bootstrap_servers != broker.bootstrap_servers
        assert topic not in admin.list_topics(timeout=30).topics


def test_broker_is_out_of_reach_of_ctrl_c(broker: LocalBroker) -> None:
    assert os.getsid(broker.pid) == broker.pid


def test_directory_of_a_running_broker_is_refused(broker: LocalBroker) -> None:
    with pytest.raises(ConfigError, match="Another broker is running"):
        start_broker(broker.data_dir, timeout_s=1)


def test_broker_that_cannot_start_fails_early_with_its_log(tmp_path: Path) -> None:
    with start_broker(tmp_path) as broker:
        broker.stop()
        (tmp_path / "log" / "meta.properties").write_text("version=1\nnode.id=7\n")

    with pytest.raises(FreshetError, match=r"ended with status 1(.|\n)*No readable meta"):
        start_broker(tmp_path, timeout_s=DEADLINE_S)


def test_broker_that_is_kept_up_comes_back_with_its_records_and_stops_for_good(
    tmp_path: Path,
) -> None:
    values = [str(i).encode() for i in range(100)]
    with broker_kept_up(tmp_path) as broker:
        topic = new_topic(broker)
        produce(broker, topic, values)
        broker.kill()

        assert consume(broker, topic, len(values)) == values
        produce(broker, topic, [b"more"])
    with pytest.raises(KafkaException):
        AdminClient({"bootstrap.servers": broker.bootstrap_servers}).list_topics(timeout=1)


def test_broker_that_does_not_come_back_ends_its_process_with_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "RESTART_DELAYS_S", (0.0,))
    told_to_end = threading.Event()
    former = signal.signal(signal.SIGTERM, lambda *_: told_to_end.set())

    def run_broken() -> None:
        with broker_kept_up(tmp_path) as broker:
            (tmp_path / "log" / "meta.properties").write_text("version=1\nnode.id=7\n")
            broker.kill()
            assert told_to_end.wait(DEADLINE_S)

    try:
        with pytest.raises(FreshetError, match="No readable meta"):
            run_broken()
    finally:
        signal.signal(signal.SIGTERM, former)


# The thread that starts the broker ends before the process does.
PARENT = """
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from infra.kafka.broker import start_broker

with ThreadPoolExecutor(1) as pool:
    broker = pool.submit(start_broker, Path(sys.argv[1])).result()
print(broker.pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ties a process to its parent")
def test_broker_outlives_the_thread_that_started_it_but_not_the_process(tmp_path: Path) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with parent:
        assert parent.stdout is not None
        broker = psutil.Process(int(parent.stdout.readline()))
        assert broker.status() != psutil.STATUS_ZOMBIE

        parent.send_signal(signal.SIGKILL)
        parent.wait()

    assert ends(broker)


def ends(process: psutil.Process) -> bool:
    """Wait until the process is gone, or a zombie where nobody reaps orphans."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                return True
            process.wait(timeout=0.1)
        except psutil.TimeoutExpired:
            continue
        except psutil.NoSuchProcess:
            pass
        return True
    return False
