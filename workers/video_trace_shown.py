"""A video's trace as text for people; knows nothing of where it comes from."""

from __future__ import annotations

from collections.abc import Iterable

from infra.printing import masked, printable, utc
from models.semantic_id import format_semantic_id
from streams.neighbours import Neighbour
from workers.video_trace import Sharing, Trace

UPLOADS = ("uploaded", "updated", "removed")


def render_trace(trace: Trace) -> str:
    """Return codes, who shares them, neighbours and the way, with seconds since the upload before."""
    lines = [*_heading(trace), *_sharing(trace), *_neighbours(trace), "path"]
    uploaded_ms: int | None = None
    for step in trace.steps:
        since = (
            "" if uploaded_ms is None else f"+{(step.append_time_ms - uploaded_ms) / 1000:.2f} s"
        )
        if step.what in UPLOADS and step.topic == "video.uploads":
            uploaded_ms, since = step.append_time_ms, ""
        at = f"{step.topic} {step.partition}/{step.offset}"
        detail = masked(step.detail)[:200]
        lines.append(f"  {utc(step.append_time_ms)} {since:>10}  {step.what:10} {at}  {detail}")
    return printable("\n".join(line.rstrip() for line in lines))


def _heading(trace: Trace) -> list[str]:
    assigned = trace.assigned
    if assigned is None:
        return [
            f"{trace.video_id}",
            f"not live under codebook {trace.codebook_version}: {_why_not(trace)}",
        ]
    cluster = "none" if assigned.cluster_id is None else str(assigned.cluster_id)
    return [
        f"{trace.video_id}  {assigned.title}",
        f"{format_semantic_id(assigned.semantic_id)}   cluster {cluster}   codebook {assigned.codebook_version}",
    ]


def _why_not(trace: Trace) -> str:
    """Return what became of the last upload, edit or removal."""
    ends = [step for step in trace.steps if step.what in UPLOADS or step.what == "refused"]
    last = ends[-1] if ends else None
    if last is not None and last.what == "removed":
        return f"removed {utc(last.append_time_ms)}"
    if last is not None and last.what == "refused":
        return f"refused, {masked(last.detail)[:200]}"
    return "on its way, see the path"


def _sharing(trace: Trace) -> list[str]:
    if trace.assigned is None:
        return []
    if not trace.sharing:
        return ["collisions: nobody else has had these codes"]
    return [f"collisions: {len(trace.sharing)}", *(f"  {_shared(each)}" for each in trace.sharing)]


def _shared(each: Sharing) -> str:
    state = "" if each.live is None else "  live" if each.live else "  no longer under these codes"
    title = f"  {each.title}" if each.title else ""
    return f"place {each.disambiguation_code}  {each.video_id}{title}{state}"


def _neighbours(trace: Trace) -> list[str]:
    if not trace.near_by:
        return []
    return [
        f"nearest by content (cosine; {trace.near_by})",
        *(f"  {line}" for line in render_neighbours(trace.neighbours)),
    ]


def render_neighbours(neighbours: Iterable[Neighbour]) -> list[str]:
    """Return a line for each."""
    return [
        f"{each.score:.3f}  {each.semantic_id}  {each.video_id}  {each.title}"
        for each in neighbours
    ]
