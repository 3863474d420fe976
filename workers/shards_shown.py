"""Shards and their audit as text for people and for programs; knows nothing of where they lie. User ids are hashed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from infra.log import hashed
from infra.printing import printable, utc
from models.semantic_id import format_semantic_id
from streams.events import ShardSealed
from streams.shards import NewWatch, PastWatch, ShardRow
from workers.shard_audit import Audit

SHOWN_PROBLEMS = 50
_COUNTS = ("rows", "watches", "late", "unknown_videos", "duplicates", "dead_letters", "erased")


def render_list(shards: Sequence[ShardSealed]) -> str:
    """Return a line for each shard, oldest first."""
    if not shards:
        return "no shard is announced"
    lines = ["shard_id, sealed, ranges (partition:first-last), watches"]
    lines += [
        f"{shard.shard_id}  {utc(shard.sealed_time_ms)}  {_ranges(shard)}  {shard.watches}"
        for shard in shards
    ]
    return printable("\n".join(lines))


def list_as_json(shards: Sequence[ShardSealed]) -> list[dict[str, Any]]:
    """Return the announcements for programs."""
    return [shard.model_dump(mode="json") for shard in shards]


def render_shard(shard: ShardSealed, rows: Sequence[ShardRow], *, limit: int) -> str:
    """Return an announcement and the first `limit` rows."""
    lines = [
        shard.shard_id,
        f"file      {shard.path}  sha256 {shard.sha256}",
        f"ranges    {_ranges(shard)}",
        "counts    " + "  ".join(f"{name} {getattr(shard, name)}" for name in _COUNTS),
        f"watched   {utc(shard.first_event_time_ms)} to {utc(shard.last_event_time_ms)}",
        f"appended  {utc(shard.first_append_time_ms)} to {utc(shard.last_append_time_ms)}",
        f"sealed    {utc(shard.sealed_time_ms)}",
    ]
    for row in rows[:limit]:
        features = (row.region, row.age, row.gender, row.device, row.language)
        known = ", ".join(str(each) for each in features if each is not None)
        lines.append(f"user {hashed(row.user_id)} ({known or 'nothing known'})")
        if row.history:
            lines.append(f"  {len(row.history)} before, the newest:")
            lines.append(f"    {_watch(row.history[-1])}")
        lines += [f"  + {_watch(each)}{_marks(each)}" for each in row.watches]
    if len(rows) > limit:
        lines.append(f"… and {len(rows) - limit} more rows")
    return printable("\n".join(lines))


def render_audit(found: Audit) -> str:
    """Return what was verified, and what is wrong."""
    totals = {name: sum(getattr(shard, name) for shard in found.shards) for name in _COUNTS}
    lines = [
        f"{len(found.shards)} shards, {found.offsets()} offsets: "
        + ", ".join(
            f"{totals[name]} {name.replace('_', ' ')}" for name in _COUNTS if name != "rows"
        )
    ]
    lines += found.problems[:SHOWN_PROBLEMS]
    if len(found.problems) > SHOWN_PROBLEMS:
        lines.append(f"… and {len(found.problems) - SHOWN_PROBLEMS} more problems")
    if found.orphans:
        lines.append(
            f"{len(found.orphans)} files are not announced; a sealer removes them an hour after they were written"
        )
    if not found.problems:
        lines.append("every offset is accounted for exactly once")
    return printable("\n".join(lines))


def _ranges(shard: ShardSealed) -> str:
    return " ".join(f"{at.partition}:{at.first_offset}-{at.last_offset}" for at in shard.ranges)


def _watch(watch: PastWatch) -> str:
    semantic_id = "no SID" if watch.semantic_id is None else format_semantic_id(watch.semantic_id)
    return (
        f"{utc(watch.event_time_ms)}  {watch.video_id}  {semantic_id}  {watch.channel or '-'}  "
        f"{watch.percent} %  {watch.watched_s:.1f} s  {watch.surface}"
    )


def _marks(watch: NewWatch) -> str:
    marks = [mark for mark, given in (("liked", watch.liked), ("late", watch.late)) if given]
    if watch.query:
        marks.append(f"searched {watch.query!r}")
    if watch.context_video_id:
        marks.append(f"after {watch.context_video_id}")
    return "".join(f"  {mark}" for mark in marks)
