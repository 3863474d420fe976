"""The front door's own rules: what it does not repeat, and how errors end."""

from __future__ import annotations

from pathlib import Path

import pytest
from confluent_kafka import KafkaError, KafkaException

import freshet
from infra.settings import Settings
from infra.storage import ObjectStore
from models.codebook import CURRENT_KEY
from streams.events import LRM_MODEL_NAME
from workers.training_state import STATE_FILE, checkpoint_key

CHECKPOINT = f"{checkpoint_key(LRM_MODEL_NAME, 1)}/{STATE_FILE}"


class BegunError(Exception):
    """Raised in place of a bootstrap that has begun."""


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    """The object store of a command line whose bootstrap goes no further than its first step."""

    def begin(_: Settings) -> None:
        raise BegunError

    monkeypatch.setenv("FRESHET_STORAGE__ROOT", str(tmp_path))
    monkeypatch.setattr("workers.stack.kafka_running", begin)
    return ObjectStore(str(tmp_path))


def test_bootstrap_if_missing_does_nothing_where_a_codebook_and_an_lrm_are(
    store: ObjectStore, capsys: pytest.CaptureFixture[str]
) -> None:
    store.put_bytes(CURRENT_KEY, b"{}")
    store.put_bytes(CHECKPOINT, b"{}")
    with pytest.raises(SystemExit) as ended:
        freshet.main(["bootstrap", "--if-missing"])
    assert ended.value.code == 0
    assert "nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize("there", [[], [CURRENT_KEY], [CHECKPOINT]])
def test_bootstrap_if_missing_fits_where_either_is_missing(
    store: ObjectStore, there: list[str]
) -> None:
    for key in there:
        store.put_bytes(key, b"{}")
    with pytest.raises(BegunError):
        freshet.main(["bootstrap", "--if-missing"])


def test_error_of_kafka_is_one_sentence_and_a_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unreachable(_: Settings) -> None:
        raise KafkaException(KafkaError(KafkaError._TRANSPORT, "no broker answers"))

    monkeypatch.setenv("FRESHET_KAFKA__BOOTSTRAP_SERVERS", "elsewhere:9092")
    monkeypatch.setattr("workers.status.status", unreachable)
    with pytest.raises(SystemExit) as ended:
        freshet.main(["status"])
    assert ended.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("freshet: Kafka: no broker answers")
