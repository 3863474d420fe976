"""A node's data directory: address, configuration and storage; knows nothing of processes but its lock.

node.json           address and cluster id, kept over restarts
server.properties   rendered from the template at each start
broker.log          what the broker and its JVM have to say
log/                Kafka's own files
"""

from __future__ import annotations

import base64
import fcntl
import itertools
import json
import random
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from string import Template

from infra.errors import ConfigError

TEMPLATE = Path(__file__).with_name("server.properties")
# Below the range from which Linux takes ports for outgoing connections (32768 and up): a client that
# keeps dialling a broker that is down could otherwise be given, and hold, that very port.
PORTS = range(20_000, 32_768)
LOCK_TIMEOUT_S = 10.0  # a killed broker is gone in less
POLL_S = 0.1


@dataclass(frozen=True)
class Node:
    """What a data directory remembers of itself, so that a restart comes back at the same address.

    Attributes:
        port: where clients connect, on loopback.
        controller_port: where the broker finds its controller, on loopback.
        cluster_id: 16 bytes as URL-safe base64, written into the storage by `format`.
    """

    port: int
    controller_port: int
    cluster_id: str


def remember_node(data_dir: Path, port: int = 0) -> Node:
    """Return the node of `data_dir`, made up and written at the first call.

    `port` 0 is the remembered port or a free one; any other becomes the remembered one.
    """
    path = data_dir / "node.json"
    if path.exists():
        node = Node(**json.loads(path.read_text()))
        node = Node(port or node.port, node.controller_port, node.cluster_id)
    else:
        free_port, controller_port = itertools.islice(_free_ports(excluded=port), 2)
        node = Node(port or free_port, controller_port, _new_cluster_id())
    unnamed = path.with_suffix(".new")
    unnamed.write_text(json.dumps(asdict(node), indent=2) + "\n")
    unnamed.replace(path)
    return node


def free_port() -> int:
    """Return a port of loopback on which a server can be started again: no client's connection takes it meanwhile."""
    return next(_free_ports(excluded=0))


def _free_ports(*, excluded: int) -> Iterator[int]:
    candidates = random.SystemRandom().sample(PORTS, len(PORTS))
    return (port for port in candidates if port != excluded and is_free(port))


def is_free(port: int) -> bool:
    """Say whether a server could listen on this loopback port now."""
    with socket.socket() as probe:
        # As the broker does: connections of a former run that linger in TIME_WAIT do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            probe.listen()
        except OSError:
            return False
    return True


def _new_cluster_id() -> str:
    # The first byte makes it start with a letter: a dash would be read as an option by `format`.
    return base64.urlsafe_b64encode(b"F" + uuid.uuid4().bytes[1:]).decode().rstrip("=")


def check_addresses(data_dir: Path, node: Node) -> None:
    """Refuse to start where something else already listens on the node's ports.

    Raises:
        ConfigError: naming the port.
    """
    for port in (node.port, node.controller_port):
        if not is_free(port):
            raise ConfigError(
                f"Port {port} of the broker in {data_dir} is in use by another process. Stop that"
                f" process, or give the broker another port, or delete {data_dir / 'node.json'}"
                " to have new ports chosen (clients must then learn the new address)."
            )


def await_unlocked(data_dir: Path, timeout_s: float) -> None:
    """Return once no broker holds the storage: the lock of a killed one goes with its last thread.

    Raises:
        ConfigError: another broker is running on this data directory.
    """
    deadline = time.monotonic() + min(timeout_s, LOCK_TIMEOUT_S)
    while _is_locked(data_dir / "log" / ".lock"):
        if time.monotonic() > deadline:
            raise ConfigError(
                f"Another broker is running on {data_dir}. Stop it, or use another data directory."
            )
        time.sleep(POLL_S)


def _is_locked(path: Path) -> bool:
    try:
        with path.open("r+b") as lock_file:
            fcntl.lockf(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def prepare_storage(data_dir: Path, node: Node, format_storage: Callable[[Path], None]) -> Path:
    """Return the server properties of a node whose storage is formatted, now if it never was.

    `format_storage` gets properties that point elsewhere; one rename then makes the storage exist, so
    that a crash leaves it either formatted or absent.
    """
    properties = data_dir / "server.properties"
    storage, unnamed = data_dir / "log", data_dir / "log.new"
    if not storage.exists():
        shutil.rmtree(unnamed, ignore_errors=True)
        properties.write_text(_render(node, unnamed.name))
        format_storage(properties)
        unnamed.rename(storage)
    properties.write_text(_render(node, storage.name))
    return properties


def _render(node: Node, log_dir: str) -> str:
    return Template(TEMPLATE.read_text()).substitute(
        port=node.port, controller_port=node.controller_port, log_dir=log_dir
    )
