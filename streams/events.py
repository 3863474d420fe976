"""The events that cross Kafka: frozen pydantic models, JSON on the wire; knows nothing of topics or clients.

Consumers ignore unknown fields, so a change within a schema version only ever adds optional fields. Times are UTC epoch
milliseconds. `codes` are the quantizer's; a `semantic_id` is the codes and the disambiguation code behind them.
"""

from __future__ import annotations

import uuid
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

SCHEMA_VERSION = 1
MAX_TEXT_CHARS = 100_000
LRM_MODEL_NAME = "lrm"
"""`model_name` of the checkpoints that answer recommendations; `lrm.home` names an adapter, others other models."""
TWO_TOWER_CLUSTER, TWO_TOWER_HASH = "two_tower_cluster", "two_tower_hash"
"""The two-tower with trainable cluster ids, and its twin on hashed ids."""
TABLE_MODEL_NAME = "table"
"""The offline table: not a model, but announced, swapped and rolled back as one."""

Surface = Literal["home", "watch_next", "shorts", "search", "music"]
SURFACES: tuple[Surface, ...] = ("home", "watch_next", "shorts", "search", "music")
HISTORY_WATCH_CHARS = 12
"""Base64 of the 9 bytes of a watch in a history."""
Identifier = Annotated[str, StringConstraints(min_length=1, max_length=256)]
EventTimeMs = Annotated[
    int, Field(ge=0, le=4_102_444_800_000, description="UTC epoch ms, before 2100")
]
# What could change how a line is read or break what shows it: control characters but white space, and the characters
# that override or isolate direction. Free text may hold them (real descriptions do) and is cleaned before it is used.
_LINE = r"^[^\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]*$"
Line = Annotated[str, StringConstraints(max_length=256, pattern=_LINE)]
Text = Annotated[str, StringConstraints(max_length=MAX_TEXT_CHARS)]


def new_event_id() -> str:
    """Return an id that no other event has."""
    return uuid.uuid4().hex


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Event(_Model):
    """What every event carries."""

    schema_version: Literal[1] = 1
    event_id: Identifier = Field(default_factory=new_event_id)
    event_time_ms: EventTimeMs


class UserFeatures(_Model):
    """What is known of a viewer; every field may be missing."""

    region: str | None = Field(None, max_length=16)
    age: int | None = Field(None, ge=0, le=130)
    gender: str | None = Field(None, max_length=32)
    device: str | None = Field(None, max_length=32)
    language: str | None = Field(None, max_length=16)


class VideoMetadata(_Model):
    """What an uploader says about a video."""

    title: Annotated[str, StringConstraints(max_length=MAX_TEXT_CHARS, pattern=_LINE)]
    description: Text = ""
    tags: tuple[str, ...] = ()
    channel: Line = ""
    language: str = Field("", max_length=16)
    category: Line = ""
    topics: tuple[str, ...] = ()
    duration_s: float | None = Field(None, ge=0, le=1e7, allow_inf_nan=False)


_TYPE = "required on the wire: it alone tells an upload from a removal"


class VideoUploaded(Event, VideoMetadata):
    """A video exists, or (as VideoUpdated) its metadata changed: the whole state, not a difference."""

    type: Literal["uploaded", "updated"] = Field("uploaded", description=_TYPE)
    video_id: Annotated[Identifier, StringConstraints(pattern=_LINE)]
    upload_time_ms: EventTimeMs | None = Field(
        None, description="when it was first uploaded, on an update; missing, event_time_ms counts"
    )
    transcript: Text | None = None
    media_uri: str | None = Field(None, max_length=2048)
    thumbnail_uri: str | None = Field(None, max_length=2048)


class VideoRemoved(Event):
    """A video must no longer be recommended."""

    type: Literal["removed"] = Field("removed", description=_TYPE)
    video_id: Identifier


_CLUSTER = "flat k-means cluster of the content embedding, of the same codebook_version"


class CodesComputed(VideoMetadata):
    """A video's codes before disambiguation: internal, keyed by the codes, so that one owner sees all that collide."""

    video_id: Identifier
    codes: tuple[int, ...]
    codebook_version: int
    cluster_id: int | None = Field(None, ge=0, description=_CLUSTER)
    embedding_f16: str = Field(description="base64 of the content embedding, little-endian float16")
    upload_time_ms: EventTimeMs
    upload_append_time_ms: int
    upload_position: int = Field(
        description="offset in video.uploads: later is newer, within one video"
    )
    featurized_time_ms: int | None = Field(None, description="when its codes were computed")


class CodeAllocated(_Model):
    """A video holds a disambiguation code under a code tuple, for good: the allocator's state, compacted."""

    codes: tuple[int, ...]
    codebook_version: int
    disambiguation_code: int = Field(ge=0, le=65_535)
    video_id: Identifier


class SemanticIdAssigned(VideoMetadata):
    """A video has a semantic ID and can be learned, decoded and shown; a tombstone in its place removes it."""

    schema_version: Literal[1] = 1
    video_id: Identifier
    codes: tuple[int, ...]
    disambiguation_code: int = Field(ge=0)
    codebook_version: int = Field(ge=0)
    cluster_id: int | None = Field(None, ge=0, description=_CLUSTER)
    embedding_f16: str
    upload_time_ms: EventTimeMs
    upload_append_time_ms: int
    upload_position: int
    featurized_time_ms: int | None = Field(None, description="when its codes were computed")
    assigned_time_ms: int

    @property
    def semantic_id(self) -> tuple[int, ...]:
        """The codes and the disambiguation code: unique among live videos of one codebook_version."""
        return (*self.codes, self.disambiguation_code)


class VideoServable(_Model):
    """A replica could recommend the video from this moment on."""

    video_id: Identifier
    codebook_version: int
    semantic_id: tuple[int, ...]
    replica: str
    servable_time_ms: int
    upload_append_time_ms: int


class WatchEvent(Event):
    """Somebody watched something."""

    type: Literal["watch"] = "watch"
    user_id: Identifier
    video_id: Identifier
    surface: Surface
    watched_s: float = Field(ge=0, le=1e6, allow_inf_nan=False)
    duration_s: float = Field(gt=0, le=1e6, allow_inf_nan=False)
    liked: bool = False
    request_id: str | None = Field(None, max_length=64)
    context_video_id: Identifier | None = None
    query: str | None = Field(None, max_length=1024)
    arm: str | None = Field(
        None,
        max_length=64,
        description="of the answer that showed it: the experiment's name for it",
    )
    user: UserFeatures | None = None


class UserErased(Event):
    """A user's watches must no longer be learned from: in `watch.events`, with the user's key, among their watches."""

    type: Literal["erased"] = Field(
        "erased", description="required on the wire: what has no type is a watch"
    )
    user_id: Identifier


class UserHistory(_Model):
    """A user's last watches, oldest first; the sealer's state and the server's view."""

    user_id: str
    video_ids: tuple[str, ...]
    watches: str = Field(
        description="base64 of 9 bytes for each of video_ids: event time in s (uint32, little-endian), seconds "
        "watched (uint16, at most 8191), percent watched (at most 127), the surface's place in the list of surfaces, 0"
    )
    user: UserFeatures | None = None

    @model_validator(mode="after")
    def _has_a_watch_for_each_video(self) -> Self:
        if len(self.watches) != HISTORY_WATCH_CHARS * len(self.video_ids):
            raise ValueError(
                f"{len(self.video_ids)} videos and {len(self.watches)} characters of watches, "
                f"expected {HISTORY_WATCH_CHARS} for each"
            )
        return self


class OffsetRange(_Model):
    """A contiguous run of records of one partition, both ends included."""

    partition: int
    first_offset: int
    last_offset: int


class ShardSealed(_Model):
    """A training shard is complete and will not change."""

    schema_version: Literal[1] = 1
    shard_id: str
    path: str
    sha256: str
    ranges: tuple[OffsetRange, ...]
    rows: int = Field(description="rows: users with new watches")
    watches: int
    duplicates: int
    dead_letters: int
    erased: int = Field(
        0, description="records that an erasure took out of the shard, the erasures included"
    )
    empty_offsets: int = Field(
        0, description="offsets in the ranges without a record, such as transaction markers"
    )
    late: int = Field(0, description="of the watches, those behind their partition's watermark")
    unknown_videos: int = Field(0, description="of the watches, those of a video without a SID")
    first_event_time_ms: int
    last_event_time_ms: int
    first_append_time_ms: int
    last_append_time_ms: int
    sealed_time_ms: int


class CheckpointPromoted(_Model):
    """A model passed its gates and is to be served; sent again with an older path, it is a rollback."""

    schema_version: Literal[1] = 1
    model_name: str
    model_version: int
    codebook_version: int
    path: str
    sha256: str = Field(description="of the weights file")
    metrics: dict[str, float]
    shard_ids: tuple[str, ...] = Field(
        (), description="shards that this round learned from, and no round before"
    )
    newest_event_time_ms: int = 0
    first_append_time_ms: int = Field(
        0,
        description="append time of the oldest watch in those shards, from which its way to being served is measured",
    )
    next_semantic_id_offsets: dict[int, int] = Field(
        default_factory=dict,
        description="by partition of video.semantic_ids: records before it were learned from, those behind it were not",
    )
    promoted_time_ms: int
    base_model_version: int | None = Field(
        None, description="of an adapter: the model_version of the base it belongs to"
    )
    base_sha256: str | None = Field(
        None, description="of an adapter: of the weights file of its base, and of no other"
    )


class ImpressionItem(_Model):
    """One position of an answer."""

    video_id: str
    position: int
    source: str
    age_s: float
    new: bool


class ImpressionsShown(Event):
    """What one answer showed."""

    request_id: str
    user_id: str | None = None
    surface: Surface
    arm: str
    model_version: int
    codebook_version: int
    items: tuple[ImpressionItem, ...]


class SwapReported(_Model):
    """A replica swapped to a checkpoint, or refused it and kept the one it had."""

    replica: str
    model_name: str
    model_version: int
    previous_version: int
    outcome: Literal["succeeded", "rejected"]
    reason: str = ""
    sha256: str
    swapped_time_ms: int
    load_s: float


class VideoCounts(_Model):
    """How often a video was watched within a window, by surface and arm: what one shard adds to the count.

    The counts of a window are the sums over its records: each shard's come with its announcement, in one transaction.
    """

    video_id: str
    surface: Surface
    arm: str
    window_start_ms: int
    window_s: int
    views: int
    completed_views: int
    likes: int
    watched_s: float


class DeadLetter(_Model):
    """A record that could not be used, with where it came from and why it was refused."""

    topic: str
    partition: int
    offset: int
    reason: str
    detail: str
    key_base64: str | None = None
    value_base64: str | None = None
    refused_time_ms: int


ANY_UPLOAD: tuple[type[Event], ...] = (VideoUploaded, VideoRemoved)


def to_json(event: BaseModel) -> bytes:
    """Return the bytes that go on the wire."""
    return event.model_dump_json(by_alias=True, exclude_none=True).encode()


def json_schema(model: type[BaseModel]) -> dict[str, Any]:
    """Return the model's JSON Schema as consumers see it."""
    return model.model_json_schema(by_alias=True, ref_template="#/components/schemas/{model}")
