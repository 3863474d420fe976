"""Where is my upload? One video's whole path as the endpoint tells it; knows nothing of topics and threads."""

from __future__ import annotations

from models.semantic_id import format_semantic_id
from serve.schemas import VideoStage, VideoState
from serve.trace_view import Milestones
from streams.events import SemanticIdAssigned


def video_state(
    video_id: str, known: SemanticIdAssigned | None, came: Milestones, *, servable: bool
) -> VideoState:
    """Return a video's path.

    Args:
        video_id: as it was asked for.
        known: what the catalogue has of it; None where it has no semantic ID.
        came: when it did what.
        servable: the replica that answers can recommend it.
    """
    path = VideoState(
        video_id=video_id,
        state=_stage(known, came, servable=servable),
        assigned=known is not None,
        servable=servable,
        upload_append_time_ms=came.upload_append_time_ms,
        refused_time_ms=came.refused_time_ms,
        refused_reason=came.refused_reason,
        removed_time_ms=came.removed_time_ms,
    )
    if known is None:
        return path
    # An edit has an upload record of its own, which is what the rest of `known` is measured from.
    from_ms = known.upload_append_time_ms
    first_ms = from_ms if came.upload_append_time_ms is None else came.upload_append_time_ms
    return path.model_copy(
        update={
            "semantic_id": format_semantic_id(known.semantic_id),
            "codebook_version": known.codebook_version,
            "title": known.title,
            "upload_time_ms": known.upload_time_ms,
            "upload_append_time_ms": min(first_ms, from_ms),
            "edited_time_ms": from_ms if from_ms > first_ms else None,
            "featurized_time_ms": known.featurized_time_ms,
            "assigned_time_ms": known.assigned_time_ms,
            "learned_time_ms": came.learned_time_ms,
            "learned_model_version": came.learned_model_version,
            "servable_time_ms": came.servable_time_ms,
            "first_shown_time_ms": came.first_shown_time_ms,
            "first_shown_model_version": came.first_shown_model_version,
            "first_shown_arm": came.first_shown_arm,
            "first_watched_time_ms": came.first_watched_time_ms,
        }
    )


def _stage(known: SemanticIdAssigned | None, came: Milestones, *, servable: bool) -> VideoStage:
    if came.removed_time_ms is not None:
        return "removed"
    if known is None:
        if came.refused_time_ms is not None:
            return "refused"
        return "unknown" if came.upload_append_time_ms is None else "uploaded"
    if came.first_watched_time_ms is not None:
        return "watched"
    if came.first_shown_time_ms is not None:
        return "shown"
    return "servable" if servable else "assigned"
