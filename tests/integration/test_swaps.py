"""Models swapped under requests, on two replicas as `freshet serve` starts them: no request fails, no answer is mixed.

The tests run in the order of the file, and somebody asks all the time; the last looks at all the answers.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
import pytest

from infra.kafka.broker import LocalBroker
from infra.storage import ObjectStore, sha256_of
from models.lrm import WEIGHTS, Lrm, load_lrm
from models.prompts import Ask
from models.recommend import Request, recommend
from models.surface_adapters import load_adapter
from models.trie import LiveTrie
from streams.catalogue import semantic_id_key
from streams.client import flush, producer, send, wait_until
from streams.events import TWO_TOWER_CLUSTER, SwapReported
from streams.topics import CHECKPOINTS, SEMANTIC_IDS, SWAPS
from tests.integration.serving_process import REACT_S, START_S, Endpoint, new_settings, start
from tests.tiny_serving import (
    SPACE,
    assigned,
    publish_tiny_codebook,
    save_surface_adapter,
    save_two_tower,
    with_content,
)

pytestmark = pytest.mark.integration

NUM_VIDEOS, K, REPLICAS = 30, 5, 2
VIDEOS = {f"v-{number}": with_content(assigned(number), number) for number in range(NUM_VIDEOS)}
Answer = tuple[tuple[str, float], ...]


@dataclass
class Asked:
    """What somebody who asks all the time was answered: in which version, and what."""

    answers: list[tuple[int, Answer]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    stopping: threading.Event = field(default_factory=threading.Event)

    def ask_on(self, url: str) -> None:
        with httpx.Client(base_url=url, timeout=REACT_S) as http:
            while not self.stopping.is_set():
                response = http.post("/v1/recommendations", json={"k": K})
                if response.status_code == 200:
                    found = response.json()
                    shown = tuple((one["video_id"], one["score"]) for one in found["items"])
                    self.answers.append((found["model_version"], shown))
                else:
                    self.failures.append(response.text)
                time.sleep(0.05)


@pytest.fixture(scope="module")
def endpoint(broker: LocalBroker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    """Two replicas with the first model, which has no adapters."""
    folder = tmp_path_factory.mktemp("swaps")
    settings = new_settings(broker, SERVE__REPLICAS=str(REPLICAS))
    publish_tiny_codebook(ObjectStore(str(folder / "store")))
    client = producer(settings.kafka)
    for video in VIDEOS.values():
        send(client, settings.kafka, SEMANTIC_IDS, semantic_id_key(video.video_id, 1), video)
    flush(client)
    endpoint = start(settings, folder)
    endpoint.promote(endpoint.checkpoint(1))
    until_all_serve(endpoint, 1)
    yield endpoint
    endpoint.http.close()
    endpoint.process.terminate()
    endpoint.process.wait(START_S)


@pytest.fixture(scope="module")
def asked(endpoint: Endpoint) -> Iterator[Asked]:
    asked = Asked()
    askers = [
        threading.Thread(target=asked.ask_on, args=(str(endpoint.http.base_url),)) for _ in range(2)
    ]
    for one in askers:
        one.start()
    yield asked
    asked.stopping.set()
    for one in askers:
        one.join()


def served(endpoint: Endpoint) -> dict[str, int]:
    """The version of each replica, as far as a few questions find them."""
    statuses = [endpoint.status() for _ in range(8)]
    return {one["replica"]: one["model_version"] for one in statuses}


def until_all_serve(endpoint: Endpoint, version: int, *, timeout_s: float = REACT_S) -> None:
    def all_do() -> bool:
        found = served(endpoint)
        return len(found) == REPLICAS and set(found.values()) == {version}

    wait_until(all_do, timeout_s=timeout_s, what=f"version {version} on {REPLICAS} replicas")


def replica_processes(endpoint: Endpoint) -> list[psutil.Process]:
    children = psutil.Process(endpoint.process.pid).children(recursive=True)
    return [one for one in children if "ServeReplica:freshet:recommender" in _title(one)]


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def reports(endpoint: Endpoint, model_name: str, version: int) -> Counter[str]:
    found = endpoint.read(SWAPS, SwapReported)
    return Counter(
        one.outcome for one in found if (one.model_name, one.model_version) == (model_name, version)
    )


def promote_with_adapter(endpoint: Endpoint, version: int) -> None:
    base = endpoint.checkpoint(version)
    adapter = save_surface_adapter(endpoint.folder / "store", base, "home", seed=version)
    client = producer(endpoint.settings.kafka)
    for promoted in (base, adapter):
        send(client, endpoint.settings.kafka, CHECKPOINTS, promoted.model_name, promoted)
    flush(client)


def test_base_and_adapters_are_swapped_on_every_replica(endpoint: Endpoint, asked: Asked) -> None:
    for version in (2, 3, 4):
        promote_with_adapter(endpoint, version)
        until_all_serve(endpoint, version)
        endpoint.until(
            lambda version=version: reports(endpoint, "lrm.home", version)["succeeded"] == REPLICAS,  # type: ignore[misc]
            f"the adapter of version {version}",
        )
    assert asked.failures == []


def test_two_tower_is_swapped_on_every_replica(endpoint: Endpoint, asked: Asked) -> None:
    endpoint.promote(save_two_tower(endpoint.folder / "store", TWO_TOWER_CLUSTER, 1))
    endpoint.until(
        lambda: reports(endpoint, TWO_TOWER_CLUSTER, 1)["succeeded"] == REPLICAS, "the two-tower"
    )
    assert set(served(endpoint).values()) == {4}


def test_corrupt_checkpoint_is_rejected_by_every_replica(endpoint: Endpoint, asked: Asked) -> None:
    promoted = endpoint.checkpoint(5)
    path = endpoint.folder / "store" / promoted.path / WEIGHTS
    path.write_bytes(path.read_bytes()[:-1])
    endpoint.promote(promoted)
    endpoint.until(lambda: reports(endpoint, "lrm", 5)["rejected"] == REPLICAS, "rejections")
    assert set(served(endpoint).values()) == {4}


def test_replica_killed_while_it_loads_is_replaced_by_one_with_the_current_pointer(
    endpoint: Endpoint, asked: Asked
) -> None:
    promoted = endpoint.checkpoint(6)
    path = endpoint.folder / "store" / promoted.path / WEIGHTS
    weights, pipe = path.read_bytes(), path.with_name("pipe")
    kept = path.rename(path.with_name("kept"))
    os.mkfifo(path)
    writing = os.open(path, os.O_RDWR)  # whoever reads the weights waits for what is written here
    before = replica_processes(endpoint)
    assert len(before) == REPLICAS
    endpoint.promote(promoted)
    endpoint.until(lambda: all(_has_open(one, path) for one in before), "loading")
    path.rename(pipe)
    kept.rename(path)
    victim = before[0]
    victim.kill()
    victim.wait(REACT_S)
    sent = len(asked.answers)
    endpoint.until(lambda: len(asked.answers) > sent + 20, "answers without it")
    with os.fdopen(writing, "wb") as file:
        file.write(weights)  # the other one goes on
    until_all_serve(endpoint, 6, timeout_s=START_S)  # a process starts
    after = {one.pid for one in replica_processes(endpoint)}
    assert len(after) == REPLICAS
    assert victim.pid not in after
    assert before[1].pid in after
    assert asked.failures == []


def _has_open(process: psutil.Process, path: Path) -> bool:
    folder = Path(f"/proc/{process.pid}/fd")
    found = []
    for link in folder.iterdir():
        try:
            found.append(link.readlink())
        except FileNotFoundError:  # closed since
            continue
    return path in found


def test_pointer_back_is_followed_by_every_replica_also_by_the_one_that_never_had_it(
    endpoint: Endpoint, asked: Asked
) -> None:
    promoted = endpoint.checkpoint(4)  # the same seed: the same weights
    endpoint.promote(promoted)
    until_all_serve(endpoint, 4)


def test_no_request_failed_and_every_answer_is_of_the_version_it_names(
    endpoint: Endpoint, asked: Asked
) -> None:
    asked.stopping.set()
    assert asked.failures == []
    distinct: defaultdict[int, set[Answer]] = defaultdict(set)
    for version, answer in asked.answers:
        distinct[version].add(answer)
    assert set(distinct) == {1, 2, 3, 4, 6}
    for version, answers in distinct.items():
        expected = expected_answers(endpoint.folder / "store", version)
        wrong = [one for one in answers if not any(is_like(one, other) for other in expected)]
        assert wrong == [], (version, expected)
    for version in (
        3,
        4,
    ):  # their surface had an adapter before them, so the bare base never answered
        base, adapted = expected_answers(endpoint.folder / "store", version)
        assert not any(is_like(one, base) for one in distinct[version])
        assert any(is_like(one, adapted) for one in distinct[version])


def expected_answers(store: Path, version: int) -> list[Answer]:
    """What the base of a version says, and what it says with its adapter, where it has one."""
    folder = store / f"checkpoints/lrm/{version:06d}"
    base = load_lrm(folder)
    if version not in (2, 3, 4):
        return [answer_of(base)]
    adapter = load_adapter(
        base, folder / "adapters" / "home", base_sha256=sha256_of(folder / WEIGHTS)
    )
    return [answer_of(base), answer_of(adapter)]


def answer_of(lrm: Lrm) -> Answer:
    trie = LiveTrie(SPACE)
    for video in VIDEOS.values():
        trie.insert(video.semantic_id, video.video_id, video.upload_time_ms)
    [found] = recommend(
        lrm,
        [Request(viewer=None, watches=(), ask=Ask("home"))],
        trie.view,
        VIDEOS,
        top_k=K,
        beam_width=20,
    )
    return tuple((one.video_id, one.log_prob) for one in found)


def is_like(answer: Answer, expected: Answer) -> bool:
    """Whether the videos are the same, and the scores but for what batching rounds."""
    same = [one[0] for one in answer] == [one[0] for one in expected]
    return same and all(
        abs(one[1] - other[1]) < 1e-3 for one, other in zip(answer, expected, strict=True)
    )
