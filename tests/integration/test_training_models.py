"""The training loops of all models in one process, on real Kafka and real Ray."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from infra.errors import ConfigError
from infra.kafka.broker import LocalBroker
from infra.settings import Settings, with_values
from infra.storage import ObjectStore
from models.retriever import load_retriever
from streams.client import wait_until
from streams.events import LRM_MODEL_NAME, TWO_TOWER_CLUSTER, TWO_TOWER_HASH
from tests.integration.training_stage import announce_shard, prepared, promoted, some_rows
from workers.training import TrainingLoop, refreshed_models, run_loops

pytestmark = pytest.mark.integration


@pytest.fixture
def settings(broker: LocalBroker, tmp_path: Path) -> Settings:
    return prepared(broker, tmp_path)


def test_models_are_refreshed_side_by_side_and_each_learns_every_shard_once(
    ray_cluster: None, settings: Settings
) -> None:
    names = refreshed_models(settings)
    assert names == list(settings.training.models)
    for number in range(2):
        announce_shard(settings, number, some_rows(number))
    small = with_values(settings, training__round_watches_max=10)
    stopping = threading.Event()
    loops = [TrainingLoop(small, model_name=name) for name in names]
    thread = threading.Thread(target=run_loops, args=(loops, stopping))
    thread.start()
    for name in names:
        wait_until(
            lambda name=name: len(promoted(settings, name)) == 3,  # type: ignore[misc]
            timeout_s=240,
            what=f"two rounds of {name}",
        )
    stopping.set()
    thread.join()
    for loop in loops:
        loop.close()
    for name in names:
        learned = [shard_id for one in promoted(settings, name) for shard_id in one.shard_ids]
        assert learned == ["shard-0", "shard-1"]
    newest = promoted(settings, TWO_TOWER_HASH)[-1]
    retriever = load_retriever(Path(settings.storage.root) / newest.path, sha256=newest.sha256)
    assert len(retriever.rank([["v0"]], top_k=10, excluded=[["v0"]])[0]) == 10


def test_two_towers_that_were_never_fitted_keep_nothing_from_starting(settings: Settings) -> None:
    store = ObjectStore(settings.storage.root)
    store.remove(f"checkpoints/{TWO_TOWER_HASH}")
    assert refreshed_models(settings) == [LRM_MODEL_NAME, TWO_TOWER_CLUSTER]
    store.remove(f"checkpoints/{LRM_MODEL_NAME}")
    with pytest.raises(ConfigError, match="no checkpoint of 'lrm'"):
        TrainingLoop(settings, model_name=refreshed_models(settings)[0])
    with pytest.raises(ConfigError, match="no checkpoint of two_tower_hash in"):
        refreshed_models(with_values(settings, training__models=(TWO_TOWER_HASH,)))
