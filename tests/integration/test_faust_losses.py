"""Five ways in which Faust commits what nobody handled, and that none of them is left in Freshet's workers.

Each fault is caused twice on the real broker: to an agent as Faust's documentation shows it, which loses records, and
to one as our workers are made, which loses none. The first half keeps the second honest: where Faust loses nothing,
the fault was not caused.
"""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import KafkaException, TopicPartition

from infra.kafka.broker import LocalBroker
from infra.settings import KafkaSettings, Settings, as_environment
from streams.admin import create_topics
from streams.client import consumer, flush, producer, wait_until
from streams.topics import SWAPS
from tests.integration.faust_process import GROUP

pytestmark = pytest.mark.integration

RECORDS = 30
TIMEOUT_S = 120.0


class Losses:
    """An app's process, what it noted, and what its group committed."""

    def __init__(self, broker: LocalBroker, folder: Path, fault: str, shell: str) -> None:
        kafka = KafkaSettings(
            bootstrap_servers=broker.bootstrap_servers, topic_prefix=f"t{uuid.uuid4().hex[:8]}."
        )
        create_topics(kafka)
        self.settings = Settings(var_dir=folder, kafka=kafka)
        self._folder = folder
        self._command = [
            sys.executable, "-m", "tests.integration.faust_process", fault, shell, str(folder),
        ]  # fmt: skip
        self._processes: list[subprocess.Popen[bytes]] = []

    def send(self, *, poison_at: int | None = None) -> None:
        client = producer(self.settings.kafka)
        for number in range(RECORDS):
            value = b'{"number":nothing}' if number == poison_at else b'{"number":%d}' % number
            client.produce(SWAPS.in_cluster(self.settings.kafka), key=b"k", value=value)
        flush(client)

    def start(self) -> None:
        with (self._folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                self._command,
                env=os.environ | as_environment(self.settings),
                stdout=log,
                stderr=log,
            )
        self._processes.append(self.process)

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()

    def noted(self, file: str = "handled") -> list[int]:
        path = self._folder / file
        return [int(line) for line in path.read_text().splitlines()] if path.exists() else []

    def lost(self) -> set[int]:
        """What is committed and was never handled."""
        return set(range(self.committed())) - set(self.noted()) - set(self.noted("refused"))

    def committed(self) -> int:
        kafka = self.settings.kafka
        client = consumer(kafka, group=GROUP)
        asked = [TopicPartition(SWAPS.in_cluster(kafka), 0)]
        try:
            return max(0, client.committed(asked, timeout=60)[0].offset)
        except KafkaException:
            return 0  # the group's coordinator is loading
        finally:
            client.close()

    def wait_until_happened(self) -> None:
        happened = self._folder / "happened"
        wait_until(happened.exists, timeout_s=TIMEOUT_S, what="the fault")

    def wait_until_committed(self, offset: int = RECORDS) -> None:
        wait_until(
            lambda: self.committed() >= offset,
            timeout_s=TIMEOUT_S,
            what=f"the commit of {offset}",
            interval_s=0.5,
        )

    def finish(self) -> None:
        """Start a process without the fault, and let it handle what is left."""
        self.start()
        self.wait_until_committed()


@pytest.fixture
def losses(broker: LocalBroker, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Losses]:
    made = Losses(broker, tmp_path, *request.param)
    yield made
    made.close()


def case(fault: str, shell: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("losses", [(fault, shell)], indirect=True, ids=[shell])


@case("raises", "faust")
def test_faust_commits_a_record_whose_handling_raised(losses: Losses) -> None:
    losses.send()
    losses.start()
    losses.wait_until_committed()
    assert losses.lost() == {5}


@case("raises", "freshet")
def test_record_whose_handling_raised_is_handled_after_a_restart(losses: Losses) -> None:
    losses.send()
    losses.start()
    assert losses.process.wait(TIMEOUT_S) == 1
    assert losses.committed() <= 5
    losses.finish()
    assert losses.lost() == set()


@case("raises_in_batch", "faust")
def test_faust_commits_a_batch_that_raised_and_one_it_never_gave(losses: Losses) -> None:
    losses.send()
    losses.start()
    losses.wait_until_committed()
    assert losses.lost() >= set(range(10, 20))


@case("raises_in_batch", "freshet")
def test_batch_that_raised_is_handled_after_a_restart_and_so_is_the_next(losses: Losses) -> None:
    losses.send()
    losses.start()
    assert losses.process.wait(TIMEOUT_S) == 1
    assert losses.committed() <= 10
    losses.finish()
    assert losses.lost() == set()


@case("hangs", "faust")
def test_faust_commits_past_a_record_still_in_hand(losses: Losses) -> None:
    losses.send()
    losses.start()
    losses.wait_until_happened()
    losses.wait_until_committed(2)
    losses.process.kill()
    assert 0 in losses.lost()


@case("hangs", "freshet")
def test_nothing_is_committed_past_a_record_still_in_hand(losses: Losses) -> None:
    losses.send()
    losses.start()
    losses.wait_until_happened()
    wait_until(lambda: len(losses.noted()) == RECORDS - 1, timeout_s=TIMEOUT_S, what="the others")
    losses.process.kill()
    assert losses.committed() == 0
    losses.finish()
    assert losses.lost() == set()


@case("undecodable", "faust")
def test_faust_commits_what_it_cannot_decode_and_tells_no_handler(losses: Losses) -> None:
    losses.send(poison_at=7)
    losses.start()
    losses.wait_until_committed()
    assert losses.lost() == {7}


@case("undecodable", "freshet")
def test_what_cannot_be_decoded_is_refused_by_name_and_the_stream_goes_on(losses: Losses) -> None:
    losses.send(poison_at=7)
    losses.start()
    losses.wait_until_committed()
    assert losses.noted("refused") == [7]
    assert losses.lost() == set()


@case("stopped", "faust")
def test_faust_commits_the_record_that_a_stop_interrupted(losses: Losses) -> None:
    losses.send()
    losses.start()
    losses.wait_until_happened()
    losses.process.terminate()
    losses.process.wait(TIMEOUT_S)
    assert losses.lost() == {4}


@case("stopped", "freshet")
def test_record_that_a_stop_interrupted_is_handled_after_a_restart(losses: Losses) -> None:
    losses.send()
    losses.start()
    losses.wait_until_happened()
    losses.process.terminate()
    losses.process.wait(TIMEOUT_S)
    assert losses.committed() <= 4
    losses.finish()
    assert losses.lost() == set()
