"""One renderer for training and serving: what the LRM reads of viewers, watches and videos.

The personalised prompt keeps the shape of the LRM talk (Tandon, AI Engineer World's Fair 2025), one line a watch:

    User: region US | 24 years female | device ANDROID
    Watch history:
    home:<a_228><b_204><c_196><d_0> Taylor Swift 100% 260s
    watch_next after <a_9><b_4><c_6><d_0>:<a_41><b_13><c_5><d_0> Kris Hui 40% 260s
    watch_next:

A request ends behind the colon, where the answer's codes begin. A training text goes on, so that every prompt is a
prefix of what was trained on. `after` names the context video unless it is the line before.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from models.semantic_id import SemanticId, code_token


class VideoLike(Protocol):
    """What a prompt may say of a video."""

    @property
    def semantic_id(self) -> SemanticId: ...  # noqa: D102
    @property
    def title(self) -> str: ...  # noqa: D102
    @property
    def channel(self) -> str: ...  # noqa: D102
    @property
    def topics(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def language(self) -> str: ...  # noqa: D102
    @property
    def duration_s(self) -> float | None: ...  # noqa: D102
    @property
    def upload_time_ms(self) -> int: ...  # noqa: D102


class WatchLike(Protocol):
    """What a prompt says of a watch."""

    @property
    def video_id(self) -> str: ...  # noqa: D102
    @property
    def percent(self) -> int: ...  # noqa: D102
    @property
    def watched_s(self) -> float: ...  # noqa: D102
    @property
    def surface(self) -> str: ...  # noqa: D102
    @property
    def context_video_id(self) -> str | None: ...  # noqa: D102


class TimedWatchLike(WatchLike, Protocol):
    """A watch to learn from."""

    @property
    def event_time_ms(self) -> int: ...  # noqa: D102


class ViewerLike(Protocol):
    """What a prompt says of a viewer; None is left out."""

    @property
    def region(self) -> str | None: ...  # noqa: D102
    @property
    def age(self) -> int | None: ...  # noqa: D102
    @property
    def gender(self) -> str | None: ...  # noqa: D102
    @property
    def device(self) -> str | None: ...  # noqa: D102
    @property
    def language(self) -> str | None: ...  # noqa: D102


Videos = Mapping[str, VideoLike]


@dataclass(frozen=True)
class Ask:
    """What the viewer is doing when the next video is wanted."""

    surface: str
    context_video_id: str | None = None
    query: str | None = None
    intent: str | None = None


def render_semantic_id(semantic_id: SemanticId) -> str:
    """Return the code tokens, `<a_228><b_204><c_196><d_0>`."""
    return "".join(code_token(level, code) for level, code in enumerate(semantic_id))


def render_viewer(viewer: ViewerLike | None) -> str:
    """Return the prompt's head, up to the first watch."""
    parts = []
    if viewer is not None:
        person = " ".join(
            part
            for part in (f"{viewer.age} years" if viewer.age else "", viewer.gender or "")
            if part
        )
        parts = [
            f"region {viewer.region}" if viewer.region else "",
            person,
            f"device {viewer.device}" if viewer.device else "",
            f"language {viewer.language}" if viewer.language else "",
        ]
    described = " | ".join(part for part in parts if part)
    return f"User: {described or 'unknown'}\nWatch history:"


def render_ask(ask: Ask, videos: Videos, previous_video_id: str | None) -> str:
    """Return the start of a line, up to and with the colon behind which the codes come."""
    text = f"\n{ask.surface}"
    context = videos.get(ask.context_video_id) if ask.context_video_id else None
    if context is not None and ask.context_video_id != previous_video_id:
        text += f" after {render_semantic_id(context.semantic_id)}"
    if ask.query:
        text += f" query {one_line(ask.query)}"
    if ask.intent:
        text += f" wants {one_line(ask.intent)}"
    return text + ":"


def render_watched(watch: WatchLike, video: VideoLike) -> str:
    """Return the rest of a line: codes, channel, percent and seconds."""
    channel = f" {one_line(video.channel)}" if video.channel else ""
    codes = render_semantic_id(video.semantic_id)
    return f"{codes}{channel} {watch.percent}% {round(watch.watched_s)}s"


def render_history(watches: Iterable[WatchLike], videos: Videos) -> list[tuple[str, str]]:
    """Return a line per watch of a known video, as (ask, watched); unknown and removed videos are left out."""
    lines = []
    previous: str | None = None
    for watch in watches:
        video = videos.get(watch.video_id)
        if video is None:
            continue
        ask = Ask(watch.surface, watch.context_video_id, getattr(watch, "query", None))
        lines.append((render_ask(ask, videos, previous), render_watched(watch, video)))
        previous = watch.video_id
    return lines


def render_request(
    viewer: ViewerLike | None,
    watches: Sequence[WatchLike],
    ask: Ask,
    videos: Videos,
    *,
    history_max: int,
) -> str:
    """Return the prompt whose continuation is the next video's codes; the newest `history_max` watches are kept."""
    known = [watch for watch in watches if watch.video_id in videos][-history_max:]
    lines = "".join(line + watched for line, watched in render_history(known, videos))
    previous = known[-1].video_id if known else None
    return render_viewer(viewer) + lines + render_ask(ask, videos, previous)


def one_line(text: str) -> str:
    """Return the text as one line in which no title can spell a code token."""
    return " ".join(text.replace("<", "(").replace(">", ")").split())
