"""Uploads workers that are killed, frozen, come and go: no two videos share a semantic ID, and the newest event wins.

The process is the real one. Videos have one of few titles, so that most share their codes with others.
"""

from __future__ import annotations

import random
import signal
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from infra.kafka.broker import LocalBroker
from infra.settings import Settings, StorageSettings
from models.quantizer import QuantizerConfig
from streams.catalogue import Catalogue, parse_semantic_id_key, upload_position
from streams.client import TopicReader
from streams.codec import decode
from streams.events import SemanticIdAssigned, VideoRemoved, VideoUploaded
from streams.movielens import load_timeline
from streams.topics import SEMANTIC_IDS
from tests.integration.uploads_process import TIMEOUT_S, UploadsProcess, worker_settings
from workers.bootstrap_codebook import fit_codebook

pytestmark = pytest.mark.integration

CONFIG = QuantizerConfig(codebook_sizes=(32, 16, 8), embedding_dim=32)
TITLES = ("Cleo the dog fetches", "How to bake bread", "Space telescope launch, live")
Event = VideoUploaded | VideoRemoved


@pytest.fixture(scope="module")
def store(encoders_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a small codebook."""
    root = tmp_path_factory.mktemp("store")
    (root / "encoders").symlink_to(encoders_directory)
    events = (each.event for each in load_timeline().events)
    films = (each for each in events if isinstance(each, VideoUploaded))
    fit_codebook(
        [film for film, _ in zip(films, range(120), strict=False)],
        Settings(storage=StorageSettings(root=str(root))),
        config=CONFIG,
    )
    return root


@pytest.fixture
def workers(broker: LocalBroker, store: Path, tmp_path: Path) -> Iterator[UploadsProcess]:
    running = UploadsProcess(worker_settings(broker.bootstrap_servers, store, tmp_path))
    yield running
    running.close()


def events_of(rng: random.Random, count: int) -> list[Event]:
    """Uploads, edits and removals of a few videos under the few titles."""
    videos = [f"v{number}" for number in range(12)]
    return [
        VideoRemoved(event_time_ms=time, video_id=rng.choice(videos))
        if rng.random() < 0.2
        else VideoUploaded(
            event_time_ms=time, video_id=rng.choice(videos), title=rng.choice(TITLES)
        )
        for time in range(1, count + 1)
    ]


class Outcome:
    """What `video.semantic_ids` says, and whether it ever said anything that must not be."""

    def __init__(self, settings: Settings) -> None:
        self._reader = TopicReader(settings.kafka, [SEMANTIC_IDS])
        self._positions: dict[bytes, int] = defaultdict(int)
        self._holders: dict[tuple[int, ...], str] = {}
        self._places: dict[tuple[str, tuple[int, ...]], tuple[int, ...]] = {}
        self.catalogue = Catalogue(1)

    def titles(self) -> dict[str, str]:
        """Return the live videos as of now, and check every record on the way."""
        for _, message in self._reader.poll():
            key, value = message.key(), message.value()
            position = upload_position(message.headers())
            assert position is not None
            assert position >= self._positions[key], "an older event was written after a newer"
            self._positions[key] = position
            if value is not None:
                self._check(decode(SemanticIdAssigned, value))
            self.catalogue.apply(key, value)
            assert parse_semantic_id_key(key)[1] == 1
        return {video_id: video.title for video_id, video in self.catalogue.videos.items()}

    def _check(self, video: SemanticIdAssigned) -> None:
        holder = self._holders.setdefault(video.semantic_id, video.video_id)
        assert holder == video.video_id, "two videos have been given one semantic ID"
        place = self._places.setdefault((video.video_id, video.codes), video.semantic_id)
        assert place == video.semantic_id, "one video has been given two places under its codes"


@pytest.fixture
def outcome(workers: UploadsProcess) -> Outcome:
    return Outcome(workers.settings)


def expected(events: list[Event]) -> dict[str, str]:
    """The title of each video whose newest event is no removal."""
    newest = {event.video_id: event for event in events}
    return {
        video_id: event.title
        for video_id, event in newest.items()
        if isinstance(event, VideoUploaded)
    }


def wait_for_the_newest(workers: UploadsProcess, outcome: Outcome, events: list[Event]) -> None:
    workers.wait_for(
        lambda: outcome.titles() == expected(events),
        f"the newest of each video; {expected(events)}",
    )


def kill_and_start(workers: UploadsProcess) -> None:
    workers.kill()
    workers.start()


def stop_one_of_two(workers: UploadsProcess) -> None:
    first = workers.process
    workers.start()
    first.terminate()


CHANGES: list[Callable[[UploadsProcess], None]] = [
    kill_and_start,
    UploadsProcess.start,
    stop_one_of_two,
]


def race(workers: UploadsProcess, outcome: Outcome, rng: random.Random) -> None:
    """Send random events while the workers change in random ways, and check what comes of it."""
    events: list[Event] = []
    for change in [*rng.choices(CHANGES, k=2), kill_and_start]:
        more = events_of(rng, 40)
        sent = rng.randrange(40)
        workers.send(more[:sent])
        for _ in range(rng.randrange(6)):
            outcome.titles()
        change(workers)
        workers.send(more[sent:])
        events += more
    wait_for_the_newest(workers, outcome, events)
    assert workers.dead_letters == []


def test_newest_event_wins_while_workers_die_and_share_partitions_anew(
    workers: UploadsProcess, outcome: Outcome
) -> None:
    race(workers, outcome, random.Random(1))


@pytest.mark.long
@pytest.mark.parametrize("seed", range(2, 14))
def test_newest_event_wins_however_workers_come_and_go(
    workers: UploadsProcess, outcome: Outcome, seed: int
) -> None:
    race(workers, outcome, random.Random(seed))


@pytest.mark.parametrize(
    "seed", [1, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(2, 8))]
)
def test_worker_frozen_until_it_lost_its_partitions_writes_nothing_when_it_wakes(
    workers: UploadsProcess, outcome: Outcome, seed: int
) -> None:
    rng = random.Random(seed)
    frozen, events = workers.process, events_of(rng, 120)
    workers.send(events[:60])
    workers.wait_for(lambda: bool(outcome.titles()), "the first assignments")
    frozen.send_signal(signal.SIGSTOP)  # with most of them in hand
    workers.start()
    workers.send(events[60:90])
    wait_for_the_newest(workers, outcome, events[:90])  # after the session has timed out

    frozen.send_signal(signal.SIGCONT)
    workers.send(events[90:])
    wait_for_the_newest(workers, outcome, events)
    assert workers.stop() == 0  # whoever is left does the rest alone
    frozen.terminate()
    # It joined again, or found that it was fenced and may have been ending already, deaf to signals.
    assert frozen.wait(TIMEOUT_S) in (0, 1, -signal.SIGTERM)
    assert outcome.titles() == expected(events)
