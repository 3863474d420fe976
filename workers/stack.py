"""Everything that one machine needs to run Freshet: Kafka, topics, Ray and the processes, up together, down in order.

Knows nothing of what the processes do: it starts them as commands.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from infra.errors import ConfigError
from infra.kafka.broker import start_broker
from infra.ray_cluster import ensure_ray
from infra.settings import Settings, as_environment, with_values
from infra.supervisor import Supervisor
from streams.admin import create_topics

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


def kafka_folder(settings: Settings) -> Path:
    """Return where a local broker keeps its data."""
    return settings.var_dir / "kafka"


@contextmanager
def kafka_running(settings: Settings) -> Iterator[Settings]:
    """Yield settings that name a cluster: the one they name already, or a local broker that ends with the context.

    The topics exist in either case.
    """
    with ExitStack() as stack:
        if not settings.kafka.bootstrap_servers:
            broker = stack.enter_context(
                start_broker(kafka_folder(settings), jars_dir=settings.kafka.jars_dir)
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
    with ensure_ray(settings) as address:
        settings = with_values(settings, ray__address=address)
        with Supervisor(settings.var_dir / "logs", as_environment(settings)) as supervisor:
            for name, arguments in PROCESSES.items():
                supervisor.start(name, *arguments)
            yield supervisor


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
