"""The catalogue worker's process on the real broker, in its own memory and with a server; who asks it; the commands."""

from __future__ import annotations

import http.client
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

import freshet
from infra.claim import claim
from infra.errors import ConfigError, TransientError
from infra.kafka.broker import LocalBroker
from infra.settings import QdrantSettings, Settings, as_environment, with_values
from infra.storage import ObjectStore
from models.codebook import CodebookManifest, publish_codebook
from serve.neighbours import Neighbours
from streams.client import wait_until
from streams.events import to_json
from streams.neighbours import address_path, catalogue_url
from tests.catalogue_records import record, removal
from tests.qdrant_server import QdrantServer, qdrant_running
from tests.topic_records import publish, publish_raw, settings_with_topics
from workers.catalogue import LOCK_NAME
from workers.catalogue_endpoint import BODY_MAX_BYTES, ask_to_rebuild
from workers.catalogue_index import UPSERT_BATCH, CatalogueIndex, asked_index
from workers.video_trace import trace_video

pytestmark = pytest.mark.integration

START_S = 300.0
REMOVAL_S = 5.0  # what is promised of a removed video
VIDEOS = 40


@pytest.fixture
def settings(broker: LocalBroker, tmp_path: Path) -> Settings:
    """Topics and a folder of this test's own, with some videos in a row."""
    found = settings_with_topics(broker, tmp_path)
    publish(found, *(record(number) for number in range(VIDEOS)))
    return found


class CatalogueProcess:
    """The worker in a process of its own."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        settings.var_dir.mkdir(parents=True, exist_ok=True)
        self.log_path = settings.var_dir / "catalogue.log"
        self.start()

    def start(self) -> None:
        environment = os.environ | as_environment(self.settings)
        command = [sys.executable, "-m", "freshet", "worker", "catalogue"]
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(command, env=environment, stderr=log, stdout=log)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


Start = Callable[[Settings], CatalogueProcess]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts workers, which end with the test."""
    started: list[CatalogueProcess] = []

    def run(settings: Settings) -> CatalogueProcess:
        started.append(CatalogueProcess(settings))
        return started[-1]

    yield run
    for process in started:
        process.kill()


class Asking:
    """Asks as a replica does, and waits for an answer."""

    def __init__(self, settings: Settings) -> None:
        self._neighbours = Neighbours(settings, timeout_s=30.0, retry_s=0.05)

    def near(self, video_id: str, k: int = 2) -> list[str]:
        found = self._neighbours.of(video_id, k, codebook_version=1)
        return [each.video_id for each in found]

    def until(
        self, video_id: str, expected: list[str], *, k: int = 2, timeout_s: float = START_S
    ) -> None:
        wait_until(
            lambda: self.near(video_id, k) == expected,
            timeout_s=timeout_s,
            what=f"{expected} near {video_id}",
            interval_s=0.02,
        )


def test_worker_answers_for_new_edited_and_removed_videos(settings: Settings, start: Start) -> None:
    start(settings)
    asking = Asking(settings)
    asking.until("v0", ["v1", "v2"])
    publish(settings, record(0.25, name="new"))
    asking.until("v0", ["new", "v1"])
    publish(settings, record(38.5, name="new", title="Edited"))
    asking.until("v39", ["new", "v38"])
    assert asking.near("v0") == ["v1", "v2"]
    assert Neighbours(settings, timeout_s=30).of("v39", 1, codebook_version=1)[0].title == "Edited"
    publish(settings, removal("v1"))
    asking.until("v0", ["v2", "v3"], timeout_s=REMOVAL_S)
    assert asking.near("v1") == []
    # What the real client asks and reads is the same.
    with asked_index(settings) as index:
        found = index.neighbours("v0", 2, codebook_version=1)
        assert [each.video_id for each in found] == ["v2", "v3"]
        assert index.neighbours("v1", 2, codebook_version=1) == []
        assert index.neighbours("v0", 2, codebook_version=9) == []


def test_poison_and_another_codebook_leave_the_rest_as_it_is(
    settings: Settings, start: Start
) -> None:
    start(settings)
    asking = Asking(settings)
    asking.until("v0", ["v1", "v2"])
    topic = record(0)[0]
    for key, value in ((b"1:v0", b"{poison"), (b"no key", b"{}"), (None, None)):
        publish_raw(settings, topic, key, value)
    publish(settings, record(0.5, name="other", codebook_version=2), record(0.25, name="new"))
    asking.until("v0", ["new", "v1"])


def test_killed_worker_is_found_again_with_what_happened_meanwhile(
    settings: Settings, start: Start
) -> None:
    worker = start(settings)
    asking = Asking(settings)
    asking.until("v0", ["v1", "v2"])
    worker.kill()
    assert catalogue_url(settings)  # it left its address behind
    assert asking.near("v0") == []
    publish(settings, removal("v1"), record(0.25, name="new"))
    worker.start()
    asking.until("v0", ["new", "v2"])


def test_stopped_worker_takes_its_address_with_it_and_a_second_one_is_refused(
    settings: Settings, start: Start
) -> None:
    worker = start(settings)
    Asking(settings).until("v0", ["v1", "v2"])
    second = start(settings)
    assert second.process.wait(START_S) == 2
    assert "another catalogue worker" in second.log_path.read_text()
    assert Asking(settings).near("v0") == ["v1", "v2"]
    worker.process.send_signal(signal.SIGTERM)
    assert worker.process.wait(START_S) == 0
    assert not address_path(settings).exists()
    with pytest.raises(ConfigError, match="freshet worker catalogue"):
        ask_to_rebuild(settings, lambda done, total: None)
    claim(settings.var_dir / LOCK_NAME, "test").close()


def test_address_answers_only_those_who_read_the_file_and_only_what_it_should(
    settings: Settings, start: Start
) -> None:
    start(settings)
    Asking(settings).until("v0", ["v1", "v2"])
    url = catalogue_url(settings)
    host = re.match(r"http://127\.0\.0\.1:\d+", url)
    assert host is not None
    query = f"{url}/collections/freshet-catalogue-1/points/query"
    assert httpx.post(f"{host[0]}/rebuild").status_code == 404
    assert httpx.post(f"{url}/collections/freshet-catalogue-1/points").status_code == 404
    for body in (b"", b"{", b"[]", b"{}", b'{"query": 1}', b'{"query": "x"}', b'{"query": "x", "limit": 0}',
                 b'{"query": "x", "limit": 100000}', b'{"query": {"recommend": {}}}'):  # fmt: skip
        assert httpx.post(query, content=body).status_code == 400, body
    assert announced(query, BODY_MAX_BYTES + 1) == announced(query, -1) == 413
    assert httpx.get(url).status_code == 501
    assert Asking(settings).near("v0") == ["v1", "v2"]


def announced(url: str, length: int) -> int:
    """Return the status of a call that only says how long its body will be."""
    parts = httpx.URL(url)
    connection = http.client.HTTPConnection(parts.host, parts.port or 80, timeout=START_S)
    connection.putrequest("POST", parts.path)
    connection.putheader("Content-Length", str(length))
    connection.endheaders()
    status = connection.getresponse().status
    connection.close()
    return status


def test_server_that_is_named_is_kept_in_step_and_asked_directly(
    settings: Settings, start: Start
) -> None:
    with qdrant_running() as server:
        named = with_values(settings, qdrant__url=server.url)
        put(server, record(0.1, name="stale"))
        worker = start(named)
        asking = Asking(named)
        asking.until("v0", ["v1", "v2"])
        publish(settings, removal("v1"))
        asking.until("v0", ["v2", "v3"], timeout_s=REMOVAL_S)
        assert not address_path(settings).exists()

        server.failing = True
        publish(settings, removal("v2"))
        wait_until(
            lambda: "catalogue_out_of_step" in worker.log_path.read_text(),
            timeout_s=START_S,
            what="the failure",
        )
        assert asking.near("v0") == []
        server.failing = False
        asking.until("v0", ["v3", "v4"])


def put(server: QdrantServer, *sent: tuple[object, str, object]) -> None:
    """Put videos into a server that the topic knows nothing of."""
    index = CatalogueIndex(QdrantSettings(url=server.url))
    index.apply((key.encode(), to_json(video)) for _, key, video in sent)  # type: ignore[arg-type]
    index.close()


@pytest.mark.parametrize("where", ["in memory", "on a server"])
def test_rebuild_takes_in_what_came_meanwhile_and_leaves_nothing_else(
    settings: Settings, where: str
) -> None:
    many = 2 * UPSERT_BATCH
    publish(settings, *(record(number) for number in range(many)), removal("v0"))
    with qdrant_running() as server:
        url = server.url if where == "on a server" else ""
        index = CatalogueIndex(QdrantSettings(url=url))
        for number in (0, 9999):  # one was removed since, the other never was in this topic
            _, key, video = record(number)
            assert video is not None
            index.apply([(key.encode(), to_json(video))])
        progress: list[tuple[int, int]] = []

        def report(done: int, total: int) -> None:
            progress.append((done, total))
            if len(progress) == 1:  # another writer is ahead of the rebuild
                for number in (2, many - 2):
                    publish(settings, removal(f"v{number}"))
                    index.apply([(removal(f"v{number}")[1].encode(), None)])
                publish(settings, record(3, title="Edited"), record(0, title="Back"))

        rebuilt = index.rebuild(settings, on_progress=report)

        assert rebuilt.videos == many - 1
        assert progress[-1] == (many - 1, many - 1)

        def near(video_id: str, k: int = 2) -> list[str]:
            return [each.video_id for each in index.neighbours(video_id, k, codebook_version=1)]

        assert near("v1") == ["v0", "v3"]
        assert (near("v2"), near(f"v{many - 2}"), near("v9999")) == ([], [], [])
        titles = {each.title for each in index.neighbours("v1", 2, codebook_version=1)}
        assert titles == {"Edited", "Back"}
        assert len(index.neighbours("v1", 1000, codebook_version=1)) == many - 3
        index.close()


Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """The command line: exit status, and what it printed (on stderr, where it failed)."""

    def call(*arguments: str, **values: object) -> tuple[int, str]:
        for name, value in as_environment(with_values(settings, **values)).items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit) as ended:
            freshet.main(list(arguments))
        printed = capsys.readouterr()
        return ended.value.code, printed.err if ended.value.code else printed.out  # type: ignore[return-value]

    return call


def publish_manifest(settings: Settings) -> None:
    empty = CodebookManifest(
        codebook_version=1, codebook_sizes=(16, 8), disambiguation_size=64, embedding_dim=2,
        encoders_sha256="", quantizer={}, card={}, files={},
    )  # fmt: skip
    publish_codebook(ObjectStore(settings.storage.root), empty, {})


def test_commands_ask_the_worker_and_let_it_rebuild(
    settings: Settings, start: Start, run: Run
) -> None:
    publish_manifest(settings)
    status, printed = run("catalogue", "rebuild")
    assert (status, "no catalogue worker runs" in printed) == (2, True)

    worker = start(settings)
    Asking(settings).until("v0", ["v1", "v2"])
    assert run("catalogue", "rebuild") == (0, f"{VIDEOS} videos are in the catalogue\n")
    status, printed = run("catalogue", "neighbours", "v0", "--k", "2")
    assert status == 0
    assert [line.split()[-3] for line in printed.splitlines()] == ["v1", "v2"]
    status, printed = run("catalogue", "neighbours", "nobody")
    assert (status, "nothing is near 'nobody'" in printed) == (2, True)

    trace = trace_video(settings, "v0", neighbours=2)
    assert trace.near_by == "Qdrant in the catalogue worker"
    assert [each.video_id for each in trace.neighbours] == ["v1", "v2"]
    worker.kill()  # its address stays
    exact = trace_video(settings, "v0", neighbours=2)
    assert exact.near_by == f"exact, among {VIDEOS} live videos"
    assert [each[:3] for each in exact.neighbours] == [each[:3] for each in trace.neighbours]
    status, printed = run("catalogue", "rebuild")
    assert (status, "does not answer" in printed) == (1, True)
    with pytest.raises(TransientError), asked_index(settings) as index:
        index.neighbours("v0", 2, codebook_version=1)


def test_rebuild_command_fills_a_server_that_lost_everything(settings: Settings, run: Run) -> None:
    with qdrant_running() as server:
        status, printed = run("catalogue", "rebuild", qdrant__url=server.url)
        assert (status, printed) == (0, f"{VIDEOS} videos are in the catalogue\n")
        named = with_values(settings, qdrant__url=server.url)
        assert Asking(named).near("v0") == ["v1", "v2"]
