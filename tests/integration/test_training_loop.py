"""The training loop on real Kafka and real Ray: rounds, a killed actor, a corrupt shard, announcements."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import ray
from confluent_kafka import KafkaError, KafkaException, Message
from prometheus_client import REGISTRY

from infra.errors import TransientError
from infra.kafka.broker import LocalBroker
from infra.settings import Settings, as_environment, with_values
from infra.storage import ObjectStore
from models.lrm import load_lrm
from models.surface_adapters import load_adapter
from streams.client import TopicReader, flush, producer, send, wait_until
from streams.events import (
    LRM_MODEL_NAME,
    TWO_TOWER_CLUSTER,
    TWO_TOWER_HASH,
    ImpressionItem,
    ImpressionsShown,
)
from streams.topics import CHECKPOINTS, IMPRESSIONS, Topic
from tests.integration.training_stage import (
    Running,
    announce_shard,
    await_learned,
    prepare,
    prepared,
    promoted,
    some_rows,
)
from tests.lrm_factories import shard_row
from workers.training import TrainingLoop
from workers.training_intake import TrainingIntake
from workers.training_state import Plan, Positions, load_state

pytestmark = pytest.mark.integration


@pytest.fixture
def settings(broker: LocalBroker, tmp_path: Path) -> Settings:
    return prepared(broker, tmp_path)


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


def test_brokers_that_are_away_are_waited_for(
    ray_cluster: None, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = Running(settings)
    read_to_end, failed = TopicReader.read_to_end, threading.Event()

    def fails_once(reader: TopicReader) -> Iterator[tuple[Topic, Message]]:
        if not failed.is_set():
            failed.set()
            raise KafkaException(KafkaError(KafkaError._UNKNOWN_PARTITION))
        return read_to_end(reader)

    monkeypatch.setattr(TopicReader, "read_to_end", fails_once)
    assert failed.wait(240)
    announce_shard(settings, 0, some_rows(0))
    running.await_rounds(1)
    running.stop()
    assert promoted(settings)[-1].shard_ids == ("shard-0",)


def test_loop_whose_actor_has_workers_ends_with_it(ray_cluster: None, settings: Settings) -> None:
    loop = TrainingLoop(with_values(settings, training__workers=2))
    os.kill(ray.get(loop.actor_pid()), signal.SIGKILL)
    announce_shard(settings, 0, some_rows(0))
    with pytest.raises(TransientError, match="so this process ends"):
        loop.run(threading.Event())
    loop.close()


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


def test_missing_shard_is_waited_for(ray_cluster: None, settings: Settings) -> None:
    announce_shard(settings, 0, some_rows(0))
    path = Path(settings.storage.root) / "shards" / "test-0.parquet"
    path.rename(path.with_suffix(".away"))
    before = put_offs()
    running = Running(settings)
    wait_until(lambda: put_offs() >= before + 2, timeout_s=240, what="a second put-off")
    path.with_suffix(".away").rename(path)
    running.await_rounds(1)
    running.stop()
    assert [one.shard_ids for one in promoted(settings)] == [(), ("shard-0",)]


def test_shards_that_cannot_be_learned_are_skipped_and_counted(
    ray_cluster: None, settings: Settings
) -> None:
    store = Path(settings.storage.root) / "shards"
    announce_shard(settings, 0, some_rows(0))
    (store / "test-0.parquet").write_bytes(b"")  # as an operator does with one that will not return
    announce_shard(settings, 1, some_rows(1))
    whole = (store / "test-1.parquet").read_bytes()
    (store / "test-1.parquet").write_bytes(whole[: len(whole) // 2])
    other = [msgspec.structs.replace(row, codebook_version=2) for row in some_rows(2)]
    announce_shard(settings, 2, other)
    announce_shard(settings, 3, [])
    unlabelled = [msgspec.structs.replace(row, codebook_version=0) for row in some_rows(4)]
    announce_shard(settings, 4, unlabelled)
    before = skipped()
    running = Running(settings)
    await_learned(settings, "shard-4")
    running.stop()
    learned = [shard_id for one in promoted(settings) for shard_id in one.shard_ids]
    assert learned == ["shard-3", "shard-4"]
    assert skipped() == before + 3


@pytest.mark.long
def test_round_that_cannot_write_its_checkpoint_goes_on_when_there_is_room(
    ray_cluster: None, settings: Settings
) -> None:
    running = Running(settings)
    limit_files(ray.get(running.loop.actor_pid()), 20_000)
    before = put_offs()
    announce_shard(settings, 0, some_rows(0))
    wait_until(lambda: put_offs() > before, timeout_s=240, what="a put-off")
    assert [one.model_version for one in promoted(settings)] == [1]
    running.await_rounds(1)  # by another actor, whose files have no limit
    running.stop()
    assert [one.shard_ids for one in promoted(settings)] == [(), ("shard-0",)]


def put_offs() -> float:
    labels = {"model_name": LRM_MODEL_NAME, "outcome": "put_off"}
    return REGISTRY.get_sample_value("freshet_training_rounds_total", labels) or 0


def skipped() -> float:
    labels = {"model_name": LRM_MODEL_NAME}
    return REGISTRY.get_sample_value("freshet_training_shards_skipped_total", labels) or 0


def limit_files(pid: int, file_bytes: int) -> None:
    """Fail a process's writes of larger files, as a full disk does in the midst of one."""
    hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)[1]
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (file_bytes, hard))


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
        pytest.param("_round", TWO_TOWER_CLUSTER, marks=pytest.mark.long),
        pytest.param("_conclude", LRM_MODEL_NAME, marks=pytest.mark.long),
        pytest.param("_conclude", TWO_TOWER_HASH, marks=pytest.mark.long),
    ],
)
def test_loop_killed_in_a_round_takes_the_same_again_loss_for_loss(
    ray_cluster: None, settings: Settings, tmp_path: Path, moment: str, model_name: str
) -> None:
    settings = with_values(settings, training__adapters=("home",))
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

    # Of the LRM the first base, and two with an adapter.
    assert len(learned(other)) == (5 if model_name == LRM_MODEL_NAME else 3)
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


def show(settings: Settings, user_id: str | None, video_ids: list[str]) -> None:
    items = [
        ImpressionItem(video_id=video_id, position=place, source="lrm", age_s=0, new=False)
        for place, video_id in enumerate(video_ids)
    ]
    event = ImpressionsShown(
        event_time_ms=1002, request_id="r", user_id=user_id, surface="home", arm="lrm", model_version=1,
        codebook_version=1, items=tuple(items),
    )  # fmt: skip
    client = producer(settings.kafka)
    send(client, settings.kafka, IMPRESSIONS, user_id or "nobody", event)
    flush(client)


@pytest.mark.long
def test_adapters_are_announced_behind_their_base_once_each(
    ray_cluster: None, settings: Settings
) -> None:
    adapted = with_values(settings, training__adapters=("home", "shorts", "ranking"))
    first = Running(adapted)
    for user_id in ("u0", "u1", None):
        show(settings, user_id, ["v20", "v21", "v0"])
    announce_shard(settings, 0, some_rows(0))
    first.await_rounds(1)
    first.stop()
    announce_shard(settings, 1, some_rows(1))
    second = Running(adapted)
    second.await_rounds(1)
    second.stop()

    found = promoted(settings)
    names = ["lrm", "lrm.home", "lrm.ranking"]  # nobody watches shorts
    assert [(one.model_name, one.model_version) for one in found] == [
        ("lrm", 1), *((name, 2) for name in names), *((name, 3) for name in names),
    ]  # fmt: skip
    with TopicReader(settings.kafka, [CHECKPOINTS]) as reader:
        keys = [message.key().decode() for _, message in reader.read_to_end()]
    assert keys == [one.model_name for one in found]
    store, cache = ObjectStore(settings.storage.root), settings.var_dir / "cache"
    for base, *adapters in (found[1:4], found[4:]):
        lrm = load_lrm(store.local_directory(base.path, cache), sha256=base.sha256)
        for one in adapters:
            assert (one.base_model_version, one.base_sha256) == (base.model_version, base.sha256)
            folder = store.local_directory(one.path, cache)
            load_adapter(lrm, folder, base_sha256=base.sha256, sha256=one.sha256)
    positions = load_state(store, LRM_MODEL_NAME, 3, cache=cache).positions
    assert sum(positions.next_impression_offsets.values()) == 3
    assert sum(positions.first_impression_offsets.values()) == 0  # they may still be judged


def test_impressions_of_a_begun_round_are_found_again(
    ray_cluster: None, settings: Settings
) -> None:
    """Also by a loop that starts anew, and those shown since then are not among them."""
    adapted = with_values(settings, training__adapters=("ranking",))
    store = ObjectStore(settings.storage.root)

    def intake(until: Plan | None) -> TrainingIntake:
        return TrainingIntake(
            adapted, store, codebook_version=1, positions=Positions(), until=until
        )

    first = intake(None)
    show(settings, "u0", ["v20"])
    show(settings, "u7", ["v22"])
    announce_shard(settings, 0, some_rows(0))

    def is_there() -> bool:
        first.poll()
        return first.is_enough

    wait_until(is_there, timeout_s=60, what="the shard")
    plan = first.plan(2)
    show(settings, "u0", ["v21"])
    for each in (first, intake(plan)):
        found = each.read_rows(plan)
        shown = each.shown_to(found, plan)
        assert [(one.user_id, one.video_ids) for one in shown] == [("u0", ("v20",))]
        assert each.shown_to(found._replace(erased_users=frozenset({"u0"})), plan) == []
        each.close()
