"""The Ray Serve app: model replicas behind a thin ingress that keeps no model; and the process that runs them.

The ingress is this process itself: HTTP is answered here, and a request takes one step to a replica. Ray Serve's own
way, by a proxy and an ingress actor, takes three, which together cost about as much CPU time as a small model's search.
Everything that can be said without Ray is said elsewhere: requests in `serve.recommender`, HTTP in `serve.api`.
"""

from __future__ import annotations

import gc
import ipaddress
import json
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from ray import serve as ray_serve
from ray.serve.schema import LoggingConfig
from starlette.types import ASGIApp

from infra import metrics
from infra.errors import ConfigError
from infra.log import configure, get_logger
from infra.ray_cluster import ensure_ray
from infra.settings import ServeSettings, Settings
from infra.storage import ObjectStore, write_atomically
from models.codebook import current_manifest
from serve.api import build_api
from serve.exposition import ReplicaMetrics
from serve.giving_way import share_the_lock
from serve.replicas import DEADLINE_S, CancelOnDisconnect, Replicas
from serve.schemas import (
    ExplanationRequest,
    ExplanationResponse,
    FreshnessResponse,
    RankRequest,
    RankResponse,
    RecommendationRequest,
    RecommendationResponse,
    RelatedResponse,
    ReplicaStatus,
    VideoState,
)

APP_NAME = "freshet"
DISCOVERY_FILE = "serve.json"
# A replica has that many in hand: what its model can search and let wait, and those that are answered without it, which
# must not wait behind them. What is beyond waits in the ingress; what is beyond that is refused.
MAX_ONGOING = 64
MAX_QUEUED = 64
CATCH_UP_S = 60.0
HEALTH_CHECK_S = 2.0
BACKLOG = 1_024
KEEP_ALIVE_S = (
    75  # longer than callers keep an idle connection, so that none sends into one that closes
)
QUIET = LoggingConfig(log_level="WARNING", enable_access_log=False)
# Cores are shared with other processes; the share only keeps actors on nodes that offer any.
REPLICA_CPUS = 0.1

log = get_logger()


class RecommenderDeployment:
    """A `Replica` in a Ray actor; sync methods run in threads, so health checks are answered meanwhile."""

    def __init__(self, settings: Settings) -> None:
        configure("serve.replica", level=settings.log.level, format=settings.log.format)
        # Here, so that only the replicas, and neither the ingress nor the driver, import torch.
        from serve.replica import Replica

        name: str = ray_serve.get_replica_context().replica_id.unique_id
        self._replica = Replica(settings, name=name)
        # One that starts beside others is asked nothing until it knows what they know.
        self._replica.catch_up(timeout_s=CATCH_UP_S)
        # The collector would look at all of that again and again, under Python's lock.
        gc.collect()
        gc.freeze()

    def recommend(self, request: RecommendationRequest) -> RecommendationResponse:
        """Answer a request."""
        return self._replica.recommend(request)

    def rank(self, request: RankRequest) -> RankResponse:
        """Put candidates in order."""
        return self._replica.rank(request)

    def explain(self, request: ExplanationRequest) -> ExplanationResponse | None:
        """Say why a video is for a viewer."""
        return self._replica.explain(request)

    def related(self, video_id: str, k: int) -> RelatedResponse | None:
        """Say what to watch after a video."""
        return self._replica.related(video_id, k)

    def freshness(self) -> FreshnessResponse:
        """Return the figures of the freshness worker."""
        return self._replica.freshness()

    async def video(self, video_id: str) -> VideoState:
        """Say how far a video has come."""
        return self._replica.video(video_id)

    async def status(self) -> ReplicaStatus:
        """Say what the replica holds."""
        return self._replica.status()

    async def metrics(self) -> ReplicaMetrics:
        """Return the replica's metrics, and which of the replicas it is."""
        place: int = ray_serve.get_replica_context().rank.rank
        return ReplicaMetrics(place, self._replica.metrics())

    def check_health(self) -> None:
        """Raise when this replica must be replaced."""
        self._replica.check()

    def __del__(self) -> None:
        if hasattr(self, "_replica"):
            self._replica.close()


def build_app(settings: Settings) -> ray_serve.Application:
    """Return the application that `ray.serve.run` deploys: the replicas, which nobody reaches but by a handle."""
    return ray_serve.deployment(
        RecommenderDeployment,
        name="recommender",
        num_replicas=settings.serve.replicas,
        max_ongoing_requests=MAX_ONGOING,
        max_queued_requests=MAX_QUEUED,
        ray_actor_options={"num_cpus": REPLICA_CPUS},
        graceful_shutdown_timeout_s=10,
        graceful_shutdown_wait_loop_s=0.2,
        health_check_period_s=HEALTH_CHECK_S,
    ).bind(settings)


@contextmanager
def listening(app: ASGIApp, host: str, port: int) -> Iterator[None]:
    """Answer HTTP from a thread of this process while the context runs; then finish what was begun.

    Raises:
        ConfigError: the address is taken, or not of this machine.
    """
    try:
        taken = socket.create_server((host, port), family=_family(host), backlog=BACKLOG)
    except OSError as error:
        raise ConfigError(
            f"cannot listen at {host}:{port}: {error}; set FRESHET_SERVE__HOST and FRESHET_SERVE__PORT"
        ) from error
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            access_log=False,
            log_config=None,
            log_level="warning",
            lifespan="off",
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=round(DEADLINE_S),
        )
    )
    with taken:
        thread = threading.Thread(
            target=server.run, kwargs={"sockets": [taken]}, name="http", daemon=True
        )
        thread.start()
        try:
            yield
        finally:
            server.should_exit = True
            thread.join()


def run(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, and leave nothing running that was started here.

    The address is logged and written to `var_dir`/serve.json as soon as requests are accepted.

    Raises:
        ConfigError: other machines could reach the endpoint without a key, or there is no codebook yet.
    """
    configure("serve", level=settings.log.level, format=settings.log.format)
    share_the_lock()  # between the threads of HTTP, of Ray Serve's router and of Ray
    logging.getLogger("ray.serve").setLevel(
        logging.ERROR
    )  # it warns of every request that it refuses
    refuse_open_address(settings.serve)
    current_manifest(ObjectStore(settings.storage.root))
    host, port = settings.serve.host, settings.serve.port or _free_port(settings.serve.host)
    discovery = settings.var_dir / DISCOVERY_FILE
    stopping, accepting = threading.Event(), threading.Event()

    def stop(*_: object) -> None:
        stopping.set()
        if not accepting.is_set():  # the start may take minutes, and looks at no event
            raise SystemExit(0)

    with ensure_ray(settings):
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)
        try:
            ray_serve.start(proxy_location="Disabled", logging_config=QUIET)
            replicas = ray_serve.run(
                build_app(settings), name=APP_NAME, route_prefix=None, logging_config=QUIET
            )
            metrics.REPLICAS_WANTED.set(settings.serve.replicas)
            api = build_api(Replicas(replicas), api_key=settings.serve.api_key.get_secret_value())
            with listening(CancelOnDisconnect(api), host, port):
                url = f"http://{_as_reached(host)}:{port}"
                write_atomically(discovery, json.dumps({"url": url, "pid": os.getpid()}).encode())
                accepting.set()
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
    with socket.create_server((host, 0), family=_family(host)) as probe:
        return int(probe.getsockname()[1])


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
