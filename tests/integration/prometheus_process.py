"""The real Prometheus on the configuration and rules that come with Freshet, beside processes of this machine."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import httpx
import yaml

from streams.client import wait_until
from tests.prometheus_binaries import binary

SHIPPED = Path(__file__).parents[2] / "infra" / "prometheus"
ELSEWHERE = {"ray", "qdrant"}  # jobs of the compose file that no process of ours answers
START_S = 60
LOOK_EVERY_S = 1.0


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports


class PrometheusProcess:
    """A running server; a context."""

    def __init__(
        self,
        folder: Path,
        ports: Mapping[str, int],
        *,
        serve_json: Path,
        every_s: int | None = None,
    ) -> None:
        """Scrape each job at its port, and the endpoint once `serve_json` says where it is.

        `every_s` takes the place of the shipped intervals of scraping and evaluating.
        """
        self._folder, self._serve_json = folder, serve_json
        folder.mkdir()
        for rules in ("objectives.yml", "alerts.yml"):
            shutil.copy(SHIPPED / rules, folder / rules)
            if every_s:
                text = (folder / rules).read_text()
                text = re.sub(r"interval: \w+", f"interval: {every_s}s", text)
                (folder / rules).write_text(text)
        config = yaml.safe_load((SHIPPED / "prometheus.yml").read_text())
        if every_s:
            config["global"] = dict.fromkeys(
                ("scrape_interval", "evaluation_interval"), f"{every_s}s"
            )
        config["scrape_configs"] = [
            {
                "job_name": job,
                "file_sd_configs": [{"files": [f"{job}.json"], "refresh_interval": "1s"}],
            }
            for job in [one["job_name"] for one in config["scrape_configs"]]
            if job not in ELSEWHERE
        ]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        for job, port in ports.items():
            self._point(job, f"127.0.0.1:{port}")
        self.families: set[str] = set()
        """Names of all metric families that were ever exposed, also of those without a sample."""
        self._ending = threading.Event()
        self._watch = threading.Thread(target=self._look, daemon=True)

    def _point(self, job: str, target: str) -> None:
        path = self._folder / f"{job}.json"
        path.with_suffix(".new").write_text(json.dumps([{"targets": [target]}]))
        path.with_suffix(".new").rename(path)

    def __enter__(self) -> Self:
        (port,) = free_ports(1)
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    binary("prometheus"),
                    "--config.file=prometheus.yml",
                    "--storage.tsdb.path=data",
                    f"--web.listen-address=127.0.0.1:{port}",
                ],
                cwd=self._folder,
                stdout=log,
                stderr=log,
            )
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=START_S)
        try:
            wait_until(self._ready, timeout_s=START_S, what="the start of Prometheus")
        except Exception:
            self._process.kill()
            print((self._folder / "log").read_text()[-3000:])
            raise
        self.started_s = time.time()
        self._watch.start()
        return self

    def _ready(self) -> bool:
        assert self._process.poll() is None, (self._folder / "log").read_text()[-3000:]
        try:
            return self.http.get("/-/ready").status_code == 200
        except httpx.TransportError:
            return False

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ending.set()
        self._watch.join()
        self._process.terminate()
        self._process.wait()

    def _look(self) -> None:
        url = ""
        while not self._ending.wait(LOOK_EVERY_S):
            if self._serve_json.exists():
                found = json.loads(self._serve_json.read_text())["url"]
                if found != url:
                    self._point("serve", urlsplit(found).netloc)
                url = found
            self.families |= set(self.get("metadata"))

    def get(self, what: str, **parameters: Any) -> Any:
        """Ask the HTTP API; an error of Prometheus is one of the test."""
        answer = self.http.get(f"/api/v1/{what}", params=parameters)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """Evaluate now: labels and value of each series."""
        found = self.get("query", query=expression)["result"]
        return [(one["metric"], float(one["value"][1])) for one in found]

    def ever(self, expression: str) -> list[dict[str, str]]:
        """Evaluate over the whole run: the labels of each series that there was."""
        found = self.get(
            "query_range", query=expression, start=self.started_s, end=time.time(), step=5
        )
        return [one["metric"] for one in found["result"]]

    def rules(self) -> list[dict[str, Any]]:
        """All rules, with the health of their last evaluation."""
        return [rule for group in self.get("rules")["groups"] for rule in group["rules"]]
