"""The training loop on real Kafka and real Ray: rounds, a killed actor, a corrupt shard, announcements."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import ray

from infra.errors import ConfigError
from infra.kafka.broker import LocalBroker
from infra.ray_cluster import ensure_ray
from infra.settings import Settings, as_environment, with_values
from infra.storage import ObjectStore
from models.retriever import load_retriever
from models.training import TrainingConfig
from streams.admin import create_topics
from streams.catalogue import semantic_id_key
from streams.client import TopicReader, flush, producer, send, wait_until
from streams.codec import decode
from streams.codes import encode_embedding
from streams.events import (
    LRM_MODEL_NAME,
    TWO_TOWER_CLUSTER,
    TWO_TOWER_HASH,
    CheckpointPromoted,
    SemanticIdAssigned,
)
from streams.shards import ShardRow, write_shard
from streams.topics import CHECKPOINTS, SEMANTIC_IDS, SHARDS
from tests.lrm_factories import shard_row, some_videos, tiny_lrm
from tests.sealed_shards import sealed_shard
from tests.tiny_serving import publish_tiny_codebook
from tests.two_tower_factories import some_content, tiny_two_tower
from workers.training import TrainingLoop, refreshed_models, run_loops
from workers.training_actor import RoundOutcome
from workers.training_state import load_state, new_state, save_state
from workers.two_tower_state import TWO_TOWERS, save_two_tower

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[None]:
    with ensure_ray(Settings()):
        yield


@pytest.fixture
def settings(broker: LocalBroker, tmp_path: Path) -> Settings:
    settings = with_values(
        Settings(),
        var_dir=tmp_path,
        storage__root=str(tmp_path / "store"),
        kafka__bootstrap_servers=broker.bootstrap_servers,
        kafka__topic_prefix=f"{tmp_path.name}-",
        kafka__partitions=2,
        training__idle_poll_s=0.2,
        training__evaluate_max=4,
    )
    prepare(settings)
    return settings


def prepare(settings: Settings) -> None:
    create_topics(settings.kafka)
    store = ObjectStore(settings.storage.root)
    publish_tiny_codebook(store)
    state = new_state(tiny_lrm(), TrainingConfig(block_tokens=128, blocks_per_step=2), seed=1)
    state.model_version = 1
    state.anchor_rows = [shard_row("anchor", ["v1", "v2"])]
    record = {"shard_ids": [], "metrics": {}, "refused": ""}
    scratch = settings.var_dir / "scratch"
    save_state(state, store, LRM_MODEL_NAME, scratch=scratch, record=record)
    for name in TWO_TOWERS:
        two_tower = tiny_two_tower(name)
        two_tower.model_version = 1
        save_two_tower(two_tower, store, name, scratch=scratch, record=record)
    publish_videos(settings)


def publish_videos(settings: Settings) -> None:
    client, contents = producer(settings.kafka), some_content()
    for video_id, video in some_videos().items():
        event = SemanticIdAssigned(
            title=video.title, topics=video.topics, video_id=video_id, codes=video.semantic_id[:3],
            disambiguation_code=video.semantic_id[3], codebook_version=1, upload_time_ms=0,
            upload_append_time_ms=0, upload_position=0, assigned_time_ms=0, cluster_id=contents[video_id].cluster,
            embedding_f16=encode_embedding(contents[video_id].embedding_C),
        )  # fmt: skip
        send(client, settings.kafka, SEMANTIC_IDS, semantic_id_key(video_id, 1), event)
    flush(client)


def announce_shard(
    settings: Settings,
    number: int,
    rows: list[ShardRow],
    *,
    sha256: str = "",
    erased_users: Iterable[str] = (),
) -> None:
    store = ObjectStore(settings.storage.root)
    path = f"shards/test-{number}.parquet"
    found = store.put_bytes(path, write_shard(rows, erased_users=erased_users))
    event = sealed_shard(
        f"shard-{number}",
        (0, number * 10, number * 10 + 9),
        path=path,
        sha256=sha256 or found,
        rows=len(rows),
        watches=10,
    )
    client = producer(
        settings.kafka, transactional_id="sealer"
    )  # as the sealer does: a marker takes an offset
    client.init_transactions()
    client.begin_transaction()
    send(client, settings.kafka, SHARDS, "0", event)
    client.commit_transaction()


def some_rows(number: int) -> list[ShardRow]:
    return [
        shard_row(f"u{user}", [f"v{(number + user + step) % 24}" for step in range(5)])
        for user in range(4)
    ]


class Running:
    """A loop in a thread, and the outcomes of its rounds."""

    def __init__(self, settings: Settings, model_name: str = LRM_MODEL_NAME) -> None:
        self.outcomes: list[RoundOutcome] = []
        self.stopping = threading.Event()
        self.loop = TrainingLoop(settings, model_name=model_name)
        self._thread = threading.Thread(
            target=self.loop.run, args=(self.stopping,), kwargs={"on_round": self.outcomes.append}
        )
        self._thread.start()

    def await_rounds(self, count: int) -> None:
        wait_until(lambda: len(self.outcomes) >= count, timeout_s=240, what=f"{count} rounds")

    def stop(self) -> None:
        self.stopping.set()
        self._thread.join()
        self.loop.close()


def promoted(settings: Settings, model_name: str = LRM_MODEL_NAME) -> list[CheckpointPromoted]:
    with TopicReader(settings.kafka, [CHECKPOINTS]) as reader:
        found = [decode(CheckpointPromoted, message.value()) for _, message in reader.read_to_end()]
    return [one for one in found if one.model_name == model_name]


def await_learned(settings: Settings, shard_id: str) -> None:
    wait_until(
        lambda: any(shard_id in one.shard_ids for one in promoted(settings)),
        timeout_s=240,
        what=f"the round of {shard_id}",
    )


def test_rounds_train_announce_and_resume_where_they_stopped(
    ray_cluster: None, settings: Settings
) -> None:
    announce_shard(settings, 0, some_rows(0))
    first = Running(settings)
    first.await_rounds(1)
    first.stop()
    announce_shard(settings, 1, some_rows(1))
    second = Running(settings)
    second.await_rounds(1)
    second.stop()

    found = promoted(settings)
    assert [one.model_version for one in found] == [1, 2, 3]  # 1 was saved and not yet announced
    assert [one.shard_ids for one in found] == [(), ("shard-0",), ("shard-1",)]
    assert len({one.sha256 for one in found}) == 3
    assert "prequential_recall_at_10" in found[1].metrics
    state = load_state(
        ObjectStore(settings.storage.root), LRM_MODEL_NAME, 3, cache=settings.var_dir / "cache"
    )
    assert state.positions.next_shard_offset == 4  # two records, two markers


def test_round_is_repeated_when_the_actor_is_killed(ray_cluster: None, settings: Settings) -> None:
    running = Running(settings)
    pid = ray.get(running.loop.actor_pid())
    os.kill(pid, signal.SIGKILL)
    announce_shard(settings, 0, some_rows(0))
    running.await_rounds(1)
    running.stop()
    assert [one.shard_ids for one in promoted(settings)] == [(), ("shard-0",)]


def test_shard_that_is_not_what_was_announced_is_skipped(
    ray_cluster: None, settings: Settings
) -> None:
    announce_shard(settings, 0, some_rows(0), sha256="0" * 64)
    announce_shard(settings, 1, some_rows(1))
    running = Running(settings)
    await_learned(settings, "shard-1")
    running.stop()
    state = load_state(
        ObjectStore(settings.storage.root),
        LRM_MODEL_NAME,
        running.outcomes[-1].model_version,
        cache=settings.var_dir,
    )
    assert {row.user_id for row in state.reservoir.rows} == {"u0", "u1", "u2", "u3"}
    assert state.reservoir.seen == 4


def test_backlog_is_taken_shard_by_shard_and_none_twice(
    ray_cluster: None, settings: Settings
) -> None:
    for number in range(3):
        announce_shard(settings, number, some_rows(number))
    small = with_values(settings, training__round_watches_max=10)
    first = Running(small)
    first.await_rounds(2)
    first.stop()
    second = Running(small)
    await_learned(settings, "shard-2")
    second.stop()
    learned = [shard_id for one in promoted(settings) for shard_id in one.shard_ids]
    assert learned == ["shard-0", "shard-1", "shard-2"]


@pytest.mark.parametrize(
    ("moment", "model_name"),
    [
        ("_round", LRM_MODEL_NAME),
        ("_round", TWO_TOWER_CLUSTER),
        pytest.param("_conclude", LRM_MODEL_NAME, marks=pytest.mark.long),
        pytest.param("_conclude", TWO_TOWER_HASH, marks=pytest.mark.long),
    ],
)
def test_loop_killed_in_a_round_takes_the_same_again_loss_for_loss(
    ray_cluster: None, settings: Settings, tmp_path: Path, moment: str, model_name: str
) -> None:
    other = with_values(
        settings,
        var_dir=tmp_path / "other",
        storage__root=str(tmp_path / "other-store"),
        kafka__topic_prefix=f"whole{moment}-{model_name}-",
    )
    prepare(other)
    for each in (settings, other):
        announce_shard(each, 0, some_rows(0))
    whole = Running(other, model_name)
    whole.await_rounds(1)
    announce_shard(other, 1, some_rows(1))
    whole.await_rounds(2)
    whole.stop()

    killed = subprocess.Popen(
        [sys.executable, "-m", "tests.integration.stopped_training", moment, model_name],
        env=os.environ | as_environment(settings),
    )
    assert killed.wait(240) == -signal.SIGKILL
    announce_shard(
        settings, 1, some_rows(1)
    )  # waits: the round that was begun is repeated as it was
    resumed = Running(settings, model_name)
    resumed.await_rounds(1 if moment == "_conclude" else 2)
    resumed.stop()

    def learned(each: Settings) -> list[tuple[object, ...]]:
        return [(one.shard_ids, one.metrics, one.sha256) for one in promoted(each, model_name)]

    assert len(learned(other)) == 3
    assert learned(settings) == learned(other)


def test_loop_that_is_far_behind_learns_a_sample_of_all_that_waits(
    ray_cluster: None, settings: Settings
) -> None:
    for number in range(4):
        announce_shard(settings, number, some_rows(number))  # ten watches each, says their event
    behind = with_values(settings, training__round_watches_max=10, training__backlog_rounds_max=3)
    running = Running(behind)
    running.await_rounds(1)
    running.stop()
    [_, found] = promoted(settings)
    assert found.shard_ids == ("shard-0", "shard-1", "shard-2", "shard-3")
    state = load_state(
        ObjectStore(settings.storage.root), LRM_MODEL_NAME, 2, cache=settings.var_dir / "cache"
    )
    learned = sum(len(row.watches) for row in state.reservoir.rows)
    assert 0 < learned < 80
    assert found.metrics["watches_left_out"] == 80 - learned


def test_erased_user_is_in_no_later_checkpoint(ray_cluster: None, settings: Settings) -> None:
    announce_shard(settings, 0, some_rows(0))
    first = Running(settings)
    first.await_rounds(1)
    first.stop()
    announce_shard(settings, 1, [shard_row("u1", ["v2"]), shard_row("u9", ["v2"])])
    announce_shard(settings, 2, [shard_row("u7", ["v3"])], erased_users=["u1", "u9"])
    second = Running(settings)
    await_learned(settings, "shard-2")
    second.stop()
    newest = promoted(settings)[-1].model_version
    store = ObjectStore(settings.storage.root)
    state = load_state(store, LRM_MODEL_NAME, newest, cache=settings.var_dir / "cache")
    assert {row.user_id for row in state.reservoir.rows} == {"u0", "u2", "u3", "u7"}


def test_new_videos_alone_are_worth_a_round(ray_cluster: None, settings: Settings) -> None:
    running = Running(with_values(settings, training__new_videos_min=24))
    running.await_rounds(1)
    running.stop()
    assert running.outcomes[0].metrics["tokens"] > 0
    assert [one.shard_ids for one in promoted(settings)] == [(), ()]


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
