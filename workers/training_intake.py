"""What training has not learned yet: new shards and new videos, and which of them the next round takes.

A round takes all new videos, and waiting shards whole and in their order, one at least, until it has
`round_watches_max` watches. A loop that is so far behind that `backlog_rounds_max` such rounds are waiting takes all
of them at once and learns a sample of their rows, by a hash of shard and user, of some `round_watches_max` watches:
what is new counts more than all of what is old. The rest is counted as left out. What was shown to the users
of its rows comes along for the ranking adapter (`workers.impression_intake`).

Delivery: nothing is committed. Positions are in the checkpoint (`workers.training_state`), and what a round takes is
written down before it begins: started again at any moment, this hands out the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from confluent_kafka import Message

from infra import metrics
from infra.errors import DecodeError, TransientError, VersionMismatchError
from infra.log import get_logger
from infra.settings import Settings
from infra.storage import ObjectStore
from streams.catalogue import Catalogue
from streams.client import TopicReader
from streams.codec import decode
from streams.events import LRM_MODEL_NAME, SemanticIdAssigned, ShardSealed
from streams.shards import ShardRow, read_erased_users, read_shard
from streams.topics import SEMANTIC_IDS, SHARDS
from workers.adapter_rounds import RANKING
from workers.impression_intake import ImpressionIntake, Shown
from workers.training_actor import Video
from workers.training_state import Plan, Positions

log = get_logger()


class ShardRows(NamedTuple):
    """What is learned from some shards.

    Attributes:
        shard_ids: of those that are what was announced.
        erased_users: in any of them; what was learned of them before is to be forgotten.
        watches_left_out: because the loop is behind.
        first_append_time_ms: of the oldest watch; 0 without shards.
    """

    rows: list[ShardRow]
    shard_ids: tuple[str, ...]
    erased_users: frozenset[str]
    watches_left_out: int
    first_append_time_ms: int = 0


@dataclass(frozen=True)
class _Waiting:
    offset: int
    sealed: ShardSealed


class TrainingIntake:
    """Follows `training.shards` and `video.semantic_ids` from the positions of a checkpoint.

    Attributes:
        catalogue: the live videos, as of the last `poll`.
        changes: what changed in it since the last round, as the trainer is told; None for a removed video.
    """

    def __init__(
        self,
        settings: Settings,
        store: ObjectStore,
        *,
        model_name: str = LRM_MODEL_NAME,
        codebook_version: int,
        positions: Positions,
        until: Plan | None,
        video_of: Callable[[SemanticIdAssigned], Any] = Video.of,
    ) -> None:
        """Read the catalogue to its end, or as it was when the open round was planned.

        `video_of` says what the trainer is told of a video; None where it cannot use it.
        """
        self._model_name, self._video_of = model_name, video_of
        self._settings = settings.training
        self._store = store
        self.catalogue = Catalogue(codebook_version)
        self.changes: dict[str, Any] = {}
        self._learned = dict(positions.next_semantic_id_offsets)
        self._new_video_ids: dict[str, None] = {}
        self._held_back: list[Message] = []
        self._waiting: list[_Waiting] = []
        self._videos_reader = TopicReader(settings.kafka, [SEMANTIC_IDS])
        start = {(SHARDS.name, 0): positions.next_shard_offset}
        self._shards_reader = TopicReader(settings.kafka, [SHARDS], start=start)
        self._read_videos(until.positions.next_semantic_id_offsets if until else {})
        for _, message in self._shards_reader.read_to_end() if until else ():
            self._take_shard(message)
        self._impressions: ImpressionIntake | None = None
        if model_name == LRM_MODEL_NAME and RANKING in settings.training.adapters:
            window = (until.positions if until else positions).first_impression_offsets
            self._impressions = ImpressionIntake(
                settings.kafka,
                window,
                end=until.positions.next_impression_offsets if until else None,
            )

    def repeat_videos(self) -> None:
        """Make all live videos changes again, for a trainer that knows of none."""
        self.changes = {
            video_id: self._video_of(found) for video_id, found in self.catalogue.videos.items()
        }

    def poll(self) -> None:
        """Read what is new; shards first, so that the videos of every shard are known when it is learned from.

        Blocks: for `idle_poll_s` when there is no new shard.
        """
        for _, message in self._shards_reader.poll(timeout_s=self._settings.idle_poll_s):
            self._take_shard(message)
        self._read_videos({})
        watches = sum(each.sealed.watches for each in self._waiting)
        metrics.BACKLOG.labels(self._model_name).set(len(self._waiting))
        metrics.BACKLOG_WATCHES.labels(self._model_name).set(watches)

    def _take_shard(self, message: Message) -> None:
        try:
            sealed = decode(ShardSealed, message.value())
        except DecodeError as error:
            _refuse(SHARDS.name, message, error)
        else:
            self._waiting.append(_Waiting(message.offset(), sealed))

    def _read_videos(self, ends: Mapping[int, int]) -> None:
        """Take in the videos up to the end of the topic, those from an offset in `ends` on only at the next call."""
        held_back, self._held_back = self._held_back, []
        for message in held_back:
            self._take_video(message)
        for _, message in self._videos_reader.read_to_end():
            if ends and message.offset() >= ends.get(message.partition(), 0):
                self._held_back.append(message)
            else:
                self._take_video(message)

    def _take_video(self, message: Message) -> None:
        try:
            change = self.catalogue.apply(message.key(), message.value())
        except DecodeError as error:
            _refuse(SEMANTIC_IDS.name, message, error)
            return
        if change is None:
            return
        self.changes[change.video_id] = self._video_of(change.current) if change.current else None
        if message.offset() >= self._learned.get(message.partition(), 0):
            self._new_video_ids[change.video_id] = None

    @property
    def is_enough(self) -> bool:
        """Whether what waits is worth a round."""
        return bool(self._waiting) or len(self._new_video_ids) >= self._settings.new_videos_min

    @property
    def new_video_ids(self) -> tuple[str, ...]:
        """Which videos were assigned since the last round, in an order that partitions have no part in."""
        return tuple(sorted(self._new_video_ids))

    def plan(self, model_version: int) -> Plan:
        """Return what the next round takes; `move_on` says that it did."""
        limit = self._settings.round_watches_max
        watches = sum(each.sealed.watches for each in self._waiting)
        is_behind = watches > limit * self._settings.backlog_rounds_max
        share = limit / watches if is_behind else 1.0
        end = self._shards_reader.next_offsets[SHARDS.name, 0]
        taken = 0
        for each in () if is_behind else self._waiting[:-1]:
            taken += each.sealed.watches
            if taken >= limit:
                end = each.offset + 1
                break
        videos = {at: to for (_, at), to in self._videos_reader.next_offsets.items()}
        window = self._impressions.read() if self._impressions else ()
        return Plan(model_version, Positions(end, videos, *window), share)

    def read_rows(self, plan: Plan) -> ShardRows:
        """Return the rows of all planned shards that are what was announced; others are logged and counted.

        Raises:
            TransientError: a shard is not in the object store; it may come back, and is skipped only when told to.
        """
        rows: list[ShardRow] = []
        shard_ids, append_times_ms, erased, left_out = [], [], frozenset[str](), 0
        for sealed in [each.sealed for each in self._taken(plan)]:
            try:
                data = self._fetch(sealed)
                found, erased_here = read_shard(data), read_erased_users(data)
                self._check_codebook(found)
            except (VersionMismatchError, DecodeError) as error:
                metrics.SHARDS_SKIPPED.labels(self._model_name).inc()
                log.error(
                    "shard_skipped",
                    model_name=self._model_name,
                    shard_id=sealed.shard_id,
                    error=str(error),
                )
                continue
            kept = [row for row in found if is_sampled(sealed.shard_id, row, plan.row_share)]
            left_out += _num_watches(found) - _num_watches(kept)
            rows = [row for row in rows if row.user_id not in erased_here] + kept
            erased |= erased_here
            shard_ids.append(sealed.shard_id)
            append_times_ms.append(sealed.first_append_time_ms)
        oldest_ms = min(append_times_ms, default=0)
        return ShardRows(rows, tuple(shard_ids), erased, left_out, oldest_ms)

    def _fetch(self, sealed: ShardSealed) -> bytes:
        try:
            return self._store.get_bytes(sealed.path, sha256=sealed.sha256)
        except TransientError as error:
            raise TransientError(
                f"shard {sealed.shard_id}: {error}. Training waits for it: put the file back, or an empty one in its "
                "place to have it skipped; `freshet shards rebuild` makes its rows once more, for other trainers"
            ) from error

    def _check_codebook(self, rows: list[ShardRow]) -> None:
        """Refuse rows that were sealed under another codebook; 0 is none, when no video had a semantic ID."""
        known = self.catalogue.codebook_version
        others = {row.codebook_version for row in rows} - {0, known}
        if others:
            raise VersionMismatchError(
                f"its rows are of codebook_version {sorted(others)}, the model in training speaks {known}"
            )

    def shown_to(self, found: ShardRows, plan: Plan) -> list[Shown]:
        """Return what was shown to the users of some rows, within the plan's window and unless they were erased."""
        if self._impressions is None:
            return []
        users = {row.user_id for row in found.rows} - found.erased_users
        first, end = plan.positions.first_impression_offsets, plan.positions.next_impression_offsets
        return self._impressions.of_users(users, first, end)

    def _taken(self, plan: Plan) -> list[_Waiting]:
        return [each for each in self._waiting if each.offset < plan.positions.next_shard_offset]

    def sealed_times_ms(self, plan: Plan) -> list[int]:
        """Return when the planned shards were sealed."""
        return [each.sealed.sealed_time_ms for each in self._taken(plan)]

    def move_on(self, plan: Plan) -> None:
        """Forget what was planned: it is in a checkpoint now."""
        self._learned = dict(plan.positions.next_semantic_id_offsets)
        self._new_video_ids = {}
        self._waiting = self._waiting[len(self._taken(plan)) :]

    def close(self) -> None:
        """Leave the brokers."""
        self._videos_reader.close()
        self._shards_reader.close()
        if self._impressions is not None:
            self._impressions.close()


def _num_watches(rows: list[ShardRow]) -> int:
    return sum(len(row.watches) for row in rows)


def is_sampled(shard_id: str, row: ShardRow, share: float) -> bool:
    """Return whether a share of the shard's rows has this one; always the same answer."""
    if share >= 1:
        return True
    digest = hashlib.blake2b(f"{shard_id}/{row.user_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) < share * 2**64


def _refuse(topic: str, message: Message, error: DecodeError) -> None:
    log.warning("record_refused", topic=topic, offset=message.offset(), reason=error.reason)
    metrics.DEAD_LETTERS.labels(topic, error.reason).inc()
