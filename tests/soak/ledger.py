"""What was sent and acknowledged, and what of it came out again; knows nothing of who sends and who follows.

`Sent` is written by the sender, `Seen` by the follower; both are read by everybody.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field

from streams.events import ShardSealed

Place = tuple[int, int]
"""Partition and offset."""


@dataclass
class Sent:
    """What the brokers have acknowledged.

    Attributes:
        uploads: video_id of each upload.
        removals: video_id of each removal.
        bad_uploads, bad_watches: with the reason for which each is to be refused.
        duplicates: watches that were sent before.
        failures: what was not acknowledged, and why.
    """

    uploads: dict[Place, str] = field(default_factory=dict)
    removals: dict[Place, str] = field(default_factory=dict)
    bad_uploads: dict[Place, str] = field(default_factory=dict)
    watches: set[Place] = field(default_factory=set)
    duplicates: set[Place] = field(default_factory=set)
    bad_watches: dict[Place, str] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    @property
    def num_records(self) -> int:
        """How many records are acknowledged."""
        return sum(
            map(
                len,
                (
                    self.uploads, self.removals, self.bad_uploads, self.watches, self.duplicates, self.bad_watches,
                ),
            )
        )  # fmt: skip


@dataclass
class Seen:
    """What came out.

    Attributes:
        servable: when each video could first be recommended, UTC epoch ms.
        removed: when each video's tombstone was seen, on the wall clock.
        letters: by topic, the reasons of the dead letters of each record.
        shards: as announced, by the offset of the announcement.
        in_shards: how often each watch is in a shard's file.
        shard_bytes: of all shards' files.
        learned: by model, how often each shard is in a checkpoint.
        versions: by model, the checkpoints that were looked at.
        unread: shards whose file could not be read when it was announced, and why.
        refreshes: successful swaps by model.
        rejected: refused swaps by model.
    """

    servable: dict[str, int] = field(default_factory=dict)
    removed: dict[str, float] = field(default_factory=dict)
    letters: dict[str, dict[Place, list[str]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(list))
    )
    shards: dict[int, ShardSealed] = field(default_factory=dict)
    in_shards: Counter[Place] = field(default_factory=Counter)
    shard_bytes: int = 0
    learned: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    versions: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    unread: list[str] = field(default_factory=list)
    refreshes: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
