"""Tells when what was sent is served: uploads can be shown, and watches are learned by every model that answers.

Reads topics and the checkpoints' own positions; knows nothing of who sends and of the processes in between.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass

from infra.errors import TransientError
from infra.settings import Settings
from infra.storage import ObjectStore
from streams.client import TopicReader, wait_until
from streams.codec import decode
from streams.events import (
    CheckpointPromoted,
    ShardSealed,
    SwapReported,
    VideoServable,
)
from streams.topics import CHECKPOINTS, DEAD_LETTERS, SERVABLE, SHARDS, SWAPS, WATCHES
from workers.training_state import checkpoint_versions, load_positions, read_record

WAIT_S = 600.0


@dataclass(frozen=True)
class Sent:
    """What had been sent at one moment: videos, and the next offset of each partition of `watch.events`."""

    video_ids: frozenset[str]
    watch_offsets: dict[int, int]


class Refreshes:
    """Follows the stages behind the driver, from where the topics ended when it was made."""

    def __init__(self, settings: Settings) -> None:
        self._models = settings.training.models
        self._store = ObjectStore(settings.storage.root)
        dead = DEAD_LETTERS.values()
        self._dead_topics = {topic.name for topic in dead}
        self._reader = TopicReader(
            settings.kafka, [SHARDS, CHECKPOINTS, SWAPS, SERVABLE, *dead], from_end=True
        )
        self._watches = TopicReader(settings.kafka, [WATCHES], from_end=True)
        self._sealed_to: dict[int, int] = {}
        self._shard_at: list[tuple[int, dict[int, int]]] = []
        self._promoted: dict[str, int] = {}
        self._swapped: dict[str, int] = {}
        self.servable: set[str] = set()
        self.watches_in_shards = 0
        self.dead_letters = 0
        self.refreshes: Counter[str] = Counter()
        self.rejected: Counter[str] = Counter()

    def sent_so_far(self, video_ids: Collection[str]) -> Sent:
        """Return what was sent until now, which the brokers have acknowledged."""
        ends = self._watches.end_offsets()
        return Sent(frozenset(video_ids), {at: to for (_, at), to in ends.items()})

    def poll(self) -> None:
        """Take in what is new."""
        for topic, message in self._reader.poll(timeout_s=0.05):
            if topic is SHARDS:
                shard = decode(ShardSealed, message.value())
                self.watches_in_shards += shard.watches
                for one in shard.ranges:
                    self._sealed_to[one.partition] = one.last_offset + 1
                self._shard_at.append((message.offset(), dict(self._sealed_to)))
            elif topic is CHECKPOINTS:
                promoted = decode(CheckpointPromoted, message.value())
                self._promoted[promoted.model_name] = promoted.model_version
            elif topic is SWAPS:
                self._take_swap(decode(SwapReported, message.value()))
            elif topic is SERVABLE:
                self.servable.add(decode(VideoServable, message.value()).video_id)
            elif topic.name in self._dead_topics:
                self.dead_letters += 1

    def _take_swap(self, swap: SwapReported) -> None:
        before = self._swapped.get(swap.model_name, 0)
        self._swapped[swap.model_name] = max(before, swap.model_version)
        if swap.outcome == "succeeded" and swap.previous_version:
            self.refreshes[swap.model_name] += 1
        elif swap.outcome == "rejected":
            self.rejected[swap.model_name] += 1

    def wait_for(self, sent: Sent, check: Callable[[], None]) -> None:
        """Return once all of it is served, by every model that is refreshed.

        A round whose result did not pass its gates counts as learned: the model before it goes on.

        Raises:
            TransientError: not within `WAIT_S`.
        """

        def served() -> bool:
            check()
            self.poll()
            return sent.video_ids <= self.servable and self._is_served(sent)

        try:
            wait_until(served, timeout_s=WAIT_S, what="serving what was sent", interval_s=0.05)
        except TransientError as error:
            raise TransientError(f"{error}: {self._missing(sent)}") from None

    def _missing(self, sent: Sent) -> str:
        late = [one for one in self._models if not self._has_learned(one, self._shard_of(sent))]
        return (
            f"{len(sent.video_ids - self.servable)} videos are not servable, the watches are "
            f"{'' if self._shard_of(sent) is not None else 'not '}in shards, not served by {late or 'none'}"
        )

    def _is_served(self, sent: Sent) -> bool:
        shard = self._shard_of(sent)
        return shard is not None and all(self._has_learned(one, shard) for one in self._models)

    def _shard_of(self, sent: Sent) -> int | None:
        """Return the offset of the announcement with which all these watches are in shards; -1: there are none."""
        if not any(sent.watch_offsets.values()):
            return -1
        for offset, sealed_to in self._shard_at:
            if all(sealed_to.get(at, 0) >= to for at, to in sent.watch_offsets.items()):
                return offset
        return None

    def _has_learned(self, model_name: str, shard: int | None) -> bool:
        if shard is None:
            return False
        newest = checkpoint_versions(self._store, model_name)[-1]
        if load_positions(self._store, model_name, newest).next_shard_offset <= shard:
            return False
        refused = read_record(self._store, model_name, newest)["record"]["refused"]
        # An announcement follows its checkpoint: of one that passed it must have been seen as well.
        wanted = self._promoted.get(model_name, 0) if refused else newest
        return newest == 1 or self._swapped.get(model_name, 0) >= wanted

    def close(self) -> None:
        """Leave the brokers."""
        self._reader.close()
        self._watches.close()
