"""What a training loop needs around it: topics, a codebook, first checkpoints, videos, shards, and who reads them."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path

from infra.kafka.broker import LocalBroker
from infra.settings import Settings, with_values
from infra.storage import ObjectStore
from models.training import TrainingConfig
from streams.admin import create_topics
from streams.catalogue import semantic_id_key
from streams.client import TopicReader, flush, producer, send, wait_until
from streams.codec import decode
from streams.codes import encode_embedding
from streams.events import LRM_MODEL_NAME, CheckpointPromoted, SemanticIdAssigned
from streams.shards import ShardRow, write_shard
from streams.topics import CHECKPOINTS, SEMANTIC_IDS, SHARDS
from tests.lrm_factories import shard_row, some_videos, tiny_lrm
from tests.sealed_shards import sealed_shard
from tests.tiny_serving import publish_tiny_codebook
from tests.two_tower_factories import some_content, tiny_two_tower
from workers.training import TrainingLoop
from workers.training_actor import RoundOutcome
from workers.training_state import new_state, save_state
from workers.two_tower_state import TWO_TOWERS, save_two_tower


def prepared(broker: LocalBroker, folder: Path) -> Settings:
    """Return settings of a deployment of its own, as a cold start leaves it."""
    settings = with_values(
        Settings(),
        var_dir=folder,
        storage__root=str(folder / "store"),
        kafka__bootstrap_servers=broker.bootstrap_servers,
        kafka__topic_prefix=f"{folder.name}-",
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
    return [one for one in found if one.model_name.split(".")[0] == model_name]  # and its adapters


def await_learned(settings: Settings, shard_id: str) -> None:
    wait_until(
        lambda: any(shard_id in one.shard_ids for one in promoted(settings)),
        timeout_s=240,
        what=f"the round of {shard_id}",
    )
