"""The Ray Serve app: a thin ingress that keeps no model, and model replicas; and the process that runs it.

Everything that can be said without Ray is said elsewhere: requests in `serve.recommender`, HTTP in `serve.api`.
"""

from __future__ import annotations

import ipaddress
import json
import logging
import os
import signal
import socket
import threading
from typing import Any

from fastapi import FastAPI
from ray import serve as ray_serve
from ray.exceptions import RayActorError
from ray.serve.config import BackpressureConfig
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig

from infra.errors import ConfigError
from infra.log import configure, get_logger
from infra.ray_cluster import ensure_ray
from infra.settings import ServeSettings, Settings
from infra.storage import ObjectStore, write_atomically
from models.codebook import current_manifest
from serve.api import build_api
from serve.schemas import (
    RecommendationRequest,
    RecommendationResponse,
    ReplicaStatus,
    VideoState,
)

APP_NAME = "freshet"
DISCOVERY_FILE = "serve.json"
MAX_ONGOING = 16  # the searches take turns; what is beyond waits in the ingress
MAX_QUEUED = 64
INGRESS_MAX_ONGOING = 1_000  # it must have a request in hand to refuse it
REQUEST_TIMEOUT_S = 60.0
CATCH_UP_S = 60.0  # a replica that finds no broker answers without a model after that
QUIET = LoggingConfig(log_level="WARNING", enable_access_log=False)
# Cores are shared with other processes; the share only keeps actors on nodes that offer any.
INGRESS_CPUS, REPLICA_CPUS = 0.01, 0.1

log = get_logger()


class RecommenderDeployment:
    """A `Replica` in a Ray actor; sync methods run in threads, so health checks are answered meanwhile."""

    def __init__(self, settings: Settings) -> None:
        configure("serve.replica", level=settings.log.level, format=settings.log.format)
        # Here, so that only the replicas, and neither the ingress nor the driver, import torch.
        from serve.replica import Replica

        name: str = ray_serve.get_replica_context().replica_id.unique_id
        self._replica = Replica(settings, name=name)
        # Ray sends requests as soon as this returns; one that takes another's place should answer as that one did.
        self._replica.wait_until_caught_up(CATCH_UP_S)

    def recommend(self, request: RecommendationRequest) -> RecommendationResponse:
        """Answer a request."""
        return self._replica.recommend(request)

    async def video(self, video_id: str) -> VideoState:
        """Say how far a video has come."""
        return self._replica.video(video_id)

    async def status(self) -> ReplicaStatus:
        """Say what the replica holds."""
        return self._replica.status()

    async def metrics(self) -> str:
        """Return the replica's metrics."""
        return self._replica.metrics()

    def check_health(self) -> None:
        """Raise when this replica must be replaced."""
        self._replica.check()

    def __del__(self) -> None:
        if hasattr(self, "_replica"):
            self._replica.close()


class Replicas:
    """The replicas as the ingress sees them: one that dies with a request in hand leaves it to another."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle

    async def _ask(self, method: str, *arguments: Any) -> Any:
        try:
            return await getattr(self._handle, method).remote(*arguments)
        except RayActorError:
            return await getattr(self._handle, method).remote(*arguments)

    async def recommend(self, request: RecommendationRequest) -> RecommendationResponse:
        """Have a request answered."""
        answer: RecommendationResponse = await self._ask("recommend", request)
        return answer

    async def video(self, video_id: str) -> VideoState:
        """Have a replica say how far a video has come."""
        state: VideoState = await self._ask("video", video_id)
        return state

    async def status(self) -> ReplicaStatus:
        """Have a replica say what it holds."""
        status: ReplicaStatus = await self._ask("status")
        return status

    async def metrics(self) -> str:
        """Return the metrics of a replica."""
        text: str = await self._ask("metrics")
        return text


class IngressDeployment:
    """HTTP in, calls of the replicas out."""

    def __init__(self, settings: Settings, replicas: DeploymentHandle) -> None:
        configure("serve.ingress", level=settings.log.level, format=settings.log.format)
        self._settings, self._replicas = settings, Replicas(replicas)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Return what answers HTTP; Ray calls this once, in the replica of the ingress."""
        return build_api(self._replicas, api_key=self._settings.serve.api_key.get_secret_value())


def build_app(settings: Settings) -> ray_serve.Application:
    """Return the application that `ray.serve.run` deploys."""
    recommender = ray_serve.deployment(
        RecommenderDeployment,
        name="recommender",
        num_replicas=settings.serve.replicas,
        max_ongoing_requests=MAX_ONGOING,
        max_queued_requests=MAX_QUEUED,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=1),
        ray_actor_options={"num_cpus": REPLICA_CPUS},
        graceful_shutdown_timeout_s=10,
        graceful_shutdown_wait_loop_s=0.2,
    )
    ingress = ray_serve.deployment(
        ray_serve.ingress()(IngressDeployment),
        name="ingress",
        max_ongoing_requests=INGRESS_MAX_ONGOING,
        ray_actor_options={"num_cpus": INGRESS_CPUS},
        graceful_shutdown_wait_loop_s=0.2,
    )
    return ingress.bind(settings, recommender.bind(settings))


def run(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, and leave nothing running that was started here.

    The address is logged and written to `var_dir`/serve.json as soon as requests are accepted.

    Raises:
        ConfigError: other machines could reach the endpoint without a key, or there is no codebook yet.
    """
    configure("serve", level=settings.log.level, format=settings.log.format)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    refuse_open_address(settings.serve)
    current_manifest(ObjectStore(settings.storage.root))
    host, port = settings.serve.host, settings.serve.port or _free_port(settings.serve.host)
    discovery = settings.var_dir / DISCOVERY_FILE
    stopping = threading.Event()
    with ensure_ray(settings):
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stopping.set())
        try:
            ray_serve.start(
                proxy_location="HeadOnly",
                http_options={"host": host, "port": port, "request_timeout_s": REQUEST_TIMEOUT_S},
                logging_config=QUIET,
            )
            ray_serve.run(build_app(settings), name=APP_NAME, logging_config=QUIET)
            url = f"http://{_as_reached(host)}:{port}"
            write_atomically(discovery, json.dumps({"url": url, "pid": os.getpid()}).encode())
            log.info("requests_accepted", url=url)
            stopping.wait()
        finally:
            discovery.unlink(missing_ok=True)
            _leave_ray_serve()


def _leave_ray_serve() -> None:
    """Take our app down, and Ray Serve with it unless the cluster has others."""
    ray_serve.delete(APP_NAME)
    if not ray_serve.status().applications:
        ray_serve.shutdown()


def refuse_open_address(serve: ServeSettings) -> None:
    """Do nothing for a loopback address or one with an API key.

    Raises:
        ConfigError: anybody who reaches the address could ask.
    """
    if not serve.api_key.get_secret_value() and not _is_loopback(serve.host):
        raise ConfigError(
            f"FRESHET_SERVE__HOST is {serve.host}, which other machines reach, and there is no API key: set "
            "FRESHET_SERVE__API_KEY, or bind 127.0.0.1"
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _as_reached(host: str) -> str:
    """Return the name under which this machine reaches what is bound to `host`."""
    if host in ("0.0.0.0", "::"):
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


def _free_port(host: str) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as probe:
        return int(probe.getsockname()[1])
