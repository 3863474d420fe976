"""What the HTTP endpoint takes and gives, as frozen pydantic models; knows nothing of how an answer is found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from streams.events import Identifier, Surface, UserFeatures

MAX_K = 100
MAX_HISTORY = 100
MAX_EXCLUDED = 10_000
MAX_CANDIDATES = 200
MAX_LANGUAGES = 100
Percent = Annotated[int, Field(ge=0, le=1_000)]
Source = Literal[
    "lrm", "fresh_lane", "two_tower", "random_new", "table", "neighbours", "popularity"
]
_SOURCE = (
    "lrm; fresh_lane: the LRM among new videos only; two_tower; random_new: a new one at random; table: made by the "
    "LRM beforehand; neighbours: near in content to what is on screen or was watched last; popularity"
)


class _Asked(BaseModel):
    """A field that does nothing is refused, so that nobody believes it did."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class _Answered(BaseModel):
    model_config = ConfigDict(frozen=True)


class Viewer(UserFeatures):
    """What the caller knows of the viewer; every field may be missing."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class WatchedVideo(_Asked):
    """One watch of a history that the caller sends."""

    video_id: Identifier
    percent: Percent = Field(100, description="how much of the video was watched")
    watched_s: float = Field(0.0, ge=0, le=1e6, allow_inf_nan=False)
    surface: Surface = "home"
    context_video_id: Identifier | None = None


class Exclude(_Asked):
    """What must not be in the answer."""

    video_ids: tuple[Identifier, ...] = Field((), max_length=MAX_EXCLUDED)
    channels: tuple[str, ...] = Field((), max_length=MAX_EXCLUDED)
    watched: bool = Field(True, description="leave out what is in the viewer's history")


class Fresh(_Asked):
    """How young the answer must be."""

    max_age_h: float = Field(
        gt=0, le=1e6, allow_inf_nan=False, description="hours since upload, on the events' clock"
    )
    min_share: float = Field(
        1.0,
        gt=0,
        le=1,
        description="of the places, so many are for videos of that age, as far as there are any; 1: all, and no other",
    )


class WhoAsks(_Asked):
    """Whom an answer is for."""

    user_id: Identifier | None = Field(
        None, description="whose history to read; unknown or missing: none"
    )
    user: Viewer | None = Field(None, description="missing: as the viewer's watches last said")
    history: tuple[WatchedVideo, ...] | None = Field(
        None,
        max_length=MAX_HISTORY,
        description="oldest first; stands in place of what is known of user_id",
    )
    surface: Surface = "home"


class RecommendationRequest(WhoAsks):
    """What a surface asks: which videos next?"""

    context_video_id: Identifier | None = Field(
        None, description="the video on screen; never in the answer, passed over when unknown"
    )
    query: str | None = Field(None, max_length=512, description="what was searched for")
    intent: str | None = Field(
        None, max_length=512, description="what the viewer wants, in plain words"
    )
    k: int = Field(10, ge=1, le=MAX_K, description="videos wanted")
    exclude: Exclude = Exclude()
    languages: tuple[Annotated[str, Field(min_length=1, max_length=16)], ...] = Field(
        (),
        max_length=MAX_LANGUAGES,
        description="of the videos, as their uploads say; empty: any",
    )
    fresh: Fresh | None = None


class RankRequest(WhoAsks):
    """Candidates of another system, to be put in order for a viewer."""

    candidates: tuple[Identifier, ...] = Field(
        min_length=1, max_length=MAX_CANDIDATES, description="ids of videos, each once"
    )


class ExplanationRequest(WhoAsks):
    """Why is this video for this viewer?"""

    video_id: Identifier


@dataclass(slots=True)
class RecommendedItem:
    """One recommended video; a plain class, as a model or a frozen one takes four times as long to make."""

    video_id: str
    semantic_id: Annotated[str, Field(description="such as A228 B204 C196 D0")]
    score: Annotated[
        float | None,
        Field(description="natural log of the LRM's probability; null where it did not speak"),
    ]
    title: str
    age_s: Annotated[float, Field(description="seconds since upload, on the events' clock")]
    source: Annotated[Source, Field(description=_SOURCE)]


class RecommendationResponse(_Answered):
    """The videos, best first; fewer than k where fewer may be shown."""

    request_id: str
    arm: str = Field(description="of the experiment: a function of user_id")
    model_version: int = Field(description="of what answered; 0: no model did")
    codebook_version: int
    items: tuple[RecommendedItem, ...]


class RankedItem(_Answered):
    """A candidate in its place."""

    video_id: str
    live: bool = Field(description="false: unknown or removed; such candidates come last")
    score: float | None = Field(
        description="higher is better: the share expected to be watched, or without a ranking adapter the natural log "
        "of the LRM's probability; null where no model spoke"
    )
    watched_share: float | None = Field(None, description="expected, 0 to 1; of a ranking adapter")
    like_probability: float | None = Field(None, description="0 to 1; of a ranking adapter")


class RankResponse(_Answered):
    """All candidates, best first; equals in the order in which they came."""

    model_version: int = Field(description="0: no model answered")
    codebook_version: int
    scored_by: Literal["ranking_adapter", "lrm", "popularity"]
    items: tuple[RankedItem, ...]


class RelatedResponse(_Answered):
    """What to watch after a video, whoever watches."""

    video_id: str
    model_version: int = Field(description="of the offline table; 0: it has no such row")
    codebook_version: int
    items: tuple[RecommendedItem, ...]


class ExplanationResponse(_Answered):
    """A sentence, and what it rests on."""

    video_id: str
    text: str
    source: Literal["model", "template"] = Field(
        description="model: written by the LRM; template: made of the evidence"
    )
    evidence: dict[str, Any]
    model_version: int = Field(description="of the LRM that wrote it; 0: none did")


class Refused(_Answered):
    """Why a request is not answered."""

    detail: str


class WrongField(_Answered):
    """A field that is not as it should be; what was sent is not repeated."""

    field: str = Field(description="such as history.0.video_id; empty: the whole body")
    message: str


class WrongRequest(_Answered):
    """Everything that is wrong with a request."""

    detail: tuple[WrongField, ...]


VideoStage = Literal[
    "unknown", "uploaded", "refused", "assigned", "servable", "shown", "watched", "removed"
]
_STAGE = (
    "the furthest it has come; unknown: never uploaded, or longer ago than the topics tell, or not read yet by a "
    "replica that has just started; refused: its upload is a dead letter"
)


class VideoState(_Answered):
    """How far a video has come, and when; times in UTC epoch milliseconds, null where it has not, or nobody knows."""

    video_id: str
    state: VideoStage = Field("unknown", description=_STAGE)
    assigned: bool = Field(description="it has a semantic ID")
    servable: bool = Field(description="the replica that answers can recommend it")
    semantic_id: str | None = None
    codebook_version: int | None = Field(None, description="that its semantic ID is of")
    title: str | None = None
    upload_time_ms: int | None = Field(None, description="as its uploader says")
    upload_append_time_ms: int | None = Field(None, description="when the upload reached the log")
    edited_time_ms: int | None = Field(
        None, description="when the edit did that its semantic ID is of; null: of the upload itself"
    )
    featurized_time_ms: int | None = None
    assigned_time_ms: int | None = None
    learned_time_ms: int | None = Field(
        None, description="when an LRM that had read its text was promoted"
    )
    learned_model_version: int | None = Field(
        None, description="the first such LRM, as far as known"
    )
    servable_time_ms: int | None = Field(None, description="the first replica could recommend it")
    first_shown_time_ms: int | None = Field(None, description="its first impression was logged")
    first_shown_model_version: int | None = None
    first_shown_arm: str | None = Field(None, description="whose model that is")
    first_watched_time_ms: int | None = Field(
        None, description="the first training shard with a watch of it was sealed"
    )
    refused_time_ms: int | None = Field(None, description="its last upload became a dead letter")
    refused_reason: str | None = None
    removed_time_ms: int | None = None


class FreshnessResponse(_Answered):
    """The figures of the freshness worker, as it last wrote them."""

    written_time_ms: int | None = Field(None, description="null: it has written none yet")
    figures: dict[str, Any] = {}


class ModelState(_Answered):
    """What a replica holds of one model."""

    model_version: int = Field(description="0: none")
    previous_version: int = Field(description="kept for a rollback at once; 0: none")


class ReplicaStatus(_Answered):
    """What one replica holds."""

    replica: str
    ready: bool
    waiting_for: tuple[str, ...] = Field(
        description="model, catalogue, histories; empty when ready"
    )
    live_videos: int
    histories: int = Field(description="viewers of whom something is known")
    model_version: int = Field(description="of the LRM; 0: none")
    previous_version: int = Field(description="kept for a rollback at once; 0: none")
    models: dict[str, ModelState] = Field({}, description="by model name, those that answer")
    codebook_version: int
    swaps: int
    rejected_swaps: int
    event_time_ms: int = Field(description="the events' clock")
