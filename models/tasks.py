"""What the LRM is continually pre-trained on: tasks, each a renderer and the parser of what a model answers.

| task | prompt | answer |
| --- | --- | --- |
| title, topics, channel | `Video <codes> has title` | words |
| by_title, by_topics, by_channel | `Video with title ... is:` | codes |
| interest | `Video <codes> is interesting to` | `<topic> fans since it is about <words>` |
| masked | `Watched: <codes> ? <codes>`, `? is:` | the codes of the hidden one |
| intent | the personalised prompt with `wants <words>` | the codes of what was then watched |
| related | a video in words and codes, `watch_next:` | the codes of what was watched after it |

The first three ties words and codes, both ways (PLUM, 2510.07784, on continued pre-training); `interest` and `masked`
have the shapes of the LRM talk (Tandon, AI Engineer World's Fair 2025), `related` that of its offline table, which
knows nobody. Loss is on answers only. Watch histories themselves, the personalised prompt, are `models.examples`.
Words come from metadata: no other model writes them.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from models.prompts import (
    Ask,
    TimedWatchLike,
    VideoLike,
    Videos,
    ViewerLike,
    WatchLike,
    one_line,
    render_request,
    render_semantic_id,
)
from models.semantic_id import SemanticId, code_token

_CODE: Final = re.compile(r"<[a-z]_(\d+)>")
_INTEREST: Final = re.compile(r"(?P<audience>.+) since it is about (?P<subject>.+)")
DAY_MS: Final = 86_400_000
INTENT_HISTORY: Final = 8
"""Watches before an intent: enough to know the viewer, few enough to leave the words their weight."""
MASKED_HISTORY: Final = 16
_OPENINGS: Final = (
    "", "", "", "something about", "show me", "I want to watch", "more", "videos about",
)  # fmt: skip
_BODIES: Final = (
    "{subject}", "{subject}", "{subject} {words}", "{words} {subject}", "{words}", "{subject} from {channel}",
)  # fmt: skip
_CLOSINGS: Final = ("", "", "", "please", "today", "videos")
"""One of each is drawn for an intent: few texts, and yet a model learns which of the words matter, wherever they stand.

Of bare topics and a few fixed sentences it learned to look at what stands last, and "show me ... please" said nothing.
"""


class Text(NamedTuple):
    """What is read, and what is learned to follow it."""

    prompt: str
    answer: str


class Interest(NamedTuple):
    """Whom a video is interesting to, and why."""

    audience: str
    subject: str


Answer = str | SemanticId | Interest | None


@dataclass(frozen=True)
class VideoTask:
    """A text about one video.

    Attributes:
        render: gives None for a video that lacks the words.
        parse: what a model answered, up to its end token; None for what is no such answer.
    """

    render: Callable[[VideoLike], Text | None]
    parse: Callable[[str], Answer]


def parse_words(answer: str) -> str | None:
    """Return the words of an answer; None for nothing, or for codes among them."""
    words = answer.strip()
    return words if words and not _CODE.search(words) else None


def parse_semantic_id(answer: str) -> SemanticId | None:
    """Return the codes at the beginning of an answer, level by level; None where there are none."""
    codes: list[int] = []
    at = len(answer) - len(answer.lstrip())
    while found := _CODE.match(answer, at):
        if found.group() != code_token(len(codes), int(found[1])):
            break
        codes.append(int(found[1]))
        at = found.end()
    return tuple(codes) or None


def parse_interest(answer: str) -> Interest | None:
    """Return audience and subject; None for an answer of another shape."""
    found = _INTEREST.fullmatch(answer.strip())
    return Interest(found["audience"], found["subject"]) if found else None


def _of_video(video: VideoLike, what: str, words: str) -> Text | None:
    if not words:
        return None
    return Text(f"Video {render_semantic_id(video.semantic_id)} has {what}", f" {words}")


def _to_video(video: VideoLike, words: str, described: str) -> Text | None:
    if not words:
        return None
    return Text(f"Video {described} is:", render_semantic_id(video.semantic_id))


def _topics(video: VideoLike) -> str:
    return " ".join(one_line(topic) for topic in video.topics)


def interest_prompt(video: VideoLike) -> str:
    """Return the prompt behind which stands whom a video is interesting to, and why."""
    return f"Video {render_semantic_id(video.semantic_id)} is interesting to"


def _interest(video: VideoLike) -> Text | None:
    if not video.topics:
        return None
    first, *others = [one_line(topic) for topic in video.topics]
    subject = " ".join(others) or one_line(video.title)
    return Text(interest_prompt(video), f" {first} fans since it is about {subject}")


def _title(video: VideoLike) -> str:
    return one_line(video.title)


def _channel(video: VideoLike) -> str:
    return one_line(video.channel)


VIDEO_TASKS: Final[Mapping[str, VideoTask]] = {
    "title": VideoTask(lambda video: _of_video(video, "title", _title(video)), parse_words),
    "topics": VideoTask(lambda video: _of_video(video, "topics", _topics(video)), parse_words),
    "channel": VideoTask(lambda video: _of_video(video, "channel", _channel(video)), parse_words),
    "by_title": VideoTask(
        lambda video: _to_video(video, _title(video), f"with title {_title(video)}"),
        parse_semantic_id,
    ),
    "by_topics": VideoTask(
        lambda video: _to_video(
            video, _topics(video), f"about {_topics(video)} with title {_title(video)}"
        ),
        parse_semantic_id,
    ),
    "by_channel": VideoTask(
        lambda video: _to_video(
            video, _channel(video), f"by {_channel(video)} with title {_title(video)}"
        ),
        parse_semantic_id,
    ),
    "interest": VideoTask(_interest, parse_interest),
}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How often each text is written, where a weight below 1 is a probability, and how much watches count.

    Attributes:
        video_tasks: times per video and visit, by task.
        masked: times per row.
        intent: times per row.
        related: times per new watch that followed another video.
        reward_share: how much of what a watch counts in its history's loss follows from how much of the video was
            watched; see `models.examples.reward`.
    """

    video_tasks: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(VIDEO_TASKS, 1))
    masked: float = 0.1
    intent: float = 0.2
    related: float = 0.03
    reward_share: float = 0.0

    def __post_init__(self) -> None:
        if unknown := self.video_tasks.keys() - VIDEO_TASKS.keys():
            raise ValueError(
                f"no video task is called {sorted(unknown)}; {sorted(VIDEO_TASKS)} are"
            )


def _times(weight: float, rng: random.Random) -> int:
    whole = int(weight)
    return whole + (rng.random() < weight - whole)


def video_texts(videos: Iterable[VideoLike], recipe: Recipe, rng: random.Random) -> Iterator[Text]:
    """Yield the texts of some videos."""
    for video in videos:
        for name, weight in recipe.video_tasks.items():
            text = VIDEO_TASKS[name].render(video)
            if text is not None:
                yield from [text] * _times(weight, rng)


def render_masked(watched: Sequence[SemanticId], hidden: int) -> Text:
    """Return a sequence of videos in which one is hidden, and that one."""
    shown = [
        "?" if place == hidden else render_semantic_id(semantic_id)
        for place, semantic_id in enumerate(watched)
    ]
    return Text(f"Watched: {' '.join(shown)}\n? is:", render_semantic_id(watched[hidden]))


def intent_of(video: VideoLike, rng: random.Random) -> str:
    """Return what somebody may say who wants such a video, from one of its topics alone to a sentence about its title.

    Said of topic, channel and title; half of the time in small letters, as many people type.
    """
    subject = rng.choice(video.topics) if video.topics else video.channel or video.title
    title = _title(video).split() or [subject]
    start = rng.randrange(len(title))
    body = rng.choice(_BODIES[:-1] if not video.channel else _BODIES).format(
        subject=subject,
        words=" ".join(title[start : start + rng.randint(1, 3)]),
        channel=video.channel,
    )
    said = one_line(f"{rng.choice(_OPENINGS)} {body} {rng.choice(_CLOSINGS)}")
    return said.lower() if rng.random() < 0.5 else said


def render_related(video: VideoLike, now_ms: int) -> str:
    """Return the prompt whose continuation is what to watch after a video, whoever watches."""
    words = [
        f"title {_title(video)}",
        f"channel {_channel(video)}" if video.channel else "",
        f"language {one_line(video.language)}" if video.language else "",
        f"duration {_duration(video.duration_s)}" if video.duration_s else "",
        f"age {_age(now_ms - video.upload_time_ms)}",
    ]
    described = " | ".join(filter(None, words))
    return f"Video {render_semantic_id(video.semantic_id)} {described}\nwatch_next:"


def _duration(seconds: float) -> str:
    limits = {60: "under a minute", 300: "minutes", 1200: "a quarter hour", 3600: "half an hour"}
    return next((words for limit, words in limits.items() if seconds < limit), "hours")


def _age(milliseconds: int) -> str:
    limits = {1: "a day", 7: "a week", 30: "a month", 365: "a year"}
    days = milliseconds / DAY_MS
    return next((words for limit, words in limits.items() if days < limit), "years")


def watch_texts(
    viewer: ViewerLike | None,
    history: Sequence[WatchLike],
    watches: Sequence[TimedWatchLike],
    videos: Videos,
    recipe: Recipe,
    rng: random.Random,
) -> Iterator[Text]:
    """Yield the texts of one row beside its history: hidden videos, intents, and what follows what.

    Watches of unknown videos are as if they were not there.
    """
    known = [watch for watch in [*history, *watches] if watch.video_id in videos]
    new = [watch for watch in watches if watch.video_id in videos]
    if not new:
        return
    if len(known) > 1:
        for _ in range(_times(recipe.masked, rng)):
            some = known[-MASKED_HISTORY:]
            watched = [videos[watch.video_id].semantic_id for watch in some]
            yield render_masked(watched, rng.randrange(len(watched)))
    for _ in range(_times(recipe.intent, rng)):
        place = rng.randrange(len(known) - len(new), len(known))
        target = known[place]
        video = videos[target.video_id]
        ask = Ask(target.surface, target.context_video_id, intent=intent_of(video, rng))
        prompt = render_request(viewer, known[:place], ask, videos, history_max=INTENT_HISTORY)
        yield Text(prompt, render_semantic_id(video.semantic_id))
    for watch in new:
        context = videos.get(watch.context_video_id) if watch.context_video_id else None
        if context is not None:
            for _ in range(_times(recipe.related, rng)):
                prompt = render_related(context, watch.event_time_ms)
                yield Text(prompt, render_semantic_id(videos[watch.video_id].semantic_id))
