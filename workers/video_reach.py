"""Which records say that a video was learned from, shown or watched, and what of it is told; knows no Kafka clients."""

from __future__ import annotations

from typing import TypeVar

from confluent_kafka import Message
from pydantic import BaseModel

from infra.errors import DecodeError
from streams.codec import decode
from streams.events import LRM_MODEL_NAME, CheckpointPromoted, ImpressionsShown, VideoCounts

M = TypeVar("M", bound=BaseModel)


def learned_by(place: tuple[int, int] | None, message: Message) -> str | None:
    """Return which LRM it is, if that has read the text of a video; None if not.

    Args:
        place: partition and offset of the video's record in `video.semantic_ids`; None where it has none.
        message: of `model.checkpoints`.
    """
    promoted = _decoded(CheckpointPromoted, message.value())
    if place is None or promoted is None or promoted.model_name != LRM_MODEL_NAME:
        return None
    partition, offset = place
    if offset >= promoted.next_semantic_id_offsets.get(partition, 0):
        return None
    return f"its text, by {promoted.model_name} {promoted.model_version} or, where that is forgotten, one before it"


def shown_by(video_id: str, message: Message) -> str | None:
    """Return what showed a video, if this record of `serving.impressions` says that something did; None if not."""
    value = message.value() or b""
    if video_id.isascii() and video_id.encode() not in value:
        return None  # most are of others, and need not be decoded
    shown = _decoded(ImpressionsShown, value)
    if shown is None:
        return None
    for item in shown.items:
        if item.video_id == video_id:
            return (
                f"by {shown.arm} on {shown.surface}, place {item.position + 1}, from {item.source}, "
                f"model {shown.model_version}"
            )
    return None


def watched_in(key: bytes, message: Message) -> str | None:
    """Return how often a video was watched, if this record of `video.counts` is of it; None if not."""
    if message.key() != key:
        return None
    counts = _decoded(VideoCounts, message.value())
    if counts is None or counts.views <= 0:
        return None
    views = "1 view" if counts.views == 1 else f"{counts.views} views"
    arm = f" of {counts.arm}" if counts.arm else ""
    return f"{views} on {counts.surface}{arm} in the first shard with any"


def _decoded(model: type[M], value: bytes | None) -> M | None:
    try:
        return decode(model, value)
    except DecodeError:
        return None
