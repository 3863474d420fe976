"""Everything that one machine needs to run Freshet: Kafka, topics, Ray and the processes, up together, down in order.

Knows nothing of what the processes do: it starts them as commands.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from infra.errors import ConfigError
from infra.kafka.node import free_port
from infra.kafka.upkeep import broker_kept_up
from infra.ray_head import COMMAND, DISCOVERY_FILE, PORT_VARIABLE, read_address
from infra.settings import Settings, as_environment, with_values
from infra.supervisor import Supervisor
from streams.admin import create_topics
from streams.client import wait_until

PROBE_S = 2.0
PROCESSES: dict[str, tuple[str, ...]] = {
    "uploads": ("worker", "uploads"),
    "watches": ("worker", "watches"),
    "freshness": ("worker", "freshness"),
    "catalogue": ("worker", "catalogue"),
    "serve": ("serve",),
    "train": ("train",),
    "table": ("table", "run"),
}
RAY = "ray"
ON_RAY = ("serve", "train")
RAY_START_S = 240.0
AUTH_VARIABLE = "RAY_AUTH_MODE"


def kafka_folder(settings: Settings) -> Path:
    """Return where a local broker keeps its data."""
    return settings.var_dir / "kafka"


@contextmanager
def kafka_running(settings: Settings) -> Iterator[Settings]:
    """Yield settings that name a cluster: the one they name already, or a local broker that ends with the context.

    The topics exist in either case. A local broker that dies meanwhile is started again.
    """
    with ExitStack() as stack:
        if not settings.kafka.bootstrap_servers:
            broker = stack.enter_context(
                broker_kept_up(
                    kafka_folder(settings),
                    jars_dir=settings.kafka.jars_dir,
                    log_max_bytes=settings.log.file_max_bytes,
                )
            )
            settings = with_values(settings, kafka__bootstrap_servers=broker.bootstrap_servers)
        create_topics(settings.kafka)
        yield settings


@contextmanager
def processes_running(settings: Settings) -> Iterator[Supervisor]:
    """Start Ray and every process; all of them end with the context.

    Raises:
        ConfigError: `settings` name no Kafka cluster.
    """
    if not settings.kafka.bootstrap_servers:
        raise ConfigError("no Kafka cluster: set FRESHET_KAFKA__BOOTSTRAP_SERVERS")
    with Supervisor(
        settings.var_dir / "logs",
        as_environment(settings),
        log_max_bytes=settings.log.file_max_bytes,
    ) as supervisor:
        address = settings.ray.address or _start_ray(settings, supervisor)
        joined = {"FRESHET_RAY__ADDRESS": address}
        if not settings.ray.address:
            joined |= _local_ray()
        for name, arguments in PROCESSES.items():
            needs = RAY if name in ON_RAY and not settings.ray.address else ""
            supervisor.start(name, *arguments, environment=joined, needs=needs)
        yield supervisor


def _start_ray(settings: Settings, supervisor: Supervisor) -> str:
    """Start a cluster that the supervisor keeps up at one address, and return that once it answers.

    Raises:
        TransientError: it does not in time.
    """
    (settings.var_dir / DISCOVERY_FILE).unlink(missing_ok=True)  # of an earlier run
    environment = {PORT_VARIABLE: str(free_port())} | _local_ray()
    supervisor.start(RAY, command=COMMAND, environment=environment)

    def answers() -> bool:
        supervisor.check()
        return read_address(settings.var_dir) is not None

    wait_until(answers, timeout_s=RAY_START_S, what="the start of Ray")
    address = read_address(settings.var_dir)
    assert address is not None
    return address


def _local_ray() -> dict[str, str]:
    """Return what all of a local cluster must be told alike: Ray asks whoever joins for this user's token."""
    return {} if AUTH_VARIABLE in os.environ else {AUTH_VARIABLE: "token"}


def with_local_kafka(settings: Settings) -> Settings:
    """Return settings that name a cluster; without one, the local broker that `freshet up` is running.

    Raises:
        ConfigError: neither is there, or nothing listens where the local broker was.
    """
    if settings.kafka.bootstrap_servers:
        return settings
    node = kafka_folder(settings) / "node.json"
    if not node.exists():
        raise ConfigError(
            "no Kafka cluster: set FRESHET_KAFKA__BOOTSTRAP_SERVERS, or run `freshet up` in another terminal"
        )
    port = json.loads(node.read_text())["port"]
    try:
        socket.create_connection(("127.0.0.1", port), timeout=PROBE_S).close()
    except OSError as error:  # the file outlives the broker
        raise ConfigError(
            f"the local broker of {node.parent} does not listen on 127.0.0.1:{port}: run `freshet up` in another "
            "terminal, or set FRESHET_KAFKA__BOOTSTRAP_SERVERS"
        ) from error
    return with_values(settings, kafka__bootstrap_servers=f"127.0.0.1:{port}")
