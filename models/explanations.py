"""Why a video is for a viewer: one sentence in plain English, and the evidence that it rests on.

An LRM that writes English says whom the video is interesting to and why; any other, and one whose answer does not hold,
leaves it to a template over what is known. The sentence says nothing that its evidence does not hold. Knows nothing of
HTTP, of indexes and of how co-watches are counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from models.interests import borne_out_words, write_interest
from models.lrm import Lrm
from models.prompts import VideoLike, Videos, ViewerLike, WatchLike, one_line

PERCENT_MIN: Final = 30
"""Watched of a video that is given as a reason: who left sooner may not have liked it."""
CO_WATCHES_MIN: Final = 2
"""One is not "people", and would tell of somebody."""
TITLE_CHARS_MAX: Final = 80
TOPICS_MAX: Final = 3


class NeighbourLike(Protocol):
    """A video that is near in content, whatever else is known of it."""

    @property
    def video_id(self) -> str: ...  # noqa: D102


@dataclass(frozen=True)
class Evidence:
    """What a sentence rests on.

    Attributes:
        kind: which of the reasons below.
        video_ids: that the sentence names by their titles.
        words: the topics, or the channel, or the words that the model and the metadata have in common.
        count: co-watches of `video_ids` and the video.
        language: that viewer and video share, where the sentence says so.

    Kinds, best first:
        metadata: the model wrote the sentence, and `words` of it are in title, topics, channel or description
        shared_topics: the viewer watched `video_ids`, all of which have the topics `words` in common with the video
        co_watches_of_watched: the viewer watched `video_ids`; `count` others or more went on from it to the video
        channel: the viewer watched `video_ids`, of the same channel `words`
        neighbours: the viewer watched `video_ids`, one of the nearest in content
        co_watches: `count` viewers or more went on from `video_ids` to the video
        topics: the video has the topics `words`
        title: the video has a title, which is all that is known
        nothing: not even that
    """

    kind: Literal[
        "metadata", "shared_topics", "co_watches_of_watched", "channel", "neighbours", "co_watches", "topics", "title",
        "nothing",
    ]  # fmt: skip
    video_ids: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    count: int = 0
    language: str = ""


@dataclass(frozen=True)
class Explanation:
    """A sentence, who made it, and why it is true."""

    text: str
    source: Literal["model", "template"]
    evidence: Evidence


def explain(
    lrm: Lrm | None,
    video: VideoLike,
    viewer: ViewerLike | None,
    watches: Sequence[WatchLike],
    videos: Videos,
    *,
    co_watched: Iterable[tuple[str, int]] = (),
    neighbours: Iterable[NeighbourLike] = (),
) -> Explanation:
    """Return the model's sentence where it writes English and is borne out, else the best that the evidence allows.

    Args:
        lrm: that recommends; None where there is none.
        video: that is explained.
        viewer: of whom a shared language may be said.
        watches: of the viewer, oldest first. Of videos that are unknown or removed nothing is said.
        videos: all live ones.
        co_watched: videos after which this one was watched, and how often at least; most often first.
        neighbours: videos near this one in content, nearest first.
    """
    co_watched = list(co_watched)
    # Videos may be removed at any moment: what is live now is looked up once.
    ids = {watch.video_id for watch in watches} | {each for each, _ in co_watched}
    videos = {each: found for each in ids if (found := videos.get(each)) is not None}
    if lrm is not None and lrm.writes_english:
        interest = write_interest(lrm, video)
        if interest is not None:
            said = f"{one_line(interest.audience)} since it is about {one_line(interest.subject)}"
            words = borne_out_words(f"{interest.audience} {interest.subject}", video)
            evidence = Evidence("metadata", words=tuple(words))
            return Explanation(f"It is interesting to {said.rstrip(' .')}.", "model", evidence)
    watched = _reasons_among(watches, video, videos)
    followed = [
        (each, count)
        for each, count in co_watched
        if count >= CO_WATCHES_MIN and each in videos and _is_another(videos[each], video)
    ]
    near = [each.video_id for each in neighbours]
    reasons = _reasons(video, viewer, watched, videos, followed, near)
    text, evidence = next(reasons)
    return Explanation(text, "template", evidence)


def _reasons_among(watches: Sequence[WatchLike], video: VideoLike, videos: Videos) -> list[str]:
    """Return the watched videos that can be named as a reason, each once, newest first."""
    watched = [
        watch.video_id
        for watch in reversed(watches)
        if watch.percent >= PERCENT_MIN and watch.video_id in videos
    ]
    return [each for each in dict.fromkeys(watched) if _is_another(videos[each], video)]


def _is_another(one: VideoLike, video: VideoLike) -> bool:
    """Return whether a video can be named beside the one that is explained."""
    return one.semantic_id != video.semantic_id and bool(one_line(one.title))


def _reasons(
    video: VideoLike,
    viewer: ViewerLike | None,
    watched: Sequence[str],
    videos: Videos,
    followed: Sequence[tuple[str, int]],
    near: Sequence[str],
) -> Iterator[tuple[str, Evidence]]:
    """Yield sentences with their evidence, best first, at least one."""
    names = {each: _quoted(videos[each]) for each in [*watched, *(each for each, _ in followed)]}
    if (shared := _shared_topics(video, watched, videos)) is not None:
        told = " and ".join(names[each] for each in shared.video_ids)
        verb = "are" if len(shared.video_ids) > 1 else "is"
        yield f"Because you watched {told}, which {verb} about {_listed(shared.words)} too.", shared
    for each, count in followed:
        if each in watched:
            evidence = Evidence("co_watches_of_watched", (each,), count=count)
            yield f"People who watched {names[each]}, as you did, went on to this.", evidence
    channel = one_line(video.channel)
    for each in watched:
        if channel and one_line(videos[each].channel) == channel:
            evidence = Evidence("channel", (each,), (channel,))
            yield f"It is from {channel}, as is {names[each]}, which you watched.", evidence
    for each in near:
        if each in watched:
            evidence = Evidence("neighbours", (each,))
            yield (
                f"Because you watched {names[each]}, one of the nearest to this in content.",
                evidence,
            )
    for each, count in followed:
        yield (
            f"People who watched {names[each]} went on to this.",
            Evidence("co_watches", (each,), count=count),
        )
    yield _about(video, viewer)


def _shared_topics(video: VideoLike, watched: Sequence[str], videos: Videos) -> Evidence | None:
    """Return the watched video with most topics in common, the newest of equals, and the newest other that has them."""
    topics = {topic.casefold(): topic for topic in _topics(video)}
    common = {
        each: [key for key in topics if key in {t.casefold() for t in _topics(videos[each])}]
        for each in watched
    }
    best = max(watched, key=lambda each: len(common[each]), default=None)
    if best is None or not common[best]:
        return None
    shared = common[best][:TOPICS_MAX]
    others = (each for each in watched if each != best and set(shared) <= set(common[each]))
    video_ids = [best, *others][:2]
    return Evidence("shared_topics", tuple(video_ids), tuple(topics[key] for key in shared))


def _about(video: VideoLike, viewer: ViewerLike | None) -> tuple[str, Evidence]:
    """Return what the video is, to somebody of whom nothing else connects with it."""
    topics = _topics(video)[:TOPICS_MAX]
    language = one_line(video.language)
    spoken = one_line(viewer.language or "") if viewer is not None else ""
    if not language or spoken.casefold() != language.casefold():
        language = ""
    if topics:
        before = "in your language and " if language else ""
        return f"It is {before}about {_listed(topics)}.", Evidence(
            "topics", words=topics, language=language
        )
    if one_line(video.title):
        return f"It is called {_quoted(video)}.", Evidence("title")
    return "Nothing is known of it yet.", Evidence("nothing")


def _topics(video: VideoLike) -> tuple[str, ...]:
    return tuple(filter(None, map(one_line, video.topics)))


def _listed(words: Sequence[str]) -> str:
    """Return "a", "a and b", "a, b and c"."""
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _quoted(video: VideoLike) -> str:
    title = one_line(video.title).translate({ord("“"): '"', ord("”"): '"'})
    shown = title if len(title) <= TITLE_CHARS_MAX else title[: TITLE_CHARS_MAX - 1].rstrip() + "…"
    return f"“{shown}”"
