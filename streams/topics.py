"""Every topic: name, key, partitions, cleanup, retention. This is the only place that names one.

Topics with the same key have the same number of partitions and every producer uses the murmur2 partitioner, so that a
user's watches, history and impressions (and a video's uploads and semantic IDs) share a partition number.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from pydantic import BaseModel

from infra.settings import KafkaSettings
from streams import events

DAY_MS = 86_400_000
MAX_MESSAGE_BYTES = 16 * 1024 * 1024
# The greatest record in base64 and, as it might be all key, once more as the key; and what a letter says about it.
MAX_DEAD_LETTER_BYTES = MAX_MESSAGE_BYTES * 7 // 3 + 64 * 1024


class Cleanup(StrEnum):
    """How a topic forgets."""

    DELETE = "delete"
    COMPACT = "compact"


@dataclass(frozen=True, kw_only=True)
class Topic:
    """A topic's contract."""

    name: str
    key: str
    models: tuple[type[BaseModel], ...]
    description: str
    cleanup: Cleanup = Cleanup.DELETE
    retention_ms: int = 7 * DAY_MS
    partitions: int | None = None
    """Fixed number of partitions; None follows `FRESHET_KAFKA__PARTITIONS`."""
    internal: bool = False
    config: dict[str, str] = field(default_factory=dict)

    def in_cluster(self, settings: KafkaSettings) -> str:
        """Return the name with the cluster's prefix."""
        return settings.topic_prefix + self.name

    def num_partitions(self, settings: KafkaSettings) -> int:
        """Return how many partitions the topic is created with."""
        return self.partitions or settings.partitions

    def topic_config(self) -> dict[str, str]:
        """Return the broker-side configuration the topic is created with."""
        config = {
            "cleanup.policy": self.cleanup.value,
            "message.timestamp.type": "LogAppendTime",  # a replayed past must not expire by its own event times
            "max.message.bytes": str(MAX_MESSAGE_BYTES),
        }
        if self.cleanup is Cleanup.DELETE:
            config["retention.ms"] = str(self.retention_ms)
        else:
            config["delete.retention.ms"] = str(DAY_MS)
        return config | self.config


UPLOADS = Topic(
    name="video.uploads",
    key="video_id",
    models=(events.VideoUploaded, events.VideoRemoved),
    description="Videos uploaded, updated and removed.",
)
CODES = Topic(
    name="video.codes",
    key="codebook_version + codes",
    models=(events.CodesComputed,),
    description="Codes before disambiguation, so that one owner sees all that collide.",
    internal=True,
)
ALLOCATIONS = Topic(
    name="video.allocations",
    key="codebook_version + codes + disambiguation_code, in the partition of codebook_version + codes",
    models=(events.CodeAllocated,),
    description="Which video holds which disambiguation code: the allocator's state, a record per code.",
    cleanup=Cleanup.COMPACT,
    internal=True,
)
ASSIGNMENTS = Topic(
    name="video.assignments",
    key="video_id + codebook_version",
    models=(events.SemanticIdAssigned,),
    description="What is to go into video.semantic_ids, tombstones included, in no order between edits and "
    "removals: the header upload_position says what is newest.",
    internal=True,
)
SEMANTIC_IDS = Topic(
    name="video.semantic_ids",
    key="video_id + codebook_version",
    models=(events.SemanticIdAssigned,),
    description="A video's semantic ID and what later stages need of its upload; a tombstone removes it. What was "
    "overtaken is left out, so the last record of a key is the video's state.",
    cleanup=Cleanup.COMPACT,
    # A tombstone's header tells an assignment that it overtook from a newer one. Such an assignment is at most 7 days
    # late in each of video.uploads, video.codes and video.assignments, and 30 as a dead letter that is sent again.
    config={"delete.retention.ms": str(60 * DAY_MS)},
)
SERVABLE = Topic(
    name="video.servable",
    key="video_id",
    models=(events.VideoServable,),
    description="When a replica first could recommend a video.",
)
WATCHES = Topic(
    name="watch.events",
    key="user_id",
    models=(events.WatchEvent, events.UserErased),
    description="Watches, as players report them, and the erasures of users.",
)
HISTORIES = Topic(
    name="user.histories",
    key="user_id",
    models=(events.UserHistory,),
    description="Each user's last watches: the sealer's state and the server's view.",
    cleanup=Cleanup.COMPACT,
)
COUNTS = Topic(
    name="video.counts",
    key="video_id",
    models=(events.VideoCounts,),
    description="Views, completed views, likes and watch seconds per window, surface and arm.",
    retention_ms=30 * DAY_MS,
)
SHARDS = Topic(
    name="training.shards",
    key="partition",
    models=(events.ShardSealed,),
    description="Sealed training shards.",
    retention_ms=30 * DAY_MS,
    partitions=1,
)
CHECKPOINTS = Topic(
    name="model.checkpoints",
    key="model name",
    models=(events.CheckpointPromoted,),
    description="The checkpoint to serve, by model name.",
    cleanup=Cleanup.COMPACT,
    partitions=1,
)
IMPRESSIONS = Topic(
    name="serving.impressions",
    key="user_id",
    models=(events.ImpressionsShown,),
    description="What was shown to whom.",
)
SWAPS = Topic(
    name="serving.swaps",
    key="replica",
    models=(events.SwapReported,),
    description="Checkpoint swaps, succeeded and rejected.",
    partitions=1,
)
_SOURCES = (
    UPLOADS, CODES, ALLOCATIONS, ASSIGNMENTS, SEMANTIC_IDS, SERVABLE, WATCHES, HISTORIES, COUNTS, SHARDS, CHECKPOINTS,
    IMPRESSIONS, SWAPS,
)  # fmt: skip


def dead_letters_of(topic: Topic) -> Topic:
    """Return the dead-letter topic beside `topic`."""
    return Topic(
        name=f"{topic.name}.dead_letters",
        key=f"as {topic.name}",
        models=(events.DeadLetter,),
        description=f"Records of {topic.name} that were refused, whole, with the reason.",
        retention_ms=30 * DAY_MS,
        partitions=topic.partitions,
        config={"max.message.bytes": str(MAX_DEAD_LETTER_BYTES)},
    )


DEAD_LETTERS = {
    topic.name: dead_letters_of(topic)
    for topic in (UPLOADS, WATCHES, SEMANTIC_IDS, SHARDS, CHECKPOINTS, IMPRESSIONS)
}
ALL: tuple[Topic, ...] = (*_SOURCES, *DEAD_LETTERS.values())
