"""Events for the tests of the freshness worker's figures, with defaults; times in ms."""

from __future__ import annotations

from typing import Any

from streams.events import (
    CheckpointPromoted,
    ImpressionItem,
    ImpressionsShown,
    SemanticIdAssigned,
    ShardSealed,
    SwapReported,
    VideoCounts,
    VideoRemoved,
    VideoServable,
    VideoUploaded,
)
from workers.freshness_delays import Delay
from workers.freshness_figures import Figures

HOUR = 3_600_000


def uploaded(video_id: str, at_ms: int, **fields: Any) -> VideoUploaded:
    return VideoUploaded.model_validate(
        {"video_id": video_id, "title": f"Film {video_id}", "event_time_ms": at_ms, **fields}
    )


def removed(video_id: str, at_ms: int = 1) -> VideoRemoved:
    return VideoRemoved(video_id=video_id, event_time_ms=at_ms, type="removed")


def shown(
    *new: bool, arm: str = "lrm", surface: str = "home", at_ms: int = 1, first: int = 0
) -> ImpressionsShown:
    """An answer of videos v0, v1 and so on, from `first` on."""
    return shown_videos(
        {f"v{n}": each for n, each in enumerate(new, start=first)},
        arm=arm,
        surface=surface,
        at_ms=at_ms,
    )


def shown_videos(
    videos: dict[str, bool], *, arm: str = "lrm", surface: str = "home", at_ms: int = 1
) -> ImpressionsShown:
    items = tuple(
        ImpressionItem(video_id=video_id, position=n, source="lrm", age_s=1.0, new=new)
        for n, (video_id, new) in enumerate(videos.items())
    )
    return ImpressionsShown.model_validate(
        {
            "event_time_ms": at_ms, "request_id": "r", "surface": surface, "arm": arm,
            "model_version": 1, "codebook_version": 1, "items": items,
        }
    )  # fmt: skip


def counts(video_id: str, start_ms: int, views: int, **fields: Any) -> VideoCounts:
    return VideoCounts.model_validate(
        {
            "video_id": video_id, "surface": "home", "arm": "lrm", "window_start_ms": start_ms,
            "window_s": 3600, "views": views, "completed_views": 0, "likes": 0, "watched_s": 0.0,
            **fields,
        }
    )  # fmt: skip


def assigned(video_id: str, uploaded_ms: int, **fields: Any) -> SemanticIdAssigned:
    return SemanticIdAssigned.model_validate(
        {
            "video_id": video_id, "title": video_id, "codes": (1,), "disambiguation_code": 0,
            "codebook_version": 1, "embedding_f16": "", "upload_time_ms": 1,
            "upload_append_time_ms": uploaded_ms, "upload_position": 3,
            "assigned_time_ms": uploaded_ms + 1, **fields,
        }
    )  # fmt: skip


def servable(video_id: str, uploaded_ms: int, at_ms: int, replica: str = "one") -> VideoServable:
    return VideoServable(
        video_id=video_id,
        codebook_version=1,
        semantic_id=(1, 0),
        replica=replica,
        servable_time_ms=at_ms,
        upload_append_time_ms=uploaded_ms,
    )


def sealed(shard_id: str, watched_ms: int) -> ShardSealed:
    return ShardSealed.model_validate(
        {
            "shard_id": shard_id, "path": "p", "sha256": "s", "ranges": (), "rows": 1, "watches": 1,
            "duplicates": 0, "dead_letters": 0, "first_event_time_ms": 1, "last_event_time_ms": 1,
            "first_append_time_ms": watched_ms, "last_append_time_ms": watched_ms,
            "sealed_time_ms": watched_ms,
        }
    )  # fmt: skip


def promoted(version: int, at_ms: int, **fields: Any) -> CheckpointPromoted:
    return CheckpointPromoted.model_validate(
        {
            "model_name": "lrm", "model_version": version, "codebook_version": 1, "path": "p",
            "sha256": "s", "metrics": {}, "promoted_time_ms": at_ms, **fields,
        }
    )  # fmt: skip


def swap(
    version: int, at_ms: int, previous: int, outcome: Any = "succeeded", *, replica: str = "one"
) -> SwapReported:
    return SwapReported(
        replica=replica,
        model_name="lrm",
        model_version=version,
        previous_version=previous,
        outcome=outcome,
        sha256="s",
        swapped_time_ms=at_ms,
        load_s=0.1,
    )


def add(figures: Figures, event: Any, append_ms: int | None = None) -> list[tuple[str, float]]:
    """Count an event, return stages and seconds; appended when it happened, a semantic ID 2 s after its upload."""
    return [(delay.stage, delay.seconds) for delay in _counted(figures, event, append_ms)]


def _counted(figures: Figures, event: Any, append_ms: int | None) -> list[Delay]:
    match event:
        case VideoUploaded() | VideoRemoved():
            return figures.count_upload(event, append_ms or event.event_time_ms)
        case SemanticIdAssigned():
            return figures.count_assigned(event, append_ms or event.upload_append_time_ms + 2000)
        case VideoServable():
            return figures.count_servable(event)
        case VideoCounts():
            return figures.count_views(event, append_ms or event.window_start_ms + HOUR)
        case ShardSealed():
            return figures.count_shard(event, append_ms or event.sealed_time_ms + 10)
        case CheckpointPromoted():
            return figures.count_promoted(event)
        case SwapReported():
            return figures.count_swap(event)
    return figures.count_impressions(event, append_ms or event.event_time_ms)
