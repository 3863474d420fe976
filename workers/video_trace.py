"""One video from upload to its first watch, as the topics tell it: its semantic ID, who shares its codes, what is near.

Reads only the partitions that the video's keys lie in, except where something is to be found by what it is, and the
impressions, whose keys are users. Knows nothing of how it is shown (`workers.video_trace_shown`).
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import numpy as np
from confluent_kafka import Message

from infra.errors import ConfigError, DecodeError, TransientError
from infra.settings import KafkaSettings, Settings
from infra.storage import ObjectStore
from models.codebook import CODEBOOKS_KEY, current_manifest
from models.semantic_id import format_semantic_id
from streams.catalogue import Catalogue, semantic_id_key, upload_position
from streams.client import TopicReader
from streams.codec import M, decode, decode_upload
from streams.codes import codes_key, decode_embedding
from streams.events import (
    CodeAllocated,
    CodesComputed,
    DeadLetter,
    SemanticIdAssigned,
    VideoRemoved,
    VideoServable,
)
from streams.neighbours import Neighbour
from streams.partitions import partition_of
from streams.topics import (
    ALLOCATIONS,
    ASSIGNMENTS,
    CHECKPOINTS,
    CODES,
    COUNTS,
    DEAD_LETTERS,
    IMPRESSIONS,
    SEMANTIC_IDS,
    SERVABLE,
    UPLOADS,
    Topic,
)
from workers.catalogue_index import asked_index
from workers.video_reach import learned_by, shown_by, watched_in

READ_TIMEOUT_S = 3600.0


class Step(NamedTuple):
    """A record on the video's way, and when it was appended; of what it tells that was before, when that was."""

    what: str
    append_time_ms: int
    topic: str
    partition: int
    offset: int
    detail: str


class Sharing(NamedTuple):
    """Another video with the same codes; `live` and `title` are None where only its place is known."""

    video_id: str
    disambiguation_code: int
    title: str | None
    live: bool | None


@dataclass
class Trace:
    """What is known of a video.

    Attributes:
        assigned: its semantic ID under the current codebook, while it is live.
        sharing: who else holds a place under its codes, removed videos included.
        near_by: how neighbours were found.
        steps: its way, oldest first.
    """

    video_id: str
    codebook_version: int
    assigned: SemanticIdAssigned | None = None
    sharing: list[Sharing] = field(default_factory=list)
    neighbours: list[Neighbour] = field(default_factory=list)
    near_by: str = ""
    steps: list[Step] = field(default_factory=list)


def trace_video(settings: Settings, video_id: str, *, neighbours: int = 5) -> Trace:
    """Return what the topics say of a video.

    Blocks: until its partitions were read, and the impressions of 7 days; where nobody keeps the catalogue, all of
    `video.semantic_ids`.

    Raises:
        ConfigError: no topic holds anything of it.
        TransientError: the Qdrant server that is named, or the brokers, do not answer.
    """
    store = ObjectStore(settings.storage.root)
    current = current_manifest(store).codebook_version
    found = {key.split("/")[1] for key in store.list(CODEBOOKS_KEY)}
    versions = sorted(int(version) for version in found if version.isdigit())
    trace = Trace(video_id, current)
    way = _Way(settings.kafka, video_id, versions)
    catalogue = Catalogue(current)
    near = _asked(settings, video_id, neighbours, current) if neighbours else None
    everything = bool(neighbours) and near is None
    way.read_by_video(catalogue, everything=everything)
    trace.assigned = catalogue.get(video_id)
    way.read_by_codes()
    way.read_reach()
    trace.steps = sorted(way.steps, key=lambda step: step.append_time_ms)
    if not trace.steps:
        raise ConfigError(
            f"no video {video_id!r}: searched {'; '.join(way.searched)}. Ids are case-sensitive"
        )
    if trace.assigned is not None:
        trace.sharing = way.sharing(trace.assigned, catalogue if everything else None)
        if near is not None:
            trace.neighbours = near
            server = settings.qdrant.url
            trace.near_by = f"Qdrant at {server}" if server else "Qdrant in the catalogue worker"
        elif neighbours:
            trace.neighbours = nearest(catalogue, trace.assigned, neighbours)
            trace.near_by = f"exact, among {len(catalogue)} live videos"
    return trace


def _asked(settings: Settings, video_id: str, k: int, version: int) -> list[Neighbour] | None:
    """Return what the catalogue in Qdrant says is near; None where nobody runs who keeps it."""
    try:
        with asked_index(settings) as index:
            return index.neighbours(video_id, k, codebook_version=version)
    except ConfigError:
        return None
    except TransientError:
        if settings.qdrant.url:
            raise
        return None  # a worker that was killed left its address behind


def nearest(catalogue: Catalogue, video: SemanticIdAssigned, k: int) -> list[Neighbour]:
    """Return the `k` other live videos with the greatest cosine of embeddings, nearest first."""
    others = [each for each in catalogue.videos.values() if each.video_id != video.video_id]
    if not others:
        return []
    rows = np.stack([decode_embedding(each.embedding_f16).astype(np.float32) for each in others])
    query = decode_embedding(video.embedding_f16).astype(np.float32)
    norms = np.linalg.norm(rows, axis=1) * np.linalg.norm(query)
    scores = rows @ query / np.where(norms > 0, norms, 1)
    best = np.argsort(-scores, kind="stable")[:k]
    return [
        Neighbour(
            others[at].video_id,
            others[at].title,
            format_semantic_id(others[at].semantic_id),
            float(scores[at]),
        )
        for at in best
    ]


class _Way:
    """The records of one video, topic by topic."""

    def __init__(self, kafka: KafkaSettings, video_id: str, versions: Collection[int]) -> None:
        self.steps: list[Step] = []
        self.searched: list[str] = []
        self._kafka, self._video_id = kafka, video_id
        self._keys = {semantic_id_key(video_id, version).encode() for version in versions}
        self._places: list[CodeAllocated] = []
        self._codes: set[tuple[int, tuple[int, ...]]] = set()
        self._assigned_at: tuple[int, int] | None = None  # under the current codebook

    def read_by_video(self, catalogue: Catalogue, *, everything: bool) -> None:
        """Read what is keyed by the video; put what `video.semantic_ids` holds into the catalogue."""
        key = self._video_id.encode()
        current = semantic_id_key(self._video_id, catalogue.codebook_version).encode()
        for message in self._records(UPLOADS, [key]):
            if message.key() == key:
                self._add_upload(message)
        for message in self._records(ASSIGNMENTS, self._keys):
            if message.key() in self._keys:
                self._add_assignment("proposed", ASSIGNMENTS, message)
        for message in self._records(SEMANTIC_IDS, None if everything else self._keys):
            if message.key() in self._keys:
                self._add_assignment("assigned", SEMANTIC_IDS, message)
            if message.key() == current:
                self._assigned_at = (message.partition(), message.offset())
            try:
                catalogue.apply(message.key(), message.value())
            except DecodeError:
                continue  # the views count it
        for message in self._records(SERVABLE, [key]):
            if message.key() == key:
                said = _decoded(VideoServable, message.value())
                replica = said.replica if said else "unknown: undecodable"
                self._add("servable", SERVABLE, message, f"by replica {replica}")

    def read_by_codes(self) -> None:
        """Read what is keyed by codes, in the partitions of those that the video had, or in all."""
        keys = {codes_key(version, codes).encode() for version, codes in self._codes} or None
        for message in self._records(CODES, keys):
            computed = _decoded(CodesComputed, message.value())
            if computed is not None and computed.video_id == self._video_id:
                codes = format_semantic_id(computed.codes)
                self._codes.add((computed.codebook_version, computed.codes))
                detail = f"{codes}, codebook {computed.codebook_version}, upload {computed.upload_position}"
                self._add("coded", CODES, message, detail)
        for message in self._records(ALLOCATIONS, keys):
            place = _decoded(CodeAllocated, message.value())
            if place is None:
                continue
            if place.video_id == self._video_id:
                at = (*place.codes, place.disambiguation_code)
                detail = f"{format_semantic_id(at)}, codebook {place.codebook_version}"
                self._add("allocated", ALLOCATIONS, message, detail)
            if (place.codebook_version, place.codes) in self._codes:
                self._places.append(place)
        # Letters have the key of their record: the video's, that of its codes, or that of its assignment.
        topic = DEAD_LETTERS[UPLOADS.name]
        own = {self._video_id.encode(), *self._keys}
        of_codes = {codes_key(version, codes).encode() for version, codes in self._codes}
        for message in self._records(topic, own | of_codes):
            letter = _decoded(DeadLetter, message.value())
            if letter and (
                message.key() in own or (message.key() in of_codes and self._is_of(letter))
            ):
                source = f"{letter.topic} {letter.partition}/{letter.offset}"
                self._add("refused", topic, message, f"{letter.reason}: {letter.detail} ({source})")

    def read_reach(self) -> None:
        """Read which LRM learned its text first, what showed it first, and when a watch of it first was in a shard."""
        self._add_first("learned", CHECKPOINTS, None, partial(learned_by, self._assigned_at))
        self._add_first("shown", IMPRESSIONS, None, partial(shown_by, self._video_id))
        key = self._video_id.encode()
        self._add_first("watched", COUNTS, [key], partial(watched_in, key))

    def _add_first(
        self,
        what: str,
        topic: Topic,
        keys: Iterable[bytes] | None,
        detail_of: Callable[[Message], str | None],
    ) -> None:
        """Add the record with the earliest append time of those that have a detail."""
        found = [
            (message.timestamp()[1], message.partition(), message.offset(), detail)
            for message in self._records(topic, keys)
            if (detail := detail_of(message)) is not None
        ]
        if found:
            append_time_ms, partition, offset, detail = min(found)
            self.steps.append(Step(what, append_time_ms, topic.name, partition, offset, detail))

    def sharing(self, assigned: SemanticIdAssigned, catalogue: Catalogue | None) -> list[Sharing]:
        """Return the other holders of places under the same codes."""
        found: dict[int, Sharing] = {}
        for place in self._places:
            same = (place.codebook_version, place.codes) == (
                assigned.codebook_version,
                assigned.codes,
            )
            if not same or place.video_id == self._video_id:
                continue
            other = None if catalogue is None else catalogue.get(place.video_id)
            live = None if catalogue is None else other is not None and other.codes == place.codes
            found[place.disambiguation_code] = Sharing(
                place.video_id, place.disambiguation_code, other.title if other else None, live
            )
        return [found[code] for code in sorted(found)]

    def _is_of(self, letter: DeadLetter) -> bool:
        value = base64.b64decode(letter.value_base64 or "")
        computed = _decoded(CodesComputed, value)
        return computed is not None and computed.video_id == self._video_id

    def _add_upload(self, message: Message) -> None:
        try:
            upload = decode_upload(message.value())
        except DecodeError as error:
            self._add("uploaded", UPLOADS, message, f"undecodable: {error.reason}")
            return
        title = "" if isinstance(upload, VideoRemoved) else f" {upload.title}"
        again = _position(message)
        detail = upload.event_id + title + ("" if again is None else f" (sent again, as {again})")
        self._add(upload.type, UPLOADS, message, detail)

    def _add_assignment(self, what: str, topic: Topic, message: Message) -> None:
        position = _position(message)
        if message.value() is None:
            answered = "" if position is None else f"upload {position}"
            self._add("removed" if topic is SEMANTIC_IDS else "retired", topic, message, answered)
            return
        try:
            assigned = decode(SemanticIdAssigned, message.value())
        except DecodeError as error:
            self._add(what, topic, message, f"undecodable: {error.reason}")
            return
        self._codes.add((assigned.codebook_version, assigned.codes))
        if topic is SEMANTIC_IDS and assigned.featurized_time_ms:
            at = (topic.name, message.partition(), message.offset())
            step = Step("featurized", assigned.featurized_time_ms, *at, "as its semantic ID says")
            self.steps.append(step)
        origin = assigned.upload_position
        origin_text = f"upload {origin}" if origin >= 0 else "of a catalogue, not of video.uploads"
        codes = format_semantic_id(assigned.semantic_id)
        self._add(
            what, topic, message, f"{codes}, codebook {assigned.codebook_version}, {origin_text}"
        )

    def _add(self, what: str, topic: Topic, message: Message, detail: str) -> None:
        at = (topic.name, message.partition(), message.offset())
        self.steps.append(Step(what, message.timestamp()[1], *at, detail))

    def _records(self, topic: Topic, keys: Iterable[bytes] | None) -> Iterator[Message]:
        """Yield the records of the partitions that some keys lie in, or of all for None."""
        count = topic.num_partitions(self._kafka)
        partitions = (
            set(range(count)) if keys is None else {partition_of(key, count) for key in keys}
        )
        if not partitions:
            return
        kept = (
            f"{topic.retention_ms / 86_400_000:g} days" if topic.cleanup == "delete" else "for good"
        )
        where = "all partitions" if len(partitions) == count else f"partition {sorted(partitions)}"
        self.searched.append(f"{topic.name} {where} (kept {kept})")
        with TopicReader(self._kafka, [topic], partitions=partitions) as reader:
            for _, message in reader.read_to_end(timeout_s=READ_TIMEOUT_S):
                yield message


def _position(message: Message) -> int | None:
    try:
        return upload_position(message.headers())
    except DecodeError:
        return None


def _decoded(model: type[M], value: bytes | None) -> M | None:
    try:
        return decode(model, value)
    except DecodeError:
        return None
