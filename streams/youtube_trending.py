"""YouTube's trending videos of November 2017, US and France, as uploads; knows nothing of Kafka or of pacing.

A pure function of the data set's folder, which holds `USvideos.csv`, `FRvideos.csv` (a row per video and day that it
trended) and `youtube_video_categories.csv` (id, name). It may not be copied into the project.

- Uploads. A video is uploaded at its `publish_time`. Of its rows the newest counts, by trending day. There are no
  updates, since when a title changed is not known, and no watches.
- Categories. What YouTube calls music, gaming or sports is kept beside the uploads, never in them: the text of an
  upload is embedded, so whoever compares codes with these categories compares them with something they never saw.
- Damage. Scraped files have broken rows. Each is left out and named in `malformed`, with its file and row.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from infra.errors import ConfigError
from infra.settings import Settings
from streams.events import VideoUploaded
from streams.timeline import Timeline, on_timeline

SETTING = "FRESHET_DATA__YOUTUBE_TRENDING"
VIDEO_FILES = ("USvideos.csv", "FRvideos.csv")
CATEGORIES_FILE = "youtube_video_categories.csv"
COLUMNS = (
    "video_id", "trending_date", "title", "channel_title", "category_id", "publish_time", "tags", "description",
)  # fmt: skip
NO_TAGS = "[none]"


class _Seen(NamedTuple):
    """One video as it was on one day."""

    day: str
    upload: VideoUploaded
    category: str


@dataclass(frozen=True)
class TrendingVideos:
    """The data set.

    Attributes:
        timeline: the uploads, by time of publication.
        categories: video_id -> YouTube's category of it.
        malformed: the rows that were left out: file, row and why.
    """

    timeline: Timeline
    categories: Mapping[str, str]
    malformed: tuple[str, ...]


def load_trending(settings: Settings) -> TrendingVideos:
    """Return the whole data set.

    Raises:
        ConfigError: the setting that names the folder is unset, or a file is missing or has not the columns.
    """
    folder = settings.data.youtube_trending
    if folder is None:
        raise ConfigError(
            f"{SETTING} is not set; it names the folder with {', '.join((*VIDEO_FILES, CATEGORIES_FILE))}"
        )
    names = _category_names(folder / CATEGORIES_FILE)
    newest: dict[str, _Seen] = {}
    malformed: list[str] = []
    for file in VIDEO_FILES:
        for seen in _seen_in(folder / file, names, malformed):
            before = newest.get(seen.upload.video_id)
            if before is None or seen.day >= before.day:
                newest[seen.upload.video_id] = seen
    uploads = sorted(
        (seen.upload for seen in newest.values()),
        key=lambda upload: (upload.event_time_ms, upload.video_id),
    )
    return TrendingVideos(
        Timeline(tuple(map(on_timeline, uploads))),
        {video_id: seen.category for video_id, seen in newest.items()},
        tuple(malformed),
    )


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield each row with its number; a byte that is not UTF-8 becomes U+FFFD."""
    try:
        with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
            reader = csv.reader(file)
            yield from enumerate(reader, start=1)
    except FileNotFoundError as error:
        raise ConfigError(
            f"{path.name} is missing in {path.parent}; {SETTING} names the folder with YouTube's trending videos"
        ) from error
    except csv.Error as error:
        raise ConfigError(f"{path.name} in {path.parent} is no CSV file: {error}") from error


def _category_names(path: Path) -> dict[str, str]:
    names = {}
    for row, cells in _rows(path):
        if len(cells) != 2 or not cells[0].strip().isdigit():
            raise ConfigError(
                f"{path.name} in {path.parent}, row {row} ({SETTING}): got {cells}, expected a number and a name"
            )
        names[cells[0].strip()] = cells[1].strip()
    return names


def _seen_in(path: Path, names: Mapping[str, str], malformed: list[str]) -> Iterator[_Seen]:
    rows = _rows(path)
    _, header = next(rows, (1, []))
    missing = [column for column in COLUMNS if column not in header]
    if missing:
        raise ConfigError(
            f"{path.name} in {path.parent}, row 1 ({SETTING}): no columns {', '.join(missing)}"
        )
    for row, cells in rows:
        try:
            if len(cells) != len(header):
                raise ValueError(f"{len(cells)} columns, expected {len(header)}")
            yield _seen(dict(zip(header, cells, strict=True)), names)
        except ValidationError as error:
            problem = error.errors()[0]
            malformed.append(f"{path.name} row {row}: {problem['loc'][0]}: {problem['msg']}")
        except ValueError as error:
            malformed.append(f"{path.name} row {row}: {error}")


def _seen(row: Mapping[str, str], names: Mapping[str, str]) -> _Seen:
    category = names.get(row["category_id"])
    if category is None:
        raise ValueError(f"category_id {row['category_id']!r} has no name in {CATEGORIES_FILE}")
    year, day, month = row["trending_date"].split(".")  # 17.14.11 is 14 November 2017
    published = datetime.fromisoformat(row["publish_time"])
    if published.tzinfo is None:
        raise ValueError(f"publish_time {row['publish_time']!r} has no time zone")
    video_id = row["video_id"]
    upload = VideoUploaded(
        event_id=f"yt-upload-{video_id}",
        event_time_ms=round(published.timestamp() * 1000),
        video_id=f"yt-{video_id}" if video_id else "",
        title=row["title"],
        description=row["description"].replace("\\n", "\n"),  # written as two characters
        tags=_tags(row["tags"]),
        channel=row["channel_title"],
    )
    return _Seen(f"{year}-{month}-{day}", upload, category)


def _tags(text: str) -> tuple[str, ...]:
    r"""Return the tags of `first|"second"|"third"`; the outer quotes went with the CSV."""
    if text == NO_TAGS:
        return ()
    return tuple(tag for part in text.split("|") if (tag := part.strip().strip('"').strip()))
