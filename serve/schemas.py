"""What the HTTP endpoint takes and gives, as frozen pydantic models; knows nothing of how an answer is found."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from streams.events import Identifier, Surface, UserFeatures

MAX_K = 100
MAX_HISTORY = 100
MAX_EXCLUDED = 10_000
Percent = Annotated[int, Field(ge=0, le=1_000)]


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


class RecommendationRequest(_Asked):
    """What a surface asks: which videos next?"""

    surface: Surface = "home"
    user_id: Identifier | None = Field(
        None, description="whose history to read; unknown or missing: none"
    )
    user: Viewer | None = Field(None, description="missing: as the viewer's watches last said")
    context_video_id: Identifier | None = Field(
        None, description="the video on screen; never in the answer, passed over when unknown"
    )
    query: str | None = Field(None, max_length=512, description="what was searched for")
    intent: str | None = Field(
        None, max_length=512, description="what the viewer wants, in plain words"
    )
    history: tuple[WatchedVideo, ...] | None = Field(
        None,
        max_length=MAX_HISTORY,
        description="oldest first; stands in place of what is known of user_id",
    )
    k: int = Field(10, ge=1, le=MAX_K, description="videos wanted")
    exclude: Exclude = Exclude()
    fresh: Fresh | None = None


class RecommendedItem(_Answered):
    """One recommended video."""

    video_id: str
    semantic_id: str = Field(description="such as A228 B204 C196 D0")
    score: float | None = Field(
        description="natural log of the model's probability; null where no model spoke"
    )
    title: str
    age_s: float = Field(description="seconds since upload, on the events' clock")
    source: str = Field(description="lrm, or popularity where there is no model")


class RecommendationResponse(_Answered):
    """The videos, best first; fewer than k where fewer may be shown."""

    request_id: str
    arm: str
    model_version: int = Field(description="0: no model is loaded yet")
    codebook_version: int
    items: tuple[RecommendedItem, ...]


class VideoState(_Answered):
    """How far a video has come in this replica."""

    video_id: str
    assigned: bool = Field(description="it has a semantic ID")
    servable: bool = Field(description="it can be recommended")
    semantic_id: str | None = None
    title: str | None = None
    upload_time_ms: int | None = None
    assigned_time_ms: int | None = None


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
    model_version: int = Field(description="0: none")
    previous_version: int = Field(description="kept for a rollback at once; 0: none")
    codebook_version: int
    swaps: int
    rejected_swaps: int
    event_time_ms: int = Field(description="the events' clock")
