"""`freshet up` as a child process, from its start until nothing of it is left; knows nothing of loads and kills."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

import httpx
import psutil
from confluent_kafka import KafkaException
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
)

from infra.child import spawn_tethered
from infra.errors import ConfigError, FreshetError
from infra.settings import Settings, as_environment
from streams.client import client_config, wait_until
from streams.topics import ALL
from tests.soak.processes import Process, processes_below
from workers.demo import wait_ready
from workers.stack import with_local_kafka

ROOT = Path(__file__).parents[2]
COMMAND = (sys.executable, "-m", "freshet", "up")
START_S, STOP_S, LEFT_S = 300.0, 120.0, 60.0
SCRAPE_S = 10.0
LOG_TAIL_CHARS = 3_000
PORTS = tuple(
    f"metrics__{name}_port"
    for name in ("uploads", "watches", "freshness", "catalogue", "training", "table")
)


class Running:
    """The real thing, started as a user starts it; a context that leaves nothing running."""

    def __init__(self, settings: Settings, environment: dict[str, str]) -> None:
        """Start it in the folder of the settings."""
        self._settings = settings
        self.log_path = settings.var_dir / "up.log"
        self._process = spawn_tethered(
            COMMAND,
            cwd=ROOT,
            log_path=self.log_path,
            environment=environment | as_environment(settings),
        )
        self.url = f"http://127.0.0.1:{settings.serve.port}"
        self.settings = settings
        """With the broker's address, once `wait` has returned."""

    def wait(self) -> None:
        """Return when requests can be answered and every worker works."""

        def listens() -> bool:
            self.check()
            try:
                self.settings = with_local_kafka(self._settings)
            except ConfigError:
                return False
            return True

        wait_until(listens, timeout_s=START_S, what="the start of Kafka", interval_s=0.3)
        wait_ready(self.url, self.settings.kafka, self.check, timeout_s=START_S)

    def check(self) -> None:
        """Do nothing while it runs.

        Raises:
            FreshetError: it has ended.
        """
        if self._process.poll() is not None:
            end = self.log_path.read_text(errors="replace")[-LOG_TAIL_CHARS:]
            raise FreshetError(f"`freshet up` ended with status {self._process.returncode}: {end}")

    def processes(self) -> list[Process]:
        """Return everything that it has started, and itself."""
        return processes_below(self._process.pid)

    @property
    def pid(self) -> int:
        """The process id of `freshet up`."""
        return self._process.pid

    def set_topics(self, configs: dict[str, dict[str, str]]) -> None:
        """Set the broker's configuration of topics, by our names or the broker's own.

        Raises:
            FreshetError: the broker refuses one.
        """
        kafka = self.settings.kafka
        ours = {topic.name: topic.in_cluster(kafka) for topic in ALL}
        admin = AdminClient(client_config(kafka))
        there = admin.list_topics(timeout=START_S).topics
        resources = [
            ConfigResource(
                ConfigResource.Type.TOPIC,
                ours.get(topic, topic),
                incremental_configs=[
                    ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET)
                    for name, value in config.items()
                ],
            )
            for topic, config in configs.items()
            if ours.get(topic, topic) in there
        ]
        for resource, done in admin.incremental_alter_configs(resources).items():
            try:
                done.result()
            except KafkaException as error:
                raise FreshetError(f"{resource.name} cannot be set: {error.args[0]}") from error

    def figures(self) -> dict[str, Any] | None:
        """Return what the freshness worker last wrote; None before it did."""
        try:
            found: dict[str, Any] = json.loads(
                (self.settings.var_dir / "freshness.json").read_text()
            )
        except FileNotFoundError:
            return None
        return found

    def exposed(self) -> set[str]:
        """Return the names of all metrics, of those without a sample too, that any process exposes."""
        ports = [getattr(self.settings.metrics, name.removeprefix("metrics__")) for name in PORTS]
        names: set[str] = set()
        with httpx.Client(timeout=SCRAPE_S) as client:
            for url in (self.url, *(f"http://127.0.0.1:{port}" for port in ports)):
                for line in client.get(f"{url}/metrics").text.splitlines():
                    if line.startswith("# TYPE "):
                        names.add(line.split()[2])
        return names

    def stop(self) -> list[str]:
        """Have it end as Ctrl-C does, and return what did not go well."""
        below = [one.pid for one in self.processes() if one.pid != self.pid]
        left = [psutil.Process(pid) for pid in below if psutil.pid_exists(pid)]
        if self._process.poll() is None:
            self._process.terminate()
        try:
            status = self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()  # the kernel ends the rest
            status = self._process.wait()
        _, alive = psutil.wait_procs(left, timeout=LEFT_S)
        problems = [] if status == 0 else [f"`freshet up` ended with status {status}"]
        return problems + [f"process {one.pid} is left running" for one in alive]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self.stop()
