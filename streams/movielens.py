"""MovieLens ml-latest-small as a stream of uploads, updates and watches; knows nothing of Kafka or of pacing.

A pure function of the data set's folder. What is real: titles, genres, tags, who rated what, how high and when.
What is assumed, since MovieLens records ratings and not watches:

- Uploads. A film is uploaded 24 h before its first rating; one that was never rated (18 films), 24 h before its first
  tag. Its title is readable ("The Matrix (1999)" for "Matrix, The (1999)"), its topics are its genres, its category
  the first of them. Description, channel, language and duration are unknown and stay empty.
- Updates. Tags arrive at their own times, never earlier. What one user tags one film with in one go (gaps of at most 30
  minutes) is one update, at the time of its last tag, or at the upload time where that is later (a few people tagged
  a film before anybody had rated it). An update carries the whole state: every tag given up to that time, by anyone,
  each once. One that adds nothing is left out.
- Watches. A rating is a watch at the rating's time, of a nominal 6000 s, watched to rating / 5 of its length, at least
  a tenth; rated 4.5 or higher, it is liked.
- Surfaces. A user's first watch of a sitting (more than 30 minutes after the one before) comes from `home`, each
  further one from `watch_next` of the one before it.
- Order. Event time, then uploads before updates before watches, then the order of the files. Ids are functions
  of the data, so that a second replay repeats the first one's.
"""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from infra.errors import ConfigError
from streams.events import VideoUploaded, WatchEvent
from streams.timeline import Timeline, on_timeline

FOLDER = Path(__file__).with_name("data") / "movielens-small"
UPLOAD_LEAD_MS = 24 * 3_600_000
SITTING_GAP_MS = 30 * 60_000
NOMINAL_DURATION_S = 6000.0
HIGHEST_RATING = 5.0
LEAST_SHARE = 0.1
LIKED_RATING = 4.5

_ARTICLES = (
    "The|An|A|L'|La|Le|Les|Lo|Los|Las|El|Il|I|Un|Una|Une|Der|Die|Das|De|Det|En|Da"  # as they occur
)
_YEAR = re.compile(r"\s*\((\d{4}[^()]*)\)$")
_TRAILING_ARTICLE = re.compile(rf"(?P<name>[^()]+), (?P<article>{_ARTICLES})(?= \(|\)|$)")


class _Rating(NamedTuple):
    user_id: int
    movie_id: int
    rating: float
    time_ms: int


class _Tag(NamedTuple):
    user_id: int
    movie_id: int
    tag: str
    time_ms: int


def load_timeline(folder: Path = FOLDER) -> Timeline:
    """Return the whole data set as one timeline.

    Raises:
        ConfigError: a file of the data set is missing.
    """
    ratings = [
        _Rating(int(row["userId"]), int(row["movieId"]), float(row["rating"]), _ms(row))
        for row in _rows(folder / "ratings.csv")
    ]
    tags = [
        _Tag(int(row["userId"]), int(row["movieId"]), row["tag"].strip(), _ms(row))
        for row in _rows(folder / "tags.csv")
    ]
    uploads = _uploads(_rows(folder / "movies.csv"), _first_seen(ratings, tags))
    events: list[VideoUploaded | WatchEvent] = [
        *uploads.values(),
        *_updates(uploads, tags),
        *_watches(ratings),
    ]
    # Each kind is already in the order of its file, which the stable sort keeps among equals.
    return Timeline(
        tuple(
            sorted(
                map(on_timeline, events), key=lambda each: (each.event_time_ms, _RANK[each.kind])
            )
        )
    )


_RANK = {"uploaded": 0, "updated": 1, "watched": 2}


def _rows(path: Path) -> Iterator[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            yield from csv.DictReader(file)
    except FileNotFoundError as error:
        raise ConfigError(
            f"{path} is missing; MovieLens ml-latest-small belongs in {path.parent}"
        ) from error


def _ms(row: dict[str, str]) -> int:
    return int(row["timestamp"]) * 1000


def readable_title(title: str) -> str:
    """Return the title as people write it: articles in front, the year at the end."""
    title = title.strip()
    year = _YEAR.search(title)
    name = title[: year.start()] if year else title
    name = _TRAILING_ARTICLE.sub(_article_first, name)
    return f"{name} ({year[1]})" if year else name


def _article_first(match: re.Match[str]) -> str:
    prefix = "a.k.a. " if match["name"].startswith("a.k.a. ") else ""
    joint = "" if match["article"].endswith("'") else " "
    return prefix + match["article"] + joint + match["name"].removeprefix(prefix)


def _first_seen(ratings: Iterable[_Rating], tags: Iterable[_Tag]) -> dict[int, int]:
    rated: dict[int, int] = {}
    tagged: dict[int, int] = {}
    for found, rows in ((rated, ratings), (tagged, tags)):
        for row in rows:
            found[row.movie_id] = min(row.time_ms, found.get(row.movie_id, row.time_ms))
    return tagged | rated


def _uploads(
    movies: Iterable[dict[str, str]], first_seen: dict[int, int]
) -> dict[int, VideoUploaded]:
    uploads = {}
    for row in movies:
        movie_id = int(row["movieId"])
        genres = tuple(genre for genre in row["genres"].split("|") if not genre.startswith("("))
        uploads[movie_id] = VideoUploaded(
            event_id=f"ml-upload-{movie_id}",
            event_time_ms=first_seen[movie_id] - UPLOAD_LEAD_MS,
            video_id=f"ml-{movie_id}",
            title=readable_title(row["title"]),
            topics=genres,
            category=genres[0] if genres else "",
        )
    return uploads


def _updates(uploads: dict[int, VideoUploaded], tags: Iterable[_Tag]) -> Iterator[VideoUploaded]:
    by_movie = defaultdict(list)
    for tag in tags:
        by_movie[tag.movie_id].append(tag)
    for movie_id, of_movie in by_movie.items():
        of_movie.sort(key=lambda tag: tag.time_ms)
        upload = uploads[movie_id]
        known: tuple[str, ...] = ()
        for number, time_ms in enumerate(_update_times(of_movie, upload.event_time_ms), start=1):
            so_far = _each_once(tag.tag for tag in of_movie if tag.time_ms <= time_ms)
            if so_far == known:
                continue
            known = so_far
            yield upload.model_copy(
                update={
                    "type": "updated",
                    "event_id": f"ml-update-{movie_id}-{number}",
                    "event_time_ms": time_ms,
                    "upload_time_ms": upload.event_time_ms,
                    "tags": so_far,
                }
            )


def _update_times(tags_in_order: list[_Tag], upload_time_ms: int) -> list[int]:
    """Return when each sitting of each user's tagging ended, none before the upload."""
    times_of_user = defaultdict(list)
    for tag in tags_in_order:
        times_of_user[tag.user_id].append(tag.time_ms)
    ends = set()
    for times in times_of_user.values():
        for time_ms, following in zip(times, [*times[1:], None], strict=True):
            if following is None or following - time_ms > SITTING_GAP_MS:
                ends.add(max(time_ms, upload_time_ms))
    return sorted(ends)


def _each_once(tags: Iterable[str]) -> tuple[str, ...]:
    first_spelling: dict[str, str] = {}
    for tag in tags:
        first_spelling.setdefault(tag.casefold(), tag)
    return tuple(first_spelling.values())


def _watches(ratings: list[_Rating]) -> Iterator[WatchEvent]:
    previous_of_user: dict[int, _Rating] = {}
    for rating in sorted(ratings, key=lambda rating: rating.time_ms):
        previous = previous_of_user.get(rating.user_id)
        if previous is not None and rating.time_ms - previous.time_ms > SITTING_GAP_MS:
            previous = None
        previous_of_user[rating.user_id] = rating
        share = max(rating.rating / HIGHEST_RATING, LEAST_SHARE)
        yield WatchEvent(
            event_id=f"ml-watch-{rating.user_id}-{rating.movie_id}",
            event_time_ms=rating.time_ms,
            user_id=f"ml-{rating.user_id}",
            video_id=f"ml-{rating.movie_id}",
            surface="home" if previous is None else "watch_next",
            watched_s=share * NOMINAL_DURATION_S,
            duration_s=NOMINAL_DURATION_S,
            liked=rating.rating >= LIKED_RATING,
            context_video_id=None if previous is None else f"ml-{previous.movie_id}",
        )
