"""A running endpoint to measure: broker, catalogue, histories, models and `freshet serve`, with requests to send it.

Videos are MovieLens's titles, each in several parts, at random places of the space; histories are random videos;
models have the `nano` shape and random weights, since how long an answer takes does not depend on what was learned.
"""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import psutil
import torch
from confluent_kafka import Producer

from infra.clock import now_ms
from infra.kafka.broker import start_broker
from infra.settings import Settings, load_settings, with_values
from infra.storage import ObjectStore
from models.lrm import NANO, Lrm, LrmConfig, build_lrm, save_lrm
from models.semantic_id import SemanticIdSpace
from streams.admin import create_topics
from streams.catalogue import semantic_id_key
from streams.client import flush, producer, send
from streams.events import (
    LRM_MODEL_NAME,
    CheckpointPromoted,
    SemanticIdAssigned,
    Surface,
    UserHistory,
)
from streams.history import Entry, user_history
from streams.movielens import load_timeline
from streams.topics import CHECKPOINTS, HISTORIES, SEMANTIC_IDS
from tests.bench.parts.marks import MeasuredProcess, measured_process
from tests.tiny_serving import publish_tiny_codebook

SPACE = SemanticIdSpace(codebook_version=1, codebook_sizes=(256, 128, 64), disambiguation_size=64)
ASKED: tuple[Surface, ...] = ("home", "watch_next", "shorts", "home", "watch_next")
WATCHES = 60  # more than a prompt holds, as with most viewers
CHANNELS = 400
START_S, STOP_S = 300.0, 60.0
REPLICA_TITLE = "ray::ServeReplica:freshet:recommender"


@dataclass(frozen=True)
class World:
    """Videos, viewers and what they ask: a function of its sizes."""

    num_videos: int
    num_users: int
    seed: int = 0

    @cached_property
    def videos(self) -> list[SemanticIdAssigned]:
        """The live videos, each at a semantic ID of its own."""
        rng = random.Random(self.seed)
        titles = list({one.video_id: one.title for one in load_timeline().uploads()}.values())
        taken: Counter[tuple[int, ...]] = Counter()
        videos = []
        for number in range(self.num_videos):
            codes = tuple(rng.randrange(size) for size in SPACE.codebook_sizes)
            part, title = divmod(number, len(titles))
            videos.append(
                SemanticIdAssigned(
                    video_id=f"video-{number}",
                    title=f"{titles[title]}, part {part + 1}",
                    channel=f"Channel {rng.randrange(CHANNELS)}",
                    codes=codes,
                    disambiguation_code=taken[codes],
                    codebook_version=SPACE.codebook_version,
                    embedding_f16="",
                    language="en",
                    duration_s=600.0,
                    upload_time_ms=now_ms() - rng.randrange(30 * 86_400_000),
                    upload_append_time_ms=0,
                    upload_position=-1,
                    assigned_time_ms=0,
                )
            )
            taken[codes] += 1
        return videos

    @cached_property
    def histories(self) -> dict[str, UserHistory]:
        """What each viewer watched, an hour ago and before."""
        rng, newest_ms = random.Random(self.seed + 1), now_ms() - 3_600_000
        return {
            user_id: user_history(
                user_id,
                [
                    Entry(
                        f"video-{rng.randrange(self.num_videos)}",
                        rng.randrange(5, 101),
                        rng.randrange(30, 600),
                        newest_ms - 60_000 * (WATCHES - place),
                        rng.choice(ASKED[:3]),
                    )
                    for place in range(WATCHES)
                ],
            )
            for user_id in (f"viewer-{number}" for number in range(self.num_users))
        }

    def requests(self) -> list[dict[str, Any]]:
        """Return a request of each viewer, on the surfaces that a model answers."""
        rng = random.Random(self.seed + 2)
        requests = []
        for number, user_id in enumerate(self.histories):
            surface = ASKED[number % len(ASKED)]
            asked: dict[str, Any] = {"user_id": user_id, "surface": surface, "k": 10}
            if surface == "watch_next":
                asked["context_video_id"] = f"video-{rng.randrange(self.num_videos)}"
            requests.append(asked)
        return requests


class Checkpoints:
    """Models of one tokenizer, each with weights of its own, written into the object store."""

    def __init__(self, world: World, store: Path, config: LrmConfig = NANO) -> None:
        """Train the tokenizer and write version 1."""
        texts = [f"{video.title} {video.channel} 100% 60s" for video in islice(world.videos, 5_000)]
        texts += ["User: unknown\nWatch history:", "\nhome:", "\nwatch_next after", "\nshorts:"]
        self.lrm: Lrm = build_lrm(texts, SPACE, config=config)
        self._store = store
        self.first = self.write(1)

    def write(self, version: int) -> CheckpointPromoted:
        """Write version `version` and return its announcement."""
        generator = torch.Generator().manual_seed(version)
        with torch.no_grad():
            for parameter in self.lrm.model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(0, 0.06, generator=generator)
        path = f"checkpoints/{LRM_MODEL_NAME}/{version:06d}"
        sha256 = save_lrm(self.lrm, self._store / path)
        return CheckpointPromoted(
            model_name=LRM_MODEL_NAME,
            model_version=version,
            codebook_version=SPACE.codebook_version,
            path=path,
            sha256=sha256,
            metrics={},
            promoted_time_ms=now_ms(),
        )


@dataclass(frozen=True)
class Stage:
    """The running endpoint."""

    settings: Settings
    folder: Path
    client: Producer
    process: MeasuredProcess
    url: str
    world: World
    checkpoints: Checkpoints

    def promote(self, promoted: CheckpointPromoted) -> float:
        """Announce a checkpoint, wait until the broker has it, and return when it was sent (wall clock)."""
        sent_s = time.time()
        now = promoted.model_copy(update={"promoted_time_ms": round(1000 * sent_s)})
        send(self.client, self.settings.kafka, CHECKPOINTS, LRM_MODEL_NAME, now)
        flush(self.client)
        return sent_s

    @property
    def ingress(self) -> psutil.Process:
        """The process that answers HTTP."""
        return psutil.Process(self.process.process.pid)

    def replicas(self) -> list[psutil.Process]:
        """Return the processes of the replicas, in the order in which they began."""
        found = []
        for child in self.ingress.children(recursive=True):
            with suppress(psutil.Error):
                if " ".join(child.cmdline()).startswith(REPLICA_TITLE):
                    found.append(child)
        return sorted(found, key=lambda child: child.create_time())

    def rss_bytes(self) -> int:
        """Return the resident memory of all that answers."""
        return sum(each.memory_info().rss for each in (self.ingress, *self.replicas()))

    def statuses(self, asks: int = 40) -> dict[str, dict[str, Any]]:
        """Ask a number of times what whoever answers holds; return what each replica that did said last."""
        found: dict[str, dict[str, Any]] = {}
        with httpx.Client(base_url=self.url, timeout=START_S) as http:
            for _ in range(asks):
                status = http.get("/v1/status").json()
                found[status["replica"]] = status
        return found

    def wait_ready(self, *, replicas: int, model_version: int) -> None:
        """Wait until that many replicas answer with a version.

        Raises:
            FreshetError: they do not.
        """

        def ready() -> bool:
            found = self.statuses(asks=10 * replicas).values()
            versions = [one["model_version"] for one in found if one["ready"]]
            return versions == [model_version] * replicas

        self.process.wait_for(
            ready, timeout_s=START_S, what=f"{replicas} replicas with version {model_version}"
        )


@contextmanager
def serving_stage(
    folder: Path, world: World, *, replicas: int, config: LrmConfig = NANO
) -> Iterator[Stage]:
    """Start everything in `folder`, with version 1 promoted; all of it ends with the context."""
    settings = load_settings()
    with start_broker(folder / "kafka", jars_dir=settings.kafka.jars_dir) as broker:
        settings = with_values(
            settings,
            var_dir=folder / "var",
            storage__root=str(folder / "store"),
            kafka__bootstrap_servers=broker.bootstrap_servers,
            serve__port=0,
            serve__replicas=replicas,
        )
        create_topics(settings.kafka)
        publish_tiny_codebook(ObjectStore(settings.storage.root), SPACE)
        checkpoints = Checkpoints(world, folder / "store", config)
        client = producer(settings.kafka)
        _fill(client, settings, world, checkpoints.first)
        with measured_process("freshet", ("serve",), settings, folder / "serve.log") as process:
            discovery = folder / "var" / "serve.json"
            process.wait_for(discovery.exists, timeout_s=START_S, what="endpoint")
            url = json.loads(discovery.read_text())["url"]
            stage = Stage(settings, folder, client, process, url, world, checkpoints)
            stage.wait_ready(replicas=replicas, model_version=1)
            try:
                yield stage
            finally:
                client.close()
                process.stop(STOP_S)


def _fill(client: Producer, settings: Settings, world: World, promoted: CheckpointPromoted) -> None:
    for video in world.videos:
        key = semantic_id_key(video.video_id, video.codebook_version)
        send(client, settings.kafka, SEMANTIC_IDS, key, video)
    for user_id, history in world.histories.items():
        send(client, settings.kafka, HISTORIES, user_id, history)
    send(client, settings.kafka, CHECKPOINTS, LRM_MODEL_NAME, promoted)
    flush(client)


def request_bodies(requests: Sequence[dict[str, Any]]) -> list[bytes]:
    """Return the requests as they go over HTTP."""
    return [json.dumps(request).encode() for request in requests]
